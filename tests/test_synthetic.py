"""Clients that are made when asked for: the paper's law, the same rows in any order, and a million of them for an index."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import config, play, run_into
from scipy import stats

from fedsim.build import build
from fedsim.data.__main__ import main
from fedsim.data.made import MadeExamples
from fedsim.data.population import Population
from fedsim.data.sources import synthetic
from fedsim.plan import make_plan
from fedsim.results.finished import read_run
from fedsim.results.pictures.classes import client_classes
from fedsim.rng import numpy_generator
from fedsim.types import FedsimError

SMALL = (
    *(
        "dataset=synthetic",
        "partition=natural",
        "population.num_clients=null",
        "population.holdout=0.1",
        "model=linear",
    ),
    *("grid=inprocess", "device=cpu", "rounds=2", "sampler.cohort_size=5"),
)


def made(*overrides: str):
    return build(config(*SMALL, *overrides))


def law(seed: int, client: int, alpha: float, beta: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Section 5.1 of the paper in its own words, from the draws that the client has."""
    draw = numpy_generator(seed, 0, client, "synthetic")
    deviations = draw.standard_normal((n, 60))
    u, big_b = alpha * draw.standard_normal(), beta * draw.standard_normal()
    v = np.array([big_b + draw.standard_normal() for _ in range(60)])
    weights_and_b = np.array([[u + draw.standard_normal() for _ in range(10)] for _ in range(61)])
    x = np.float32(np.stack([[v[j] + deviations[i, j] * (j + 1) ** -0.6 for j in range(60)] for i in range(n)]))
    scores = [
        [sum(float(x[i, j]) * weights_and_b[j, c] for j in range(60)) + weights_and_b[60, c] for c in range(10)]
        for i in range(n)
    ]
    softmax = np.exp(scores - np.max(scores, axis=1, keepdims=True))
    return x, softmax.argmax(1)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.5, 2.0)])
def test_a_client_is_the_papers(alpha: float, beta: float) -> None:
    train = synthetic.load(num_clients=9, examples_per_client=7, alpha=alpha, beta=beta, seed=3, test_clients=1).train
    x, y = train.take(np.arange(35, 42))
    expected_x, expected_y = law(3, 5, alpha, beta, 7)
    assert np.allclose(x.numpy(), expected_x, rtol=1e-5, atol=1e-6) and y.tolist() == expected_y.tolist()


def test_inputs_have_the_papers_moments() -> None:
    """Within a client x ~ N(v, diag(j^-1.2)); over clients v_j - B ~ N(0, 1) and B ~ N(0, beta^2): by SciPy's tests."""
    train = synthetic.load(num_clients=400, examples_per_client=50, beta=2.0, test_clients=1).train
    x = train.take(np.arange(len(train)))[0].double().numpy().reshape(400, 50, 60)
    within = (
        (x - x.mean(1, keepdims=True)) * np.arange(1, 61) ** 0.6 * np.sqrt(50 / 49)
    )  # standard normal but for a hair
    chi2 = (within**2).sum((0, 1)) * 49 / 50  # (60,) of 400 * 49 degrees of freedom
    assert (stats.chi2.sf(chi2, 400 * 49) * 60 > 1e-3).all() and (stats.chi2.cdf(chi2, 400 * 49) * 60 > 1e-3).all()
    centres = x.mean(1)  # (400, 60)
    offset = centres.mean(1)
    assert stats.kstest(offset / np.sqrt(4 + 1 / 60 + 1e-3), "norm").pvalue > 1e-3
    assert (
        stats.kstest((centres - offset[:, None])[:, 20:].ravel() / np.sqrt(59 / 60 + 21**-1.2 / 100), "norm").pvalue
        > 1e-4
    )


def test_iid_clients_share_one_model_and_one_law() -> None:
    train = synthetic.load(num_clients=300, examples_per_client=20, iid=True, test_clients=1).train
    x, y = train.take(np.arange(len(train)))
    assert abs(x.mean(0)).max() < 5 / np.sqrt(6000)
    fitted = torch.linalg.lstsq(x.double(), torch.nn.functional.one_hot(y, 10).double()).solution
    strange = synthetic.load(num_clients=300, examples_per_client=20, test_clients=1).train.take(np.arange(6000))
    own, others = ((one.double() @ fitted).argmax(1).eq(two).double().mean() for one, two in ((x, y), strange))
    assert own > 0.5 > 0.3 > others


