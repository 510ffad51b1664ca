"""Laws of `fedsim.data.partition`, with flwr-datasets itself as the oracle of the schemes that it has."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import kstest

from fedsim.build_population import columns_of
from fedsim.data import partition as schemes
from fedsim.data.dataset import Dataset, Examples
from fedsim.data.partition import Columns, Partition
from fedsim.rng import SERVER, derive_seed, numpy_generator
from fedsim.types import FedsimError

CONF = Path(__file__).parent.parent / "conf" / "partition"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
USES_ALL_ROWS = {"iid", "quantity", "dirichlet", "inner_dirichlet", "linear", "square", "distribution", "continuous"}


def columns(rows: int = 600, classes: int = 5, users: int = 30, seed: int = 0) -> Columns:
    """Sorted by class, as many sources are, with users spread over them; the label numbers have gaps."""
    random = np.random.default_rng(seed)
    label = np.sort(random.permutation(np.arange(rows) % classes)) * 3 + 1
    return Columns(label, random.permutation(np.arange(rows) % users) + 7, random.normal(size=rows))


def assert_lawful(partition: Partition, rows: int) -> None:
    assert partition.offsets.dtype == partition.rows.dtype == np.int64
    assert partition.offsets[0] == 0 and partition.offsets[-1] == len(partition.rows)
    assert (partition.sizes >= 1).all() and partition.sizes.sum() == len(partition.rows)
    assert len(np.unique(partition.rows)) == len(partition.rows)
    assert partition.rows.min() >= 0 and partition.rows.max() < rows
    for client in range(partition.num_clients):
        assert (np.diff(partition.client(client)) > 0).all()


def options(name: str, data: Columns, clients: int) -> tuple[int | None, dict]:
    if name == "size":
        return clients, {"partition_sizes": [len(data.label) // clients] * clients}
    if name in ("natural", "grouped_natural"):
        return None, {}
    return clients, {}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(clients=st.sampled_from([1, 2, 5]), rows=st.integers(300, 500), classes=st.just(5), seed=st.integers(0, 2**40))
def test_laws(name, clients, rows, classes, seed):
    data = columns(rows, classes)
    clients = 5 if name == "distribution" else clients
    asked, given_options = options(name, data, clients)
    scheme = getattr(schemes, name)
    partition = scheme(data, asked, seed, **given_options)
    assert_lawful(partition, rows)
    assert asked is None or partition.num_clients == asked
    again = scheme(data, asked, seed, **given_options)
    assert all(np.array_equal(a, b) for a, b in zip(partition, again, strict=True))
    if name in USES_ALL_ROWS:
        assert len(partition.rows) == rows


@pytest.mark.parametrize("name", [name for name in NAMES if name != "natural"])
def test_the_seed_matters(name):
    data = columns()
    asked, given_options = options(name, data, 5)
    first, second = (getattr(schemes, name)(data, asked, seed, **given_options) for seed in (0, 1))
    assert not np.array_equal(first.rows, second.rows)


def flower(make, column: np.ndarray, seed: int) -> list[list[int]]:
    """What flwr-datasets gives, from a true Arrow dataset that was shuffled first, as FederatedDataset would."""
    from datasets import Dataset
    from flwr_datasets import partitioner as flwr

    order = numpy_generator(seed, 0, SERVER, "partition/order").permutation(len(column))
    partitioner = make(flwr, derive_seed(seed, 0, SERVER, "partition"))
    partitioner.dataset = Dataset.from_dict({"value": column[order], "row": order})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = [partitioner.load_partition(client) for client in range(partitioner.num_partitions)]
    return [sorted(part["row"]) for part in loaded]


ORACLES = {
    "iid": (10, {}, lambda f, s: f.IidPartitioner(10)),
    "dirichlet": (10, {"alpha": 0.3}, lambda f, s: f.DirichletPartitioner(10, "value", 0.3, 1, seed=s)),
    "dirichlet balanced": (
        6,
        {"alpha": 2, "min_size": 20, "self_balancing": True},
        lambda f, s: f.DirichletPartitioner(6, "value", 2, 20, True, seed=s),
    ),
    "inner_dirichlet": (4, {}, lambda f, s: f.InnerDirichletPartitioner([150] * 4, "value", 0.5, seed=s)),
    "inner_dirichlet sizes": (
        3,
        {"alpha": 2.0, "partition_sizes": [9, 100, 50]},
        lambda f, s: f.InnerDirichletPartitioner([9, 100, 50], "value", 2.0, seed=s),
    ),
    "pathological": (10, {}, lambda f, s: f.PathologicalPartitioner(10, "value", 2, "first-deterministic", seed=s)),
    "pathological random": (
        3,
        {"num_classes_per_partition": 1, "class_assignment_mode": "random"},
        lambda f, s: f.PathologicalPartitioner(3, "value", 1, "random", seed=s),
    ),
    "pathological deterministic": (
        7,
        {"num_classes_per_partition": 3, "class_assignment_mode": "deterministic"},
        lambda f, s: f.PathologicalPartitioner(7, "value", 3, "deterministic", seed=s),
    ),
    "shard": (7, {}, lambda f, s: f.ShardPartitioner(7, "value", 2, seed=s)),
    "shard of a size": (
        7,
        {"num_shards_per_partition": None, "shard_size": 13, "keep_incomplete_shard": True},
        lambda f, s: f.ShardPartitioner(7, "value", None, 13, True, seed=s),
    ),
    "linear": (12, {}, lambda f, s: f.LinearPartitioner(12)),
    "square": (8, {}, lambda f, s: f.SquarePartitioner(8)),
    "exponential": (5, {}, lambda f, s: f.ExponentialPartitioner(5)),
    "size": (None, {"partition_sizes": [50, 1, 200]}, lambda f, s: f.SizePartitioner([50, 1, 200])),
    "distribution": (
        10,
        {"distribution_array": [[1, 2, 3, 4.5]] * 5},
        lambda f, s: f.DistributionPartitioner(np.array([[1, 2, 3, 4.5]] * 5), 10, 2, "value", 5, seed=s),
    ),
    "distribution of counts": (
        5,
        {"distribution_array": [[7], [8], [1], [2], [3]], "num_unique_labels_per_partition": 1, "rescale": False},
        lambda f, s: f.DistributionPartitioner(
            np.array([[7.0], [8.0], [1.0], [2.0], [3.0]]), 5, 1, "value", 5, False, seed=s
        ),
    ),
}


@pytest.mark.parametrize("case", ORACLES)
@pytest.mark.parametrize("seed", [0, 5])
def test_the_same_rows_as_flower_for_the_same_seed(case, seed):
    num_clients, given_options, make = ORACLES[case]
    data = columns()
    partition = getattr(schemes, case.split()[0])(data, num_clients, seed, **given_options)
    # Their inner Dirichlet takes labels for 0, 1, 2 ... whatever they are; ours are 1, 4, 7 ..., so it gets the places.
    column = data.label // 3 if case.startswith("inner") else data.label
    theirs = flower(make, column, seed)
    assert [partition.client(client).tolist() for client in range(partition.num_clients)] == theirs


def same_as_flower(
    name: str, labels: np.ndarray, clients: int | None, seed: int, asked: dict, make, column=None
) -> None:
    """The same rows, or both refuse; a client without rows is a refusal of ours."""
    try:
        theirs = flower(make, labels if column is None else column, seed)
    except (ValueError, ZeroDivisionError):
        theirs = [[]]
    if all(theirs):
        ours = getattr(schemes, name)(Columns(labels), clients, seed, **asked)
        assert [ours.client(client).tolist() for client in range(ours.num_clients)] == theirs
    else:
        with pytest.raises(FedsimError):
            getattr(schemes, name)(Columns(labels), clients, seed, **asked)


drawn_labels = st.builds(
    lambda rows, classes, seed: np.random.default_rng(seed).integers(0, classes, rows) * 2,
    st.integers(2, 400),
    st.integers(1, 10),
    st.integers(0, 99),
)
many_cases = settings(max_examples=40, deadline=None)
many_clients, any_seed = st.integers(1, 40), st.integers(0, 2**40)


@many_cases
@given(drawn_labels, st.floats(0.05, 100), st.integers(1, 5), st.booleans(), many_clients, any_seed)
def test_dirichlet_is_that_of_flower(labels, alpha, least, balanced, clients, seed):
    asked = {"alpha": alpha, "min_size": least, "self_balancing": balanced}
    same_as_flower(
        "dirichlet",
        labels,
        clients,
        seed,
        asked,
        lambda f, s: f.DirichletPartitioner(clients, "value", alpha, least, balanced, seed=s),
    )


@many_cases
@given(drawn_labels, st.floats(0.05, 100), st.lists(st.integers(1, 40), min_size=1, max_size=9), any_seed)
def test_inner_dirichlet_is_that_of_flower(labels, alpha, sizes, seed):
    codes = np.unique(labels, return_inverse=True)[1]
    same_as_flower(
        "inner_dirichlet",
        labels,
        None,
        seed,
        {"alpha": alpha, "partition_sizes": sizes},
        lambda f, s: f.InnerDirichletPartitioner(sizes, "value", alpha, seed=s),
        codes,
    )


@many_cases
@given(
    drawn_labels,
    st.integers(1, 4),
    st.sampled_from(["first-deterministic", "random", "deterministic"]),
    many_clients,
    any_seed,
)
def test_pathological_is_that_of_flower(labels, classes, mode, clients, seed):
    asked = {"num_classes_per_partition": classes, "class_assignment_mode": mode}
    same_as_flower(
        "pathological",
        labels,
        clients,
        seed,
        asked,
        lambda f, s: f.PathologicalPartitioner(clients, "value", classes, mode, seed=s),
    )


@many_cases
@given(
    drawn_labels,
    st.sampled_from([(None, 1), (None, 13), (1, None), (2, None), (3, None), (2, 5)]),
    st.booleans(),
    many_clients,
    any_seed,
)
def test_shards_are_those_of_flower(labels, numbers, incomplete, clients, seed):
    each, rows = numbers
    asked = {"num_shards_per_partition": each, "shard_size": rows, "keep_incomplete_shard": incomplete}
    same_as_flower(
        "shard",
        labels,
        clients,
        seed,
        asked,
        lambda f, s: f.ShardPartitioner(clients, "value", each, rows, incomplete, seed=s),
    )


@many_cases
@given(drawn_labels, st.integers(1, 2), st.integers(0, 3), st.integers(1, 4), st.booleans(), any_seed)
def test_distribution_is_that_of_flower(labels, each, first, many, rescale, seed):
    classes = len(np.unique(labels))
    shares = np.random.default_rng(seed).uniform(0, 9, (classes, each * many))
    clients = many * classes
    asked = {"distribution_array": shares.tolist(), "num_unique_labels_per_partition": each, "rescale": rescale}
    same_as_flower(
        "distribution",
        labels,
        clients,
        seed,
        asked | {"preassigned_num_samples_per_label": first},
        lambda f, s: f.DistributionPartitioner(shares, clients, each, "value", first, rescale, seed=s),
    )


def test_users_are_those_of_flower():
    data = columns()
    ours = schemes.natural(data, None, 3)
    theirs = flower(lambda f, s: f.NaturalIdPartitioner("value"), data.user, 3)
    assert [ours.client(client).tolist() for client in range(ours.num_clients)] == theirs


def test_lines_of_text_lie_with_their_speakers():
    speaker = np.array([2, 0, 2, 5, 0, 2])
    text = torch.zeros(6, 4, dtype=torch.uint8), torch.zeros(6, 4, dtype=torch.int64)
    spoken = Dataset("play", Examples(*text, speaker), Examples(*text), "next_token", ("a",), users=tuple("abcdef"))
    data = columns_of(spoken)
    partition = schemes.natural(data, None, 0)
    assert [partition.client(client).tolist() for client in range(3)] == [[1, 4], [0, 2, 5], [3]]
    assert schemes.grouped_natural(data, None, 0, group_size=2).sizes.sum() == 6
    assert_lawful(schemes.dirichlet(data, 2, 0), 6)  # by speaker, where a line has no class


@pytest.mark.parametrize("mode", ["allow-smaller", "allow-bigger", "drop-reminder"])
@pytest.mark.parametrize("in_order", [False, True])
def test_groups_of_users_are_those_of_flower(mode, in_order):
    data = columns()
    ours = schemes.grouped_natural(data, None, 3, group_size=7, mode=mode, sort_unique_ids=in_order)
    theirs = flower(lambda f, s: f.GroupedNaturalIdPartitioner("value", 7, mode, in_order), data.user, 3)
    assert [ours.client(client).tolist() for client in range(ours.num_clients)] == theirs


def test_continuous_is_that_of_flower():
    data = columns()
    ours = schemes.continuous(data, 6, 3, partition_by="time", strictness=0.7)
    theirs = flower(lambda f, s: f.ContinuousPartitioner(6, "value", 0.7, seed=s), data.time, 3)
    assert [ours.client(client).tolist() for client in range(6)] == theirs


def test_continuous_at_its_ends():
    data = columns()
    strict = schemes.continuous(data, 6, 0, strictness=1)
    spans = [(data.label[strict.client(c)].min(), data.label[strict.client(c)].max()) for c in range(6)]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert not np.array_equal(strict.rows, np.arange(600))  # ties fall by chance, not as the source has them
    loose = schemes.continuous(data, 6, 0, strictness=0)
    assert all(len(np.unique(data.label[loose.client(c)])) == 5 for c in range(6))
    constant = Columns(np.zeros(60, np.int64))
    assert schemes.continuous(constant, 6, 0, strictness=0).sizes.tolist() == [10] * 6


def test_continuous_reads_dates_and_large_times():
    days = np.arange("2013-01-01", "2013-03-02", dtype="datetime64[D]")
    data = Columns(np.zeros(60), None, np.random.default_rng(0).permutation(days))
    seconds = data._replace(time=data.time.astype("datetime64[s]").astype(np.int64))
    by_day, by_second = (schemes.continuous(d, 6, 0, partition_by="time", strictness=0.9) for d in (data, seconds))
    assert np.array_equal(by_day.rows, by_second.rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(40, 300), st.floats(0.05, 100), st.integers(0, 1), st.integers(0, 99))
def test_quantity_gives_each_client_min_size_and_every_row_away(clients, rows, alpha, min_size, seed):
    partition = schemes.quantity(Columns(np.zeros(rows)), clients, seed, alpha=alpha, min_size=max(min_size, 1))
    assert_lawful(partition, rows)
    assert partition.num_clients == clients and len(partition.rows) == rows


def test_quantity_shares_follow_the_dirichlet_law():
    data = Columns(np.zeros(100_000, np.int8))
    shares = [schemes.quantity(data, 4, seed, alpha=0.5).sizes[seed % 4] / 100_000 for seed in range(400)]
    assert kstest(shares, "beta", args=(0.5, 1.5)).pvalue > 1e-6  # a coordinate of Dirichlet(0.5 * 4)


def test_quantity_divides_the_rows_beyond_min_size_as_drawn():
    shares = numpy_generator(7, 0, SERVER, "partition").dirichlet([0.3] * 20)
    sizes = schemes.quantity(Columns(np.zeros(5000)), 20, 7, alpha=0.3, min_size=50).sizes
    assert (np.abs(sizes - (50 + 4000 * shares)) <= 1).all()


def test_one_size_for_all_is_the_list_of_it():
    data = columns()
    one, listed = (schemes.size(data, 50, 3, partition_sizes=sizes) for sizes in (7, [7] * 50))
    assert np.array_equal(one.rows, listed.rows) and np.array_equal(one.offsets, listed.offsets)
    assert one.sizes.tolist() == [7] * 50 and len(one.rows) == 350 < len(data.label)


def test_iid_rows_are_uniform_over_clients():
    held = np.zeros((12, 3))
    for seed in range(3000):
        partition = schemes.iid(Columns(np.zeros(12)), 3, seed)
        held[partition.rows, np.repeat(np.arange(3), partition.sizes)] += 1
    assert (np.abs(held - 1000) < 5.5 * np.sqrt(3000 * 2 / 9)).all()


@pytest.mark.parametrize("scheme", [schemes.natural, schemes.grouped_natural])
def test_fewer_clients_are_a_seeded_choice_of_users(scheme):
    data = columns()
    everyone = scheme(data, None, 0)
    groups = {tuple(everyone.client(client)) for client in range(everyone.num_clients)}
    few = scheme(data, 2, 0)
    assert_lawful(few, 600)
    assert few.num_clients == 2 and {tuple(few.client(client)) for client in range(2)} < groups
    assert np.array_equal(few.rows, scheme(data, 2, 0).rows)


def test_a_choice_of_users_depends_on_the_seed_and_keeps_their_order():
    data = columns()
    chosen = {
        tuple(data.user[part.rows[part.offsets[:-1]]]) for part in (schemes.natural(data, 5, s) for s in range(5))
    }
    assert len(chosen) > 1 and all(list(users) == sorted(set(users)) for users in chosen)


def test_a_million_clients_are_an_index():
    partition = schemes.iid(Columns(np.zeros(2_000_003, np.int8)), 1_000_000, 0)
    assert partition.num_clients == 1_000_000 and partition.sizes.max() == 3
    assert np.shares_memory(partition.client(999_999), partition.rows)
    with pytest.raises(IndexError):
        partition.client(1_000_000)
    with pytest.raises(IndexError):
        partition.client(-1)


REAL = Columns(np.linspace(0, 1, 50))
REFUSED = {
    "iid no number": ("iid", columns(), None, {}, "population.num_clients"),
    "iid none": ("iid", columns(), 0, {}, "population.num_clients=0"),
    "iid half a client": ("iid", columns(), 2.5, {}, "population.num_clients=2.5"),
    "iid more clients than rows": ("iid", columns(), 601, {}, "population.num_clients=601 is more than the 600"),
    "dirichlet more clients": ("dirichlet", columns(), 601, {}, "population.num_clients=601 is more than the 600"),
    "alpha 0": ("dirichlet", columns(), 5, {"alpha": 0}, "partition.alpha=0 "),
    "alpha negative": ("quantity", columns(), 5, {"alpha": -1.0}, "partition.alpha=-1 "),
    "alpha NaN": ("inner_dirichlet", columns(), 5, {"alpha": float("nan")}, "partition.alpha=nan"),
    "alpha a word": ("dirichlet", columns(), 5, {"alpha": "high"}, "partition.alpha=high"),
    "min_size out of reach": (
        "dirichlet",
        columns(),
        100,
        {"alpha": 0.01},
        "raise partition.alpha or lower partition.min_size or population.num_clients",
    ),
    "min_size too many": ("dirichlet", columns(), 7, {"min_size": 100}, "lower partition.min_size"),
    "min_size of quantity": ("quantity", columns(), 7, {"min_size": 100}, "lower partition.min_size"),
    "min_size 0": ("quantity", columns(), 7, {"min_size": 0}, "partition.min_size=0"),
    "classes are exhausted": ("inner_dirichlet", columns(), 5, {"alpha": 1e-9}, "raise partition.alpha"),
    "classes": (
        "pathological",
        columns(),
        5,
        {"num_classes_per_partition": 6},
        "partition.num_classes_per_partition=6",
    ),
    "no classes": ("pathological", columns(), 5, {"num_classes_per_partition": 0}, "num_classes_per_partition=0"),
    "mode": ("pathological", columns(), 5, {"class_assignment_mode": "x"}, "partition.class_assignment_mode=x"),
    "class too small": ("pathological", columns(10), 10, {"num_classes_per_partition": 5}, "population.num_clients"),
    "real labels": ("dirichlet", REAL, 5, {}, "partition=continuous"),
    "real labels too": ("pathological", REAL, 5, {}, "partition=continuous"),
    "shards": ("shard", columns(), 301, {}, "lower partition.num_shards_per_partition"),
    "no shards": ("shard", columns(), 5, {"num_shards_per_partition": None}, "partition.num_shards_per_partition"),
    "shards too large": (
        "shard",
        columns(),
        7,
        {"num_shards_per_partition": None, "shard_size": 100},
        "partition.shard_size",
    ),
    "no users": ("natural", REAL, None, {}, "partition=natural needs natural users"),
    "no users to group": ("grouped_natural", REAL, None, {}, "partition=grouped_natural needs natural users"),
    "more than users": ("natural", columns(), 31, {}, "population.num_clients=31 is more than the 30 users"),
    "more than groups": ("grouped_natural", columns(), 4, {}, "population.num_clients=4 is more than the 3 groups"),
    "group_size": ("grouped_natural", columns(), None, {"group_size": 0}, "partition.group_size=0"),
    "strict groups": (
        "grouped_natural",
        columns(),
        None,
        {"group_size": 7, "mode": "strict"},
        "partition.group_size=7",
    ),
    "group mode": ("grouped_natural", columns(), None, {"mode": "drop"}, "partition.mode=drop"),
    "linear": ("linear", columns(), 200, {}, "lower population.num_clients"),
    "square": ("square", columns(), 100, {}, "lower population.num_clients"),
    "exponential": ("exponential", columns(), 10, {}, "lower population.num_clients"),
    "exponential overflows": ("exponential", columns(2000), 1000, {}, "lower population.num_clients"),
    "no sizes": ("size", columns(), 5, {}, "partition.partition_sizes"),
    "sizes and clients": ("size", columns(), 5, {"partition_sizes": [1, 2]}, "population.num_clients=5"),
    "sizes too large": ("size", columns(), None, {"partition_sizes": [600, 1]}, "sums to 601 of 600"),
    "one size too large": ("size", columns(), 50, {"partition_sizes": 13}, "sums to 650 of 600"),
    "one size and no clients": ("size", columns(), None, {"partition_sizes": 13}, "population.num_clients is null"),
    "a size of 0": ("size", columns(), None, {"partition_sizes": [1, 0]}, "partition.partition_sizes"),
    "a size that is no number": ("size", columns(), None, {"partition_sizes": [True, 5]}, "whole numbers of rows"),
    "sizes within": ("inner_dirichlet", columns(), 5, {"partition_sizes": [1, 2]}, "population.num_clients=5"),
    "multiple": ("distribution", columns(), 7, {}, "population.num_clients=7"),
    "labels each": ("distribution", columns(), 5, {"num_unique_labels_per_partition": 6}, "num_unique_labels_per"),
    "array": ("distribution", columns(), 5, {"distribution_array": [[1.0]] * 5}, "partition.distribution_array"),
    "shares": ("distribution", columns(), 5, {"distribution_array": [[1.0, -1]] * 5}, "partition.distribution_array"),
    "rescale": ("distribution", columns(), 5, {"rescale": False}, "partition.distribution_array"),
    "sigma": ("distribution", columns(), 5, {"sigma": 0}, "partition.sigma=0"),
    "first rows": (
        "distribution",
        columns(),
        5,
        {"preassigned_num_samples_per_label": 100},
        "partition.preassigned_num_samples_per_label",
    ),
    "an empty client": (
        "distribution",
        columns(),
        5,
        {"distribution_array": [[0.5, 0.6]] * 5, "rescale": False},
        "without any",
    ),
    "no time": ("continuous", REAL, 5, {"partition_by": "time"}, "partition.partition_by=label"),
    "column": ("continuous", REAL, 5, {"partition_by": "user"}, "partition.partition_by=user"),
    "strictness": ("continuous", REAL, 5, {"strictness": 1.5}, "partition.strictness=1.5"),
    "constant": ("continuous", Columns(np.ones(50)), 5, {}, "partition.strictness=0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_sentence_that_names_the_key(case):
    name, data, num_clients, given_options, sentence = REFUSED[case]
    with pytest.raises(FedsimError) as error:
        getattr(schemes, name)(data, num_clients, 0, **given_options)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_yaml_has_the_keyword_arguments_and_their_defaults(name):
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    target = config.pop("_target_")
    assert target == f"fedsim.data.partition.{name}" and config.pop("_partial_") is True
    module, function = target.rsplit(".", 1)
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters.values()
    assert config == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert [p.name for p in parameters][:3] == ["columns", "num_clients", "seed"]


def test_every_scheme_has_its_yaml():
    flowers = {"inner_dirichlet", "grouped_natural", "square", "exponential", "size", "distribution", "continuous"}
    assert set(NAMES) == flowers | {"iid", "dirichlet", "pathological", "shard", "natural", "linear", "quantity"}


def test_lists_from_a_configuration_are_taken():
    sizes = OmegaConf.create({"partition_sizes": [3, 4]}).partition_sizes
    assert schemes.size(columns(), None, 0, partition_sizes=sizes).sizes.tolist() == [3, 4]
    array = OmegaConf.create({"array": [[1, 2]] * 5}).array
    assert schemes.distribution(columns(), 5, 0, distribution_array=array).num_clients == 5


def test_no_scheme_imports_flwr_datasets():
    script = (
        "import sys, numpy as np; from fedsim.data.partition import *;"
        "c = Columns(np.arange(40) % 4, np.arange(40), np.arange(40)); sizes = [5, 9];"
        "inner_dirichlet(c, None, 0, alpha=100, partition_sizes=sizes); size(c, None, 0, partition_sizes=sizes);"
        "distribution(c, 4, 0, preassigned_num_samples_per_label=1); grouped_natural(c, None, 0); natural(c, None, 0);"
        "[scheme(c, 4, 0) for scheme in (iid, quantity, dirichlet, pathological, shard, continuous, linear, square, exponential)];"
        "sys.exit(any(m in sys.modules for m in ('datasets', 'flwr_datasets', 'matplotlib', 'pandas', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=CONF.parent.parent).returncode == 0
