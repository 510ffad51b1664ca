"""Readers of users' own files and of downloaded sets, against small files of the same formats written here."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import io
import json
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from fedsim.data.dataset import IGNORED_TARGET
from fedsim.data.sources import (
    _cifar,
    cifar10,
    cifar100,
    csv,
    huggingface,
    image_folder,
    leaf,
    npz,
    parquet,
    torchvision,
)
from fedsim.data.splits import random_split, stratified_split, time_split, user_split
from fedsim.types import FedsimError, MissingPackageError

CONF = Path(__file__).parent.parent / "conf" / "dataset"


def refuses(words: str, call: Callable[..., Any], *args: Any, **keys: Any) -> None:
    """The call fails with one sentence that holds `words`."""
    with pytest.raises(FedsimError) as caught:
        call(*args, **keys)
    assert words in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def no_fetched_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "fetched"))


# Configuration


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("cifar10", cifar10.load),
        ("cifar100", cifar100.load),
        ("csv", csv.load),
        ("femnist", leaf.load),
        ("huggingface", huggingface.load),
        ("images", image_folder.load),
        ("leaf", leaf.load),
        ("npz", npz.load),
        ("parquet", parquet.load),
        ("torchvision", torchvision.load),
    ],
)
def test_configuration_has_every_key_with_its_default(name: str, load: Callable[..., Any]) -> None:
    conf = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert conf.pop("_target_") == f"{load.__module__}.load"
    defaults = {
        key: "???" if parameter.default is parameter.empty else parameter.default
        for key, parameter in inspect.signature(load).parameters.items()
    }
    if name == "femnist":
        assert len(conf["classes"]) == len(set(conf["classes"])) == 62
        assert conf["shape"] == [1, 28, 28]
        assert conf.keys() == defaults.keys()
    else:
        assert {**conf, "input": "???"} == {**defaults, "input": "???"}
        assert conf.keys() == defaults.keys()


# Splits


def test_stratified_split_keeps_the_shares_and_depends_on_the_seed_alone() -> None:
    y = np.array(["b"] * 50 + ["a"] * 30 + ["c"] * 20)
    train, test = stratified_split(y, 0.2, 7)
    assert sorted([*train, *test]) == list(range(100))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    assert {label: int((y[test] == label).sum()) for label in "abc"} == {"a": 6, "b": 10, "c": 4}
    again, other = stratified_split(y, 0.2, 7), stratified_split(y, 0.2, 8)
    assert (again[1] == test).all()
    assert (other[1] != test).any()


def test_stratified_split_never_takes_all_of_a_class_and_gives_the_exact_total() -> None:
    y = np.array([0] * 7 + [1] * 7 + [2] * 7 + [3])
    train, test = stratified_split(y, 0.3, 0)
    assert len(test) == round(22 * 0.3)
    assert 3 in y[train] and 3 not in y[test]


def test_time_split_never_cuts_through_a_moment() -> None:
    train, test = time_split(np.array([3, 1, 2, 2, 3, 0]), 0.2)
    assert train.tolist() == [1, 2, 3, 5]
    assert test.tolist() == [0, 4]  # one row was asked for, and both rows of moment 3 go together
    train, test = time_split(np.array([0, 1, 1, 1]), 0.9)
    assert (train.tolist(), test.tolist()) == ([0], [1, 2, 3])
    refuses("cannot be split", time_split, np.array([5, 5, 5]), 0.2)


def test_user_split_keeps_users_whole() -> None:
    user = np.array(list("abcdeabcde"))
    train, test = user_split(user, 0.4, 3)
    assert len(set(user[test])) == 2
    assert not set(user[test]) & set(user[train])
    assert len(train) + len(test) == 10


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_is_between_0_and_1(share: float) -> None:
    refuses("dataset.test_share", random_split, 10, share, 0)


# CIFAR


def write_cifar(folder: Path, header: int, files: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    written = {}
    for file, rows in files.items():
        records = rng.integers(0, 256, (rows, header + 3072), dtype=np.uint8)
        records[:, :header] %= 10
        records.tofile(folder / file)
        written[file] = records
    return written


def test_cifar10_bytes_come_back_in_the_order_of_the_batches(tmp_path: Path) -> None:
    files = {f"data_batch_{n}.bin": n for n in range(1, 6)} | {"test_batch.bin": 3}
    written = write_cifar(tmp_path / "cifar-10-batches-bin", 1, files)
    data = cifar10.load(str(tmp_path))
    train = np.concatenate([written[f"data_batch_{n}.bin"] for n in range(1, 6)])
    assert data.train.x.shape == (15, 3, 32, 32)
    assert (data.train.x.numpy().reshape(15, -1) == train[:, 1:]).all()
    assert data.train.y.tolist() == train[:, 0].tolist()
    assert data.test.y.tolist() == written["test_batch.bin"][:, 0].tolist()
    assert data.classes[3] == "cat"
    assert cifar10.find(str(tmp_path / "cifar-10-batches-bin")) == tmp_path / "cifar-10-batches-bin"
    first = (data.train.x[0, 1, 4, 5].item() / 255 - 0.4822) / 0.2435  # green
    assert data.preprocess(data.train.x[:1])[0, 1, 4, 5].item() == pytest.approx(first, rel=1e-5)


def test_cifar100_has_two_labels_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    written = write_cifar(folder, 2, {"train.bin": 4, "test.bin": 2})
    names = [f"thing{n}" for n in range(100)]
    (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n\n")
    fine, coarse = cifar100.load(str(tmp_path)), cifar100.load(str(tmp_path), label="coarse")
    assert fine.train.y.tolist() == written["train.bin"][:, 1].tolist()
    assert coarse.train.y.tolist() == written["train.bin"][:, 0].tolist()
    assert fine.classes == tuple(names)
    assert coarse.classes == tuple(str(n) for n in range(20))
    refuses("dataset.label=fin", cifar100.load, str(tmp_path), label="fin")


def test_cifar_refuses_what_is_not_whole(tmp_path: Path) -> None:
    refuses("python -m fedsim.data cifar10 --fetch", cifar10.load, str(tmp_path))
    folder = tmp_path / "c"
    write_cifar(folder, 2, {"train.bin": 2, "test.bin": 2})
    (folder / "test.bin").write_bytes((folder / "test.bin").read_bytes()[:-1])
    refuses("test.bin is cut short", cifar100.load, str(folder))
    np.full((1, 3074), 200, np.uint8).tofile(folder / "test.bin")
    refuses("label 200", cifar100.load, str(folder))


def test_cifar_fetch_checks_and_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "made", 2, {"train.bin": 2, "test.bin": 1})
    archive = tmp_path / "cifar-100-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "train.bin", "../../escaped/train.bin")  # a hostile path lands in our folder
        tar.add(tmp_path / "made" / "test.bin", "cifar-100-binary/test.bin")
        tar.add(tmp_path / "made" / "test.bin", "cifar-100-binary/other.bin")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    version = cifar100.VERSION._replace(url=archive.as_uri(), sha256=digest)
    folder = _cifar.fetch_version(version, tmp_path / "to")
    assert sorted(file.name for file in folder.iterdir()) == ["test.bin", "train.bin"]
    assert len(cifar100.load(str(tmp_path / "to")).train) == 2
    assert not (tmp_path / "escaped").exists()
    refuses("SHA-256", _cifar.fetch_version, version._replace(sha256="0" * 64), tmp_path / "bad")
    assert not list((tmp_path / "bad").iterdir())


# LEAF


def write_leaf(folder: Path, parts: dict[str, dict[str, tuple[list[Any], list[Any]]]]) -> None:
    """parts: file below the folder -> user -> x, y."""
    for file, users in parts.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {user: {"x": x, "y": y} for user, (x, y) in users.items()}
        counts = [len(y) for _, y in users.values()]
        path.write_text(json.dumps({"users": list(users), "num_samples": counts, "user_data": data}))


def test_leaf_pictures_stay_bytes_and_users_keep_their_rows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 784))
    x = [(row / 255).tolist() for row in pixels]
    write_leaf(
        tmp_path / "data",
        {
            "train/b.json": {"w1": (x[2:4], [10, 61])},
            "train/a.json": {"w2": (x[:2], [3, 3])},
            "test/a.json": {"w1": (x[4:], [0])},
        },
    )
    conf = yaml.safe_load((CONF / "femnist.yaml").read_text())
    conf.pop("_target_")
    data = leaf.load(**{**conf, "root": str(tmp_path)})
    assert data.train.x.dtype == torch.uint8
    assert (data.train.x.numpy() == pixels[:4].reshape(4, 1, 28, 28)).all()  # a.json before b.json
    assert data.train.y.tolist() == [3, 3, 10, 61]
    assert (data.classes[10], data.classes[61], len(data.classes)) == ("A", "z", 62)
    assert data.users == ("w1", "w2")
    assert data.train.user is not None and data.train.user.tolist() == [1, 1, 0, 0]
    assert data.test.user is not None and data.test.user.tolist() == [0]
    assert torch.allclose(data.preprocess(data.test.x).flatten(), torch.tensor(x[4]))


def test_leaf_numbers_that_are_no_pixels_stay_floats(tmp_path: Path) -> None:
    rows = {"train/a.json": {"u": ([[0.5, -1.25], [0.0, 1.0]], [7, 9])}, "test/a.json": {"v": ([[0.0, 1.0]], [9])}}
    write_leaf(tmp_path, rows)
    data = leaf.load(str(tmp_path))
    assert data.train.x.tolist() == [[0.5, -1.25], [0.0, 1.0]]
    assert data.test.x.tolist() == [[0.0, 1.0]]
    assert (data.train.y.tolist(), data.classes) == ([0, 1], ("7", "9"))


def test_leaf_text_counts_the_next_character(tmp_path: Path) -> None:
    write_leaf(
        tmp_path,
        {"train/a.json": {"ROMEO": (["abc", "bcé"], ["é", "a"])}, "test/a.json": {"JULIET": (["cab"], ["\n"])}},
    )
    data = leaf.load(str(tmp_path))
    assert data.task == "next_token"
    assert data.classes == ("\n", "a", "b", "c", "é")
    assert data.train.x.tolist() == [[1, 2, 3], [2, 3, 4]]
    assert data.train.y.tolist() == [[IGNORED_TARGET] * 2 + [4], [IGNORED_TARGET] * 2 + [1]]
    assert data.test.y.tolist() == [[IGNORED_TARGET] * 2 + [0]]
    assert leaf.load(str(tmp_path), targets="all").train.y.tolist() == [[2, 3, 4], [3, 4, 1]]
    assert data.users == ("JULIET", "ROMEO")


def test_leaf_refuses_broken_files(tmp_path: Path) -> None:
    refuses("run LEAF's preprocess.sh", leaf.load, str(tmp_path))
    good = {"u": ([[0.0, 0.3]], [1]), "w": ([[0.1, 0.3]], [0])}
    file = tmp_path / "train" / "a.json"

    def check(words: str, text: str | None = None, users: Any = None, **keys: Any) -> None:
        write_leaf(tmp_path, {"train/a.json": users or good, "test/a.json": good})
        if text is not None:
            file.write_text(text)
        refuses(words, leaf.load, str(tmp_path), **keys)

    check("a.json is no readable JSON", "{")
    check("not in LEAF's format", "[]")
    check("not in LEAF's format", '{"users": ["u"], "user_data": {}, "num_samples": [1]}')
    check("num_samples", '{"users": ["u"], "user_data": {"u": {"x": [[1]], "y": [1]}}, "num_samples": [2]}')
    check("whole numbers", '{"users": ["u"], "user_data": {"u": {"x": [[1]], "y": [1]}}, "num_samples": ["1"]}')
    check("0 rows", '{"users": [], "user_data": {}, "num_samples": []}')
    check("NaN", '{"users": ["u"], "user_data": {"u": {"x": [[NaN]], "y": [1]}}, "num_samples": [1]}')
    check("different lengths", users={"u": ([[1.0], [1.0, 2.0]], [0, 1])})
    check("beside users with numbers", users={**good, "t": (["abc"], ["d"])})
    check("the one character", users={"t": (["face.jpg"], [1])})
    check("wants 784", shape=[28, 28])
    check("has the label 1, which is none of its 1 classes", classes=["only"])


# npz


def test_npz_with_its_own_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(3, 2, (8, 3))
    np.savez(
        tmp_path / "mine.npz",
        x_train=x[:6],
        y_train=np.array(["b", "a", "c", "a", "b", "c"]),
        x_test=x[6:],
        y_test=np.array(["c", "a"]),
        user_train=np.array([20, 3, 20, 3, 3, 20]),
        time_train=np.array(["2024-01-02", "2024-01-01"] * 3, dtype="datetime64[D]"),
    )
    data = npz.load(str(tmp_path / "mine.npz"))
    assert data.name == "mine"
    assert (data.train.x.numpy() == x[:6].astype(np.float32)).all()
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([1, 0, 2, 0, 1, 2], [2, 0])
    assert data.classes == ("a", "b", "c")
    assert data.train.user is not None and data.test.user is None
    assert [data.users[index] for index in data.train.user] == ["20", "3", "20", "3", "3", "20"]
    assert data.train.time is not None and data.train.time[:2].tolist() == [1704153600.0, 1704067200.0]
    ready = data.preprocess(data.train.x)
    assert torch.allclose(ready.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(ready.std(0, unbiased=False), torch.ones(3), atol=1e-5)


def test_npz_pictures_channels_and_share(tmp_path: Path) -> None:
    x = np.random.default_rng(3).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    y = np.arange(20) % 2 + 5
    path = tmp_path / "p.npz"
    np.savez(path, x=x, y=y)
    refuses("dataset.channels_last=true", npz.load, str(path))
    data = npz.load(str(path), channels_last=True, test_share=0.3, split_seed=4)
    train, test = stratified_split(y, 0.3, 4)
    assert (data.train.x.numpy() == x[train].transpose(0, 3, 1, 2)).all()
    assert (data.test.y.numpy() == y[test] - 5).all()
    expected = (x[train] / 255 - (x[train] / 255).mean((0, 1, 2))) / (x[train] / 255).std((0, 1, 2))
    assert np.allclose(data.preprocess(data.train.x).numpy(), expected.transpose(0, 3, 1, 2), atol=1e-4)


def test_npz_regression_and_text_numbers_sort_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    np.savez(path, x=np.arange(20.0)[:, None], y=np.arange(20) / 4)
    data = npz.load(str(path), task="regression", standardize=False)
    assert (data.train.y.numpy() == data.train.x.numpy()[:, 0] / 4).all()
    assert data.classes == ()
    np.savez(path, x=np.zeros((30, 2)), y=np.array(["10", "9", "2"] * 10))
    assert npz.load(str(path)).classes == ("2", "9", "10")


def test_npz_refuses_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    refuses("there is no file", npz.load, str(path))
    x, y = np.zeros((10, 2)), np.arange(10) % 2

    def check(words: str, load: dict[str, Any] | None = None, **arrays: Any) -> None:
        np.savez(path, **arrays)
        refuses(words, npz.load, str(path), **(load or {}))

    check("which is a pickle and is not opened", x=x, y=np.array([{"a": 1}] * 10))
    check("has no array y", x=x)
    check("has no array x_test", x_train=x, y_train=y)
    check("10 inputs and 9 labels", x=x, y=y[:9])
    check("give one label for every row", x=x, y=np.zeros((10, 2)))
    check("the label 1", x=x, y=np.ones(10, int))
    check("fractions", x=x, y=y / 3)
    check("NaN or Inf", x=np.where(x == 0, np.nan, x), y=y)
    check("not all numbers", {"task": "regression"}, x=x, y=np.array(["a", "b"] * 5))
    check("NaN or infinity", {"task": "regression"}, x=x, y=np.full(10, np.inf))
    check("dataset.task=class", {"task": "class"}, x=x, y=y)
    check("dataset.split=tme", {"split": "tme"}, x=x, y=y)
    check("name the column in dataset.time", {"split": "time"}, x=x, y=y)
    check("one shape and type", x_train=x, y_train=y, x_test=x[:, :1], y_test=y)
    check("give numbers with a row", x=np.array(["a"] * 10), y=y)
    check("150 different values", x=np.zeros((150, 1)), y=np.arange(150))
    path.write_bytes(b"\x80\x04K\x01.")
    refuses("is not a .npz file", npz.load, str(path))
    np.savez(path, x=np.random.default_rng(0).normal(size=(50, 50)), y=np.arange(50) % 2)
    content = bytearray(path.read_bytes())
    content[500] ^= 255
    path.write_bytes(content)
    refuses("is damaged", npz.load, str(path))


# CSV and Parquet

FRAME = pd.DataFrame(
    {
        "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 110.0],
        "town": list("xyzxyzxyzx"),
        "grade": [1, 2, 1, 2, 1, 2, 1, 2, 1, 2],
        "who": ["ann", "bob"] * 5,
        "day": pd.date_range("2024-03-01", periods=10)[::-1].astype(str),
        "income": ["low", "high"] * 5,
    }
)


def write_table(kind: str, path: Path, frame: pd.DataFrame) -> tuple[Callable[..., Any], str]:
    file = path / f"table.{kind}"
    if kind == "csv":
        frame.to_csv(file, index=False)
        return csv.load, str(file)
    frame.to_parquet(file)
    return parquet.load, str(file)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_table_values_categories_users_and_times(kind: str, tmp_path: Path) -> None:
    load, file = write_table(kind, tmp_path, FRAME)
    data = load(file, "income", user="who", time="day", categorical=["grade"], split="time", test_share=0.3)
    train, test = range(3, 10), range(3)  # the days run backwards
    town = [[float(t == c) for c in "xyz"] for t in FRAME["town"]]
    grade = [[float(g == c) for c in (1, 2)] for g in FRAME["grade"]]
    expected = [[FRAME["age"][row], *town[row], *grade[row]] for row in range(10)]
    assert data.train.x.tolist() == [expected[row] for row in train]
    assert data.test.x.tolist() == [expected[row] for row in test]
    assert data.classes == ("high", "low")
    assert data.test.y.tolist() == [1, 0, 1]
    assert data.users == ("ann", "bob")
    assert data.train.user is not None and data.train.user.tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert data.train.time is not None and data.train.time[-1] == pd.Timestamp("2024-03-01").timestamp()
    ready = data.preprocess(data.train.x)
    assert ready[:, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert (ready[:, 1:] == data.train.x[:, 1:]).all()  # one-hot columns stay
    assert data.name == "table"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_agree_with_each_other_and_with_a_test_file(kind: str, tmp_path: Path) -> None:
    load, file = write_table(kind, tmp_path, FRAME)
    other = tmp_path / "test"
    other.mkdir()
    _, test_file = write_table(kind, other, FRAME.iloc[:3].assign(town=["x", "unseen", "z"]))
    data = load(file, "income", features=["town"], test_path=test_file)
    assert len(data.train) == 10
    assert data.test.x.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    halves = load(file, "income", features=["age"], user="who", split="user", test_share=0.5)
    assert len(halves.test) == 5 and halves.test.user is not None and len(set(halves.test.user)) == 1


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_values_are_dealt_with_in_the_open(kind: str, tmp_path: Path) -> None:
    frame = FRAME.copy()
    frame.loc[[1, 4], "age"] = np.nan
    frame.loc[2, "town"] = None
    load, file = write_table(kind, tmp_path, frame)
    keys: dict[str, Any] = {"features": ["age", "town"], "time": "day", "split": "time", "test_share": 0.3}
    refuses("column age", load, file, "income", **keys)
    refuses("misses 2 of 10 values", load, file, "income", **keys)
    filled = load(file, "income", missing="mean", **keys)
    mean = np.mean([50, 70, 80, 90, 100, 110])  # rows 3 to 9 are the older ones, and row 4 has no age
    assert filled.train.x[1, 0].item() == pytest.approx(mean)
    assert filled.test.x[1, 0].item() == pytest.approx(mean)
    towns = frame["town"][3:].value_counts(normalize=True)
    assert filled.test.x[2, 1:].tolist() == pytest.approx([towns[town] for town in "xyz"])
    dropped = load(file, "income", missing="drop", **keys)
    assert len(dropped.train) + len(dropped.test) == 7
    refuses("dataset.missing=zero", load, file, "income", missing="zero", **keys)
    frame.loc[0, "income"] = None
    load, file = write_table(kind, tmp_path, frame)
    refuses("a label, user or time cannot", load, file, "income", missing="mean", **keys)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_refuse_what_makes_no_sense(kind: str, tmp_path: Path) -> None:
    def check(words: str, frame: pd.DataFrame = FRAME, label: str = "income", **keys: Any) -> None:
        load, file = write_table(kind, tmp_path, frame)
        refuses(words, load, file, label, **keys)

    check("dataset.label=incom is no column", label="incom")
    check("did you mean income?", label="incom")
    check("dataset.user=whom", user="whom")
    check("dataset.features=towns", features=["towns"])
    check("names the label", features=["income", "age"])
    check("no column left", FRAME[["income"]])
    check("the label low", FRAME.assign(income="low"))
    check("infinity", FRAME.assign(age=np.inf), features=["age"])
    check("infinity", FRAME.assign(age=1e300), features=["age"])
    check("mixes numbers with text such as '?'", FRAME.assign(age=["1", "2", "?"] * 3 + ["4"]), features=["age"])
    check("different texts", features=["day"], max_categories=5)
    check("neither numbers nor dates", time="town", features=["age"])
    check("has no rows", FRAME.iloc[:0])
    check("misses 10 of 10", FRAME.assign(age=np.nan), features=["age"])
    check("no value in any training row", FRAME.assign(age=np.nan), features=["age"], missing="mean")
    check("there is no ", test_path=str(tmp_path / "nowhere"))


def test_csv_files(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    keys: dict[str, Any] = {"test_share": 0.5}
    path.write_text("\ufeffa;b\n1;0\n?;1\n3;0\n4;1\n", encoding="utf-8")
    refuses("dataset.na_values", csv.load, str(path), "b", separator=";")
    data = csv.load(str(path), "b", separator=";", na_values=["?"], missing="drop", split_seed=1, **keys)
    assert sorted(torch.cat([data.train.x, data.test.x]).flatten().tolist()) == [1, 3, 4]
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(b"a,b\n1,0\n2,1\n3,0\n4,1\n"))
    assert len(csv.load(str(packed), "b", **keys).train) == 2
    packed.write_bytes(packed.read_bytes()[:-12])
    refuses("cannot be read as CSV", csv.load, str(packed), "b")
    for content, words in [
        (b"", "is empty"),
        (b"a,b\n1,2\n1,2,3,4\n", "cannot be read as CSV"),
        (b"a,b\n1,2,3\n4,5,6\n", "cannot be read as CSV"),
        (b"a,a,b\n1,2,0\n", "more than one column named a"),
        (b",a,b\n0,1,0\n", "column 1 of"),
        (b"a,b\n\xff,1\n", "is not UTF-8"),
        (b"a,b\n", "has no rows"),
    ]:
        path.write_bytes(content)
        refuses(words, csv.load, str(path), "b")
    refuses("there is no file", csv.load, str(tmp_path / "no.csv"), "b")


def test_parquet_folder_decimals_lists_and_damage(tmp_path: Path) -> None:
    import decimal

    FRAME.iloc[5:].to_parquet(tmp_path / "b.parquet")
    FRAME.iloc[:5].to_parquet(tmp_path / "a.parquet")
    data = parquet.load(str(tmp_path), "income", features=["age"], time="day", split="time", test_share=0.1)
    assert data.train.x.flatten().tolist() == FRAME["age"][1:].tolist()
    path = tmp_path / "sub.parquet"
    FRAME.assign(age=[decimal.Decimal(n) / 4 for n in range(10)]).to_parquet(path)
    data = parquet.load(str(path), "income", features=["age"], time="day", split="time", test_share=0.1)
    assert data.train.x.flatten().tolist() == [n / 4 for n in range(1, 10)]
    FRAME.assign(age=[[1, 2]] * 10).to_parquet(path)
    refuses("holds lists", parquet.load, str(path), "income")
    FRAME.assign(age=[b"x"] * 10).to_parquet(path)
    refuses("holds bytes", parquet.load, str(path), "income")
    path.write_bytes(path.read_bytes()[:-20])
    refuses("cannot be read as Parquet", parquet.load, str(path), "income")
    refuses("there is no Parquet file", parquet.load, str(tmp_path / "x"), "income")


# Pictures


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def write_pictures(folder: Path, pictures: dict[str, np.ndarray]) -> None:
    for file, array in pictures.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(png(array))


def test_image_folder_bytes_and_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    made = {
        file: rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)
        for file in ["train/dog/b.png", "train/dog/a.PNG", "train/cat/deep/1.png", "test/dog/1.png"]
    }
    write_pictures(tmp_path, made)
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no picture")
    data = image_folder.load(str(tmp_path))
    order = ["train/cat/deep/1.png", "train/dog/a.PNG", "train/dog/b.png"]
    assert (data.train.x.numpy() == np.stack([made[file] for file in order]).transpose(0, 3, 1, 2)).all()
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 1, 1], [1])
    assert (data.classes, data.name) == (("cat", "dog"), tmp_path.name)
    small = image_folder.load(str(tmp_path), size=[3, 2], grayscale=True)
    expected = Image.fromarray(made["test/dog/1.png"]).convert("L").resize((2, 3), Image.Resampling.BILINEAR)
    assert (small.test.x[0, 0].numpy() == np.asarray(expected)).all()


def test_image_folder_share_and_grey_beside_colour(tmp_path: Path) -> None:
    grey = {f"{c}/{n:02}.png": np.full((2, 2), 10 * n + c, np.uint8) for c in (2, 10) for n in range(10)}
    write_pictures(tmp_path, grey)
    data = image_folder.load(str(tmp_path), test_share=0.2)
    assert data.classes == ("2", "10")
    assert data.train.x.shape == (16, 1, 2, 2)
    assert data.test.y.tolist() == [1, 1, 0, 0]  # folder 10 comes before 2, and class 2 before 10
    assert all(
        int(x[0, 0, 0]) % 10 == int(data.classes[y]) % 10 for x, y in zip(data.train.x, data.train.y, strict=True)
    )
    write_pictures(tmp_path, {"2/colour.png": np.zeros((2, 2, 3), np.uint8)})
    assert image_folder.load(str(tmp_path)).train.x.shape[1] == 3


def test_image_folder_refuses_broken_folders(tmp_path: Path) -> None:
    def check(words: str, **keys: Any) -> None:
        refuses(words, image_folder.load, str(tmp_path), **keys)

    refuses("there is no folder", image_folder.load, str(tmp_path / "x"))
    check("has no folder of pictures")
    write_pictures(tmp_path, {"a/1.png": np.zeros((2, 2), np.uint8), "a/2.png": np.zeros((2, 3), np.uint8)})
    check("different sizes")
    check("the label a", size=2, test_share=0.5)
    check("dataset.size=0", size=0)
    check("dataset.size=[1, 2, 3]", size=[1, 2, 3])
    (tmp_path / "b").mkdir()
    check("holds no pictures")
    (tmp_path / "b" / "1.png").write_bytes(png(np.zeros((2, 2), np.uint8))[:40])
    check(f"{tmp_path / 'b' / '1.png'} cannot be read as a picture")
    (tmp_path / "b" / "1.png").write_bytes(png(np.zeros((2, 2), np.uint16)))
    check("more than 8 bits")
    (tmp_path / "train").mkdir()
    check("train/ without its counterpart")


# Hugging Face


def hub_rows(pictures: np.ndarray, labels: list[int]) -> Any:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Picture

    features = Features({"image": Picture(), "label": ClassLabel(names=["x", "y", "z"]), "writer": Value("string")})
    rows = {
        "image": [{"bytes": png(picture), "path": None} for picture in pictures],
        "label": labels,
        "writer": [f"w{row % 2}" for row in range(len(labels))],
    }
    return Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("layout", ["saved", "files", "folders"])
def test_huggingface_pictures(layout: str, tmp_path: Path) -> None:
    from datasets import DatasetDict

    pictures = np.random.default_rng(6).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    splits = {"train": hub_rows(pictures[:5], [2, 0, 1, 1, 0]), "test": hub_rows(pictures[5:], [1, 2])}
    folder = tmp_path / "fetched" / "huggingface" / "me--digits"  # where fetch keeps me/digits
    if layout == "saved":
        DatasetDict(splits).save_to_disk(str(folder))
    for name, rows in splits.items() if layout != "saved" else ():
        file = folder / (f"data/{name}-00000-of-00001.parquet" if layout == "files" else f"default/{name}/0000.parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(file))
    data = huggingface.load("me/digits", "image", user="writer")
    assert data.name == "digits"
    assert (data.train.x.numpy() == pictures[:5, None]).all()
    assert (data.test.x.numpy() == pictures[5:, None]).all()
    assert data.train.y.tolist() == [2, 0, 1, 1, 0]
    assert (data.classes, data.users) == (("x", "y", "z"), ("w0", "w1"))
    assert data.train.user is not None and data.train.user.tolist() == [0, 1, 0, 1, 0]
    assert huggingface.load(str(folder), "image", grayscale=False, size=8).train.x.shape == (5, 3, 8, 8)


def test_huggingface_numbers_vectors_and_a_split_of_ours(tmp_path: Path) -> None:
    from datasets import Dataset

    x = np.random.default_rng(7).normal(size=(10, 3)).astype(np.float32)
    rows = {"v": x.tolist(), "a": list(range(10)), "b": [n / 2 for n in range(10)], "kind": ["p", "q"] * 5}
    rows |= {
        "day": pd.date_range("2024-01-01", periods=10).to_list(),
        "ragged": [[1.0] * (1 + n % 2) for n in range(10)],
    }
    rows |= {"gap": [None, *range(9)], "text": ["so"] * 10}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "rows"))
    keys: dict[str, Any] = {"label": "kind", "test_split": None, "split": "time", "time": "day"}

    def load(column: Any, **more: Any) -> Any:
        return huggingface.load(str(tmp_path / "rows"), column, **{**keys, **more})

    data = load("v")
    assert (data.train.x.numpy() == x[:8]).all()
    assert data.test.time is not None and data.test.time[1] == pd.Timestamp("2024-01-10").timestamp()
    assert data.classes == ("p", "q")
    assert load(["a", "b"]).test.x.tolist() == [[8, 4], [9, 4.5]]
    assert load("a", label="b", task="regression").test.y.tolist() == [4, 4.5]
    refuses("holds no numbers or pictures", load, "text")
    refuses("different lengths", load, "ragged")
    refuses("misses 1 values", load, "gap")
    refuses("did you mean ragged?", load, "raged")
    refuses("dataset.label=kinds", load, "v", label="kinds")
    refuses("has no split test", load, "v", test_split="test")


def test_huggingface_refuses_broken_data(tmp_path: Path) -> None:
    refuses("huggingface.fetch(None, 'no/where', None)", huggingface.load, "no/where", "image")
    folder = tmp_path / "d"
    folder.mkdir()
    refuses("holds no Parquet files", huggingface.load, str(folder), "image")
    (folder / "train.parquet").write_bytes(b"PAR1 no")
    (folder / "test.parquet").write_bytes(b"PAR1 no")
    refuses("cannot be read as Hugging Face data", huggingface.load, str(folder), "image")
    rows = hub_rows(np.zeros((2, 3, 3), np.uint8), [0, 1])
    rows.to_parquet(str(folder / "test.parquet"))
    records = [{"bytes": png(np.zeros((3, 3), np.uint8)), "path": None}, {"bytes": b"not a picture", "path": None}]
    table = rows.to_dict() | {"image": records}
    type(rows).from_dict(table, features=rows.features).to_parquet(str(folder / "train.parquet"))
    refuses("picture 1 of", huggingface.load, str(folder), "image")
    refuses("holds pictures", huggingface.load, str(folder), "label", label="image")


# torchvision, which does not import beside every build of torch: a stand-in with the same attributes


class FakeMNIST:
    classes = ("N/A", "one", "two")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        if not (Path(root) / "MNIST").is_dir():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.data = torch.arange(2 * 4 * 4, dtype=torch.uint8).reshape(2, 4, 4) + (0 if train else 100)
        self.targets = torch.tensor([2, 1])


class FakeCIFAR10:
    def __init__(self, root: str, train: bool, download: bool) -> None:
        self.data = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
        self.targets = [0, 1]


class FakeSVHN:
    def __init__(self, root: str, split: str, download: bool) -> None:
        assert split in ("train", "test")
        self.data = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
        self.labels = np.array([9, 0])


class FakeEMNIST(FakeMNIST):
    def __init__(self, root: str, split: str, train: bool, download: bool) -> None:
        assert split == "letters"
        super().__init__(root, train, download)


def test_torchvision_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("torchvision")
    fake.datasets = types.SimpleNamespace(  # type: ignore[attr-defined]
        MNIST=FakeMNIST, CIFAR10=FakeCIFAR10, SVHN=FakeSVHN, EMNIST=FakeEMNIST
    )
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    refuses("is not whole", torchvision.load, "MNIST", str(tmp_path))
    refuses("dataset.name=MNST", torchvision.load, "MNST", str(tmp_path))
    (tmp_path / "MNIST").mkdir()
    data = torchvision.load("MNIST", str(tmp_path))
    assert data.train.x.flatten().tolist() == list(range(32)) and data.train.x.shape == (2, 1, 4, 4)
    assert (data.train.y.tolist(), data.classes) == ([1, 0], ("one", "two"))  # no picture is of class N/A
    turned = torchvision.load("EMNIST", str(tmp_path), emnist="letters")
    assert (turned.train.x == data.train.x.transpose(2, 3)).all()
    colour = torchvision.load("CIFAR10", str(tmp_path))
    assert colour.train.x[1, 2, 3, 0].item() == ((1 * 4 + 3) * 4 + 0) * 3 + 2
    house = torchvision.load("SVHN", str(tmp_path))
    assert house.train.x.flatten().tolist() == list(range(96))
    assert (house.train.y.tolist(), house.classes) == ([1, 0], ("0", "9"))


def test_torchvision_that_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingPackageError, match="pip install torchvision"):
        torchvision.load("MNIST")


@pytest.mark.network
def test_cifar10_from_the_network(tmp_path: Path) -> None:
    cifar10.fetch(tmp_path)
    data = cifar10.load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert torch.bincount(data.train.y).tolist() == [5_000] * 10