def test_rows_are_the_same_whatever_the_order_of_asking() -> None:
    train = synthetic.load(num_clients=6, examples_per_client=4, test_clients=1).train
    whole_x, whole_y = train.take(np.arange(24))
    assert torch.equal(train.x, whole_x) and torch.equal(train.y, whole_y)
    draw = np.random.default_rng(0)
    for rows in [
        draw.permutation(24),
        draw.integers(0, 24, 50),
        np.array([3, 1]),
        np.array([5]),
        np.arange(8, 12),
        np.arange(0),
    ]:
        x, y = train.take(rows)
        assert torch.equal(x, whole_x[rows]) and torch.equal(y, whole_y[rows])


def test_clients_do_not_depend_on_how_many_there_are() -> None:
    few, many = (synthetic.load(num_clients=n, test_clients=3) for n in (4, 10**9))
    rows = np.arange(40, 60)
    assert torch.equal(few.train.take(rows)[0], many.train.take(rows)[0])
    assert torch.equal(few.test.x, many.test.x) and len(many.test) == 60
    rest = few.train.x.reshape(4, 20, 60)
    assert not any(torch.equal(one, other) for one in few.test.x.reshape(3, 20, 60) for other in rest)


def test_the_fingerprint_tells_sets_apart_without_their_rows() -> None:
    sets = [{}, {"seed": 1}, {"alpha": 0.5}, {"num_clients": 10**9}, {"test_clients": 2}, {"iid": True}]
    found = [synthetic.load(**{"test_clients": 1, **keys}).fingerprint for keys in sets]
    assert len(set(found)) == len(sets) and found[0] == synthetic.load(test_clients=1, alpha=1).fingerprint


def test_they_travel_as_a_few_hundred_bytes() -> None:
    train = synthetic.load(num_clients=10**6, test_clients=1).train
    rows = np.array([7, 19_999_999])
    assert len(pickle.dumps(train)) < 1000 and torch.equal(copy.deepcopy(train).take(rows)[0], train.take(rows)[0])


@pytest.fixture(scope="module")
def million():
    return made(
        "dataset.num_clients=1000000", "dataset.test_clients=2", "sampler.cohort_size=50", "evaluation.clients=10"
    )


