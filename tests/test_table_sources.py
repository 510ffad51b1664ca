"""Flights, films, streams and R's tables: known numbers of the real data, checked against the packages' own readers."""

import os
import pickle
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.dataset import Dataset
from fedsim.data.sources import flights, letters, mnist1d, movielens, river_streams
from fedsim.data.sources._rdata import check_table, tabular
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