def test_a_million_clients_are_an_index(million, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds make the cohorts' and the judges' rows and nobody else's; the index is 8 bytes a client."""
    population, asked = million.population, []
    assert population.num_clients == 10**6 and isinstance(population.partition.rows, range)
    make = population.dataset.train.make
    monkeypatch.setitem(population.dataset.train.__dict__, "make", lambda user: asked.append(user) or make(user))
    play(million)
    cohorts = [million.server.sampler.cohort(0, round, 10**6) for round in (1, 2)]
    assert len(asked) == 2 * (50 + 10) and set(np.concatenate(cohorts).tolist()) <= set(asked)


def test_a_cohort_costs_the_same_from_any_population(monkeypatch: pytest.MonkeyPatch) -> None:
    """By count: rows that are made for a client that comes again are made again, and nothing is kept of them."""
    parts = made("dataset.num_clients=20", "sampler.cohort_size=20", "population.holdout=0", "evaluation.clients=0")
    asked, train = [], parts.population.dataset.train
    make = train.make
    monkeypatch.setitem(train.__dict__, "make", lambda user: asked.append(user) or make(user))
    play(parts)
    assert sorted(asked) == sorted([*range(20)] * 2)


def test_natural_clients_are_the_generators(million) -> None:
    population = million.population
    for client in (0, 123_456, 999_999):
        trained, held = population.rows(client)
        assert len(trained) == 18 and sorted([*trained, *held]) == list(range(client * 20, client * 20 + 20))
        data = population.training_data(client)
        x, y = synthetic.one_client(0, 1.0, 1.0, False, (20, 60, 10), "synthetic", client)
        assert torch.equal(data.x, x[trained - client * 20]) and torch.equal(data.y, y[trained - client * 20])


def test_fewer_clients_than_users_are_chosen_by_the_seed() -> None:
    parts = made("dataset.num_clients=1000000", "population.num_clients=30", "population.holdout=0")
    rows = [parts.population.rows(client)[0] for client in range(30)]
    users = [int(one[0]) // 20 for one in rows]
    assert all(one.tolist() == list(range(user * 20, user * 20 + 20)) for user, one in zip(users, rows, strict=True))
    assert users == sorted(set(users)) and users[-1] > 10_000
    with pytest.raises(FedsimError, match=r"population\.num_clients=31 is more than the 30 users"):
        made("dataset.num_clients=30", "population.num_clients=31")


@pytest.mark.parametrize("partition", ["dirichlet", "iid", "grouped_natural"])
def test_few_made_rows_can_be_divided_in_any_way(partition: str) -> None:
    parts = made("dataset.num_clients=50", f"partition={partition}", "population.num_clients=5")
    sizes = parts.population.partition.sizes
    counts = parts.population.class_counts
    assert counts is not None and (counts.sum(1) == sizes).all() and len(play(parts)) == 2
    rows = np.asarray(parts.population.partition.client(3))
    labels = parts.population.dataset.train.y.numpy()[rows]
    assert counts[3].tolist() == np.bincount(labels, minlength=10).tolist()


@pytest.mark.parametrize(
    "overrides", [["partition=dirichlet", "population.num_clients=100"], ["corruption=class_imbalance"]]
)
def test_what_needs_all_of_many_rows_is_refused_in_a_sentence(overrides: list[str]) -> None:
    with pytest.raises(FedsimError, match=r"made client by client.*partition=natural") as caught:
        made("dataset.num_clients=1000000", *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["num_clients=0", "examples_per_client=1.5", "alpha=-1", "classes=1", "seed=-1"])
def test_wrong_keys_are_refused_by_name(wrong: str) -> None:
    with pytest.raises(FedsimError, match=f"dataset.{wrong.split('=')[0]}="):
        made(f"dataset.{wrong}")


def test_the_plan_warns_of_asking_everybody_in_every_evaluation(million) -> None:
    million.server.plan = made("dataset.num_clients=5").server.plan
    (warning,) = make_plan(million)["warnings"]
    assert "1,000,000 clients" in warning and "evaluation.clients=1000" in warning and "population.holdout=0" in warning
    assert make_plan(made("dataset.num_clients=5"))["warnings"] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of 150,000 clients, without its pictures."""
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.results.plots.write_plots", lambda run_dir, summary: [])
        patch.setattr("fedsim.results.report.write_report", lambda run_dir, summary: None)
        many = ("dataset.num_clients=150000", "dataset.test_clients=2", "evaluation.clients=7")
        run_into(folder, config(*SMALL, *many, "sampler.cohort_size=30"))
    return folder


def test_lineage_is_true_of_very_many(folder: Path) -> None:
    """Who was asked has its split told; of the others nothing was held out yet, and the rule says what would be."""
    table = pq.read_table(folder / "lineage.parquet").to_pydict()
    clients = pq.read_table(folder / "clients.parquet").to_pydict()
    assert table["client"] == clients["client"] == list(range(150_000))
    asked = [bool(p) or loss is not None for p, loss in zip(clients["participations"], clients["loss"], strict=True)]
    assert 60 <= sum(asked) <= 75 and sum(clients["participations"]) == 60
    population: Population = made("dataset.num_clients=150000", "dataset.test_clients=2").population
    for client in [*np.flatnonzero(asked).tolist(), 0, 1, 65_535, 65_536, 149_999]:
        rows, held = population.rows(client)
        if asked[client]:
            assert table["rows"][client] == rows.tolist() and table["holdout_rows"][client] == held.tolist()
        else:
            assert (
                table["rows"][client] == list(range(client * 20, client * 20 + 20))
                and table["holdout_rows"][client] is None
            )
    metadata = pq.read_schema(folder / "lineage.parquet").metadata
    assert b"seed=0" in metadata[b"holdout"] and metadata[b"fingerprint"].decode() == population.dataset.fingerprint
    assert (folder / "lineage.parquet").stat().st_size < 500_000 and pq.ParquetFile(
        folder / "lineage.parquet"
    ).num_row_groups == 3


def test_classes_of_very_many_are_counted_of_some_and_the_picture_says_so(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    run = read_run(folder, summary)
    assert (
        run.class_counts is not None and run.class_counts.shape == (2000, 10) and (run.class_counts.sum(1) == 20).all()
    )
    counts = pq.read_table(folder / "clients.parquet")["class_counts"].to_pylist()
    client = next(client for client, one in enumerate(counts) if one is not None)
    _, y = synthetic.one_client(0, 1.0, 1.0, False, (20, 60, 10), "synthetic", client)
    assert counts[client] == np.bincount(y.numpy(), minlength=10).tolist()
    figure = client_classes(run)
    assert figure is not None and "2,000 clients drawn by chance from 150,000" in figure.axes[0].get_xlabel()


def test_the_command_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthetic", "num_clients=2000000", "test_clients=3"]) == 0
    shown = capsys.readouterr().out
    assert "40,000,000" in shown and "class 9" not in shown
    assert main(["synthetic", "num_clients=30"]) == 0
    assert "class 9" in capsys.readouterr().out


def test_made_rows_say_what_they_are() -> None:
    train = synthetic.load(num_clients=10**6, test_clients=1).train
    assert isinstance(train, MadeExamples) and "20,000,000 rows" in repr(train) and train.nbytes == 0
