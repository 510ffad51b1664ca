"""Clients that are forgotten: bit for bit as if they had never been, or nearly so; and what is said about it."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import parts, resume, run_into, same_bits, tiny
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import nn

from fedsim import unlearn
from fedsim.data.dataset import Dataset, Examples
from fedsim.exclusion import WithoutClients
from fedsim.forgetting import forget
from fedsim.results.membership import loss_attack
from fedsim.results.unlearning import draw, table
from fedsim.samplers import FixedSampler, PoissonSampler
from fedsim.server import Server
from fedsim.training.ascent import Ascent, climb, project, reference_model
from fedsim.training.objectives import classification
from fedsim.types import ClientData, FedsimError

ROUNDS, SEED = 8, 3
SMALL = (f"seed={SEED}", f"rounds={ROUNDS}", "sampler=fixed", "sampler.cohort_size=3", "checkpoint.every=2")
ALL_KEPT, ONE_KEPT = "checkpoint.keep=1000", "checkpoint.keep=1"

pytestmark = pytest.mark.usefixtures("no_pictures", "no_bars")


@pytest.fixture
def no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """As no_pictures, for unlearning's own."""
    monkeypatch.setattr("fedsim.forgetting.report.draw", lambda path, models, title: None)


class Skipping:
    """The oracle's sampler, which owes nothing to fedsim.exclusion: the fixed sampler's cohort with some clients struck out."""

    kind = "fixed"

    def __init__(self, cohort_size: int, skipped: list[int]) -> None:
        self.inner, self.skipped = FixedSampler(cohort_size), skipped

    def cohort(self, seed: int, round: int, num_clients: int, eligible: np.ndarray | None = None) -> np.ndarray:
        drawn = self.inner.cohort(seed, round, num_clients, eligible)
        return np.array([client for client in drawn.tolist() if client not in self.skipped], dtype=np.int64)

    def expected_size(self, num_clients: int) -> float:
        return self.inner.expected_size(num_clients)


def outlier_dataset() -> Dataset:
    """Blobs of six users; the first one's lie elsewhere, and have their labels permuted."""
    draw = np.random.default_rng(5)
    user, y = np.repeat(np.arange(6), 40), draw.integers(0, 3, 240)
    middles = np.eye(3, 8) * 4
    x = middles[y] + draw.normal(0, 0.7, (240, 8))
    x[user == 0, 4:] += 3
    test_y = draw.integers(0, 3, 150)
    test_x = middles[test_y] + draw.normal(0, 0.7, (150, 8))
    y = np.where(user == 0, (y + 1) % 3, y)
    x, test_x = (torch.from_numpy(one.astype(np.float32)) for one in (x, test_x))
    train = Examples(x, torch.from_numpy(y), user=user)
    users = tuple(f"user {number}" for number in range(6))
    return Dataset(
        "outlier", train, Examples(test_x, torch.from_numpy(test_y)), "classification", ("a", "b", "c"), users=users
    )


def noise_dataset() -> Dataset:
    """Labels that nothing in the inputs tells: what a model gets right it has learnt by heart."""
    draw = np.random.default_rng(6)
    x, y = torch.from_numpy(draw.normal(0, 1, (270, 20)).astype(np.float32)), torch.from_numpy(draw.integers(0, 2, 270))
    return Dataset("noise", Examples(x[:150], y[:150]), Examples(x[150:], y[150:]), "classification", ("a", "b"))


def first_rounds() -> dict[int, int]:
    """Each client's first round in SMALL, by the sampler alone."""
    found: dict[int, int] = {}
    for round in range(1, ROUNDS + 1):
        for client in FixedSampler(3).cohort(SEED, round, 8).tolist():
            found.setdefault(client, round)
    return found


def latest() -> tuple[int, int]:
    """The client that came last, and when: the more rounds a checkpoint can spare, the more it must prove."""
    return max(first_rounds().items(), key=lambda item: item[1])


def model_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def request(source: Path, *arguments: str) -> Any:
    return unlearn.parse([str(source), *arguments])


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run for all tests that only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_into(folder, tiny(*SMALL, ALL_KEPT))
    return folder


# Exact


@pytest.mark.parametrize("sampler", [FixedSampler(4), PoissonSampler(fraction=0.5)])
def test_cohorts_are_the_same_less_the_forgotten(sampler: Any) -> None:
    without = WithoutClients(sampler, [2, 7])
    for round in range(1, 30):
        drawn = sampler.cohort(0, round, 9)
        assert without.cohort(0, round, 9).tolist() == [client for client in drawn.tolist() if client not in (2, 7)]
    assert without.expected_size(9) == sampler.expected_size(9) and without.kind == sampler.kind


@pytest.mark.parametrize("client", [2, 7])
def test_the_others_hold_what_they_held(client: int) -> None:
    whole = parts("partition=dirichlet").population
    scheme = (
        "{_target_: fedsim.data.partition.dirichlet, _partial_: true, alpha: 0.5, min_size: 1, self_balancing: false}"
    )
    left = parts(
        *("partition=iid", "partition._target_=fedsim.exclusion.without_clients"),
        *(f"+partition.partition={scheme}", f"+partition.clients=[{client}]"),
    ).population
    assert left.num_clients == whole.num_clients
    for one in range(8):
        rows, held = left.rows(one)
        if one == client:
            assert len(rows) == len(held) == 0
        else:
            assert all(np.array_equal(a, b) for a, b in zip((rows, held), whole.rows(one), strict=True))


@pytest.mark.parametrize(
    "overrides",
    [
        (ALL_KEPT,),
        (ONE_KEPT,),
        (ALL_KEPT, "checkpoint.every=1", "strategy=fedadam", "client.momentum=0.9", "grid.chunk_size=2"),
        (
            *(ALL_KEPT, "checkpoint.every=1", "privacy=user", "privacy.noise_multiplier=2", "privacy.delta=0.01"),
            "privacy.max_participations=3",
        ),
    ],
)
def test_exact_forgetting_gives_the_bits_of_a_run_without_the_client(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    client, first = latest()
    run_into(tmp_path / "run", tiny(*SMALL, *overrides))
    told = forget(request(tmp_path / "run", f"client={client}", "method=exact"))

    expected = tiny(*SMALL, *overrides)
    expected.sampler = {"_target_": "test_unlearning.Skipping", "cohort_size": 3, "skipped": [client]}
    run_into(tmp_path / "oracle", expected)
    assert same_bits(model_of(tmp_path / f"run-without-{client}"), model_of(tmp_path / "oracle"))
    assert not same_bits(model_of(tmp_path / "run"), model_of(tmp_path / "oracle"))

    every = 1 if "checkpoint.every=1" in overrides else 2
    kept = (first - 1) // every * every if ALL_KEPT in overrides else 0
    assert told["exact"]["from_round"] == kept and told["exact"]["rounds_trained"] == ROUNDS - kept
    if kept:
        assert told["exact"]["checkpoint"].endswith(f"round_{kept:06d}") and kept >= 2


def test_what_more_checkpoints_would_have_spared(tmp_path: Path) -> None:
    client, first = latest()
    run_into(tmp_path / "run", tiny(*SMALL, ONE_KEPT))
    made = forget(request(tmp_path / "run", f"client={client}", "method=exact"))["exact"]
    assert made["checkpoint"] is None and made["client_rounds"] == made["client_rounds_from_the_start"]
    # before its first round nobody is missing, so that each round is three clients
    assert made["client_rounds_spared_with_all_checkpoints"] == 3 * ((first - 1) // 2 * 2) > 0
    assert made["client_rounds_spared_with_one_each_round"] == 3 * (first - 1)


def test_a_run_that_goes_on_stays_without_the_client(finished: Path, tmp_path: Path) -> None:
    client, _ = latest()
    out = tmp_path / "out"
    forget(request(finished, f"client={client}", "method=exact", f"out={out}"))
    resume(out, rounds=ROUNDS + 4)
    grown = tiny(*SMALL, ALL_KEPT, f"rounds={ROUNDS + 4}")
    grown.sampler = {"_target_": "test_unlearning.Skipping", "cohort_size": 3, "skipped": [client]}
    run_into(tmp_path / "oracle", grown)
    assert same_bits(model_of(out), model_of(tmp_path / "oracle"))
    row = pq.read_table(out / "clients.parquet").to_pylist()[client]
    assert row["participations"] == row["num_examples"] == 0 and row["accuracy"] is None


def test_several_are_forgotten_at_once_and_one_after_the_other(finished: Path, tmp_path: Path) -> None:
    (early, _), *_, (late, _) = sorted(first_rounds().items(), key=lambda item: item[1])
    both, one, other = (tmp_path / name for name in ("both", "one", "other"))
    forget(request(finished, f"clients={early},{late}", "method=exact", f"out={both}"))
    forget(request(finished, f"client={late}", "method=exact", f"out={one}"))
    forget(request(one, f"client={early}", "method=exact", f"out={other}"))
    assert same_bits(model_of(both), model_of(other))
    assert json.loads((other / "summary.json").read_text())["num_clients"] == 6
    with pytest.raises(FedsimError, match="forgotten before"):
        forget(request(other, f"client={late}", f"out={tmp_path / 'again'}"))


# What is written


def test_the_new_run_says_where_it_comes_from_and_holds_nothing_of_the_client(finished: Path, tmp_path: Path) -> None:
    client, first = latest()
    before, out = contents(finished), tmp_path / "out"
    forget(request(finished, f"client={client}", f"out={out}", "ascent.rounds=2"))
    assert contents(finished) == before, "the old run is left as it is"

    told = json.loads((out / "unlearn.json").read_text())
    lineage = pq.read_table(finished / "lineage.parquet").to_pylist()
    (touched,) = told["touched"]
    drawn = [r for r in range(1, ROUNDS + 1) if client in FixedSampler(3).cohort(SEED, r, 8)]
    assert touched["rounds"] == drawn and drawn[0] == first
    assert touched["rows"] == lineage[client]["rows"] and touched["holdout_rows"] == lineage[client]["holdout_rows"]
    fingerprint = pq.read_schema(finished / "lineage.parquet").metadata[b"fingerprint"].decode()
    assert told["from"]["run"] == str(finished) and told["from"]["dataset"]["fingerprint"] == fingerprint

    for folder, method in ((out, "exact"), (out / "approximate", "approximate")):
        left = pq.read_table(folder / "lineage.parquet")
        assert left.to_pylist() == [row for row in lineage if row["client"] != client]
        assert left.schema.metadata[b"fingerprint"].decode() == fingerprint
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["forgotten"]["clients"] == [client] and summary["forgotten"]["method"] == method
        assert summary["num_clients"] == 7 and "fedsim.unlearn" in summary["command"]
        metadata = safe_open(folder / "model.safetensors", "pt").metadata()
        assert metadata["forgotten_clients"] == str(client) and metadata["from_run"] == str(finished)
    # what was measured before with its held-out rows is not handed on, what was measured since is there
    federated = pq.read_table(out / "rounds.parquet")["federated_loss"].to_pylist()
    kept = told["exact"]["from_round"]
    assert federated[:kept] == [None] * kept and None not in federated[kept:]


def test_the_comparison_is_of_the_models_that_are_there(finished: Path, tmp_path: Path) -> None:
    client, _ = latest()
    out = tmp_path / "out"
    models = forget(request(finished, f"client={client}", f"out={out}"))["models"]
    assert list(models) == ["original", "exact", "approximate"]
    for name, folder in (("original", finished), ("exact", out), ("approximate", out / "approximate")):
        assert models[name]["accuracy"] == json.loads((folder / "summary.json").read_text())["accuracy"]
    held = parts(*SMALL).population.training_data(client)
    module = nn.Linear(6, 3)
    weights = {name.split(".")[-1]: array for name, array in model_of(out).items()}
    module.load_state_dict(weights)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(module(held.x), held.y)
    assert models["exact"]["forgotten_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert models["exact"]["distance_from_exact"] == 0 < models["approximate"]["distance_from_exact"]


@pytest.mark.parametrize("labels", [True, False])
def test_the_table_and_the_picture_show_every_model(tmp_path: Path, labels: bool) -> None:
    models = {
        name: {
            "accuracy": 0.9 if labels else None,
            "forgotten_accuracy": share if labels else None,
            "loss": 0.3,
            "forgotten_loss": None,
            "distance_from_exact": 1.5,
            "client_rounds": 1234,
            "seconds": 5.0,
            "membership": loss_attack(np.array([0.1, 0.2, 0.5]), np.array([0.3, 0.4]))._asdict(),
        }
        for name, share in (("original", 0.875), ("exact", 0.5))
    }
    draw(tmp_path / "plots" / "unlearning.png", models, "Forgetting client 1")
    assert (tmp_path / "plots" / "unlearning.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(models, 40))
    shown = console.export_text()
    assert ("87.5%" in shown) == labels and "1,234" in shown and "0.667" in shown and "40 examples" in shown


# Approximate


def test_ascent_unlearns_an_outlier_and_keeps_what_the_others_taught(tmp_path: Path) -> None:
    cfg = tiny(
        *("dataset._target_=test_unlearning.outlier_dataset", "partition=natural", "population.num_clients=null"),
        *("model=mlp", "rounds=20", "client.epochs=2", "population.holdout=0"),
    )
    run_into(tmp_path / "run", cfg)
    models = forget(request(tmp_path / "run", "client=0"))["models"]
    original, exact, approximate = (models[name] for name in ("original", "exact", "approximate"))
    assert original["forgotten_accuracy"] > 0.9 and exact["forgotten_accuracy"] < 0.4
    assert approximate["forgotten_accuracy"] < original["forgotten_accuracy"] - 0.3
    assert approximate["accuracy"] > original["accuracy"] - 0.05
    assert approximate["client_rounds"] < exact["client_rounds"] / 2


def test_an_attack_tells_members_before_and_not_after(tmp_path: Path) -> None:
    cfg = tiny(
        *("dataset._target_=test_unlearning.noise_dataset", "population.num_clients=3", "population.holdout=0"),
        *("model=mlp", "rounds=25", "client.epochs=10"),
    )
    run_into(tmp_path / "run", cfg)
    models = forget(request(tmp_path / "run", "client=1", "method=exact"))["models"]
    before, after = (models[name]["membership"] for name in ("original", "exact"))
    assert before["low"] > 0.65 and after["low"] < 0.5 < after["high"]
    assert (before["members"], before["others"]) == (50, 120)


def test_the_reference_is_the_mean_of_the_others_models() -> None:
    model = nn.Linear(2, 3)
    draw = torch.Generator().manual_seed(0)
    locals_ = [{n: torch.randn(p.shape, generator=draw) for n, p in model.named_parameters()} for _ in range(4)]
    shares = [0.1, 0.2, 0.3, 0.4]
    mean = {name: sum(s * one[name] for s, one in zip(shares, locals_, strict=True)) for name in locals_[0]}
    found = reference_model(model, mean, list(zip(shares, locals_, strict=True))[:2])
    for name, array in found.items():
        expected = (0.3 * locals_[2][name] + 0.4 * locals_[3][name]) / 0.7
        assert torch.allclose(array, expected, atol=1e-6)


def test_projection_goes_to_the_nearest_point_of_the_ball() -> None:
    centre = [torch.tensor([1.0, 1.0]), torch.tensor([1.0])]
    inside, outside = [torch.tensor([1.5, 1.0]), torch.tensor([1.0])], [torch.tensor([4.0, 1.0]), torch.tensor([5.0])]
    project(inside, centre, 1.0)
    project(outside, centre, 1.0)
    assert inside[0].tolist() == [1.5, 1.0]
    assert torch.allclose(torch.cat(outside), torch.tensor([1.6, 1.0, 1.8]))


def test_ascent_climbs_within_the_ball_and_leaves_running_statistics_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    data = ClientData(0, torch.randn(30, 4), torch.randint(0, 3, (30,)))
    start = {name: array.clone() for name, array in model.state_dict().items()}
    settings = Ascent(max_steps=40, lr=0.1, stop_loss=1e6)
    found = climb(model, classification, "classification", data, start, 0.5, settings, torch.Generator())
    assert found.steps == 40 and not found.stopped
    assert found.from_reference == pytest.approx(0.5, abs=1e-3)  # the ball's edge
    statistics = [name for name in start if name not in dict(model.named_parameters())]
    assert len(statistics) == 3 and all(torch.equal(found.arrays[name], start[name]) for name in statistics)
    model.eval()
    climbed = classification(model(data.x), data.y)
    model.load_state_dict(start)
    assert climbed > classification(model(data.x), data.y)


def test_ascent_stops_where_the_model_is_no_better_than_guessing() -> None:
    model = nn.Linear(4, 3)
    data = ClientData(0, torch.randn(30, 4), torch.zeros(30, dtype=torch.int64))
    start = {"weight": torch.zeros(3, 4), "bias": torch.tensor([0.0, 5.0, 0.0])}  # it is always wrong already
    found = climb(model, classification, "classification", data, start, 9.0, Ascent(), torch.Generator())
    assert found.stopped and found.steps == 0


@pytest.mark.parametrize("tied", [False, True])
def test_the_attacks_auc_is_scikit_learns(tied: bool) -> None:
    draw = np.random.default_rng(0)
    members, others = draw.gamma(2, 1.0, 60), draw.gamma(2, 1.4, 90)
    if tied:
        members, others = members.round(), others.round()
    found = loss_attack(members, others)
    truth = np.r_[np.ones(60), np.zeros(90)]
    assert found.auc == pytest.approx(roc_auc_score(truth, -np.r_[members, others]))
    resampled = [roc_auc_score(truth, -np.r_[draw.choice(members, 60), draw.choice(others, 90)]) for _ in range(400)]
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.std(resampled), rel=0.25)


def test_a_loss_that_is_not_finite_is_the_largest() -> None:
    assert loss_attack(np.array([np.nan, np.inf]), np.array([0.1, 5.0])).auc == 0


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no client is named"),
        (("client=8",), "is not in"),
        (("client=-1",), "not the number of a client"),
        (("client=two",), "not the number of a client"),
        (("clients=0,1,2,3,4,5,6,7",), "leaves no one to train"),
        (("client=1", "method=magic"), "choose from both, exact, approximate"),
        (("client=1", "clent=2"), "did you mean client?"),
        (("client=1", "client=2"), "given twice"),
        (("client=1", "ascent.lr=fast"), "not a number"),
        (("client=1", "ascent.lr=-1"), "ascent.lr"),
        (("client=1", "out="), "out= is empty"),
        (("client=1", "more"), "name one folder"),
        (("client=1", "method=approximate", "ascent.lr=1e38", "ascent.stop_loss=1e38"), "lower ascent.lr"),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    before = sorted(finished.parent.iterdir())
    with pytest.raises(SystemExit) as stopped:
        unlearn.main([str(finished), *arguments])
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and words in said and said.startswith("fedsim: ") and said.count("\n") == 1
    assert sorted(finished.parent.iterdir()) == before


def test_folders_that_hold_no_finished_run_are_refused(finished: Path, tmp_path: Path) -> None:
    client, _ = latest()
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    (tmp_path / "stopped" / "checkpoints" / "round_000001").mkdir(parents=True)
    for name, words in (
        ("absent", "is not there"),
        ("empty", "not a finished run"),
        ("sweep", "name one of its runs"),
        ("stopped", "finish it first"),
    ):
        with pytest.raises(FedsimError, match=words):
            forget(request(tmp_path / name, f"client={client}"))
    with pytest.raises(FedsimError, match="is there already"):
        forget(request(finished, f"client={client}", f"out={tmp_path / 'empty'}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "stopped", "sweep"]


def test_a_client_that_never_took_part_leaves_nothing_to_do(tmp_path: Path) -> None:
    run_into(tmp_path / "run", tiny(*SMALL, "rounds=1"))
    drawn = FixedSampler(3).cohort(SEED, 1, 8).tolist()
    absent = next(client for client in range(8) if client not in drawn)
    with pytest.raises(FedsimError, match="never took part"):
        forget(request(tmp_path / "run", f"client={absent}"))


@pytest.mark.parametrize("strategy", ["central", "local_only"])
def test_a_run_without_a_shared_model_is_refused(tmp_path: Path, strategy: str) -> None:
    run_into(tmp_path / "run", tiny(f"strategy={strategy}", "rounds=1"))
    with pytest.raises(FedsimError, match="no federated model"):
        forget(request(tmp_path / "run", "client=0"))


def test_ascent_in_clear_is_refused_where_privacy_was_promised(tmp_path: Path) -> None:
    run_into(tmp_path / "run", tiny("rounds=1", "privacy=user", "privacy.noise_multiplier=1", "privacy.delta=0.01"))
    with pytest.raises(FedsimError, match="use method=exact"):
        forget(request(tmp_path / "run", "client=0", "method=approximate"))
    told = forget(request(tmp_path / "run", "client=0"))
    assert list(told["models"]) == ["original", "exact"] and len(told["caveats"]) == 3
    epsilon = pq.read_table(tmp_path / "run" / "clients.parquet")["epsilon"][0].as_py()
    assert told["touched"][0]["epsilon"] == epsilon > 0


def test_a_table_that_does_not_fit_its_configuration_is_refused(tmp_path: Path) -> None:
    run_into(tmp_path / "run", tiny(*SMALL))
    path = tmp_path / "run" / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace(f"seed: {SEED}", "seed: 4"))
    with pytest.raises(FedsimError, match="use the fedsim that made the run"):
        forget(request(tmp_path / "run", "client=0"))


def test_ctrl_c_leaves_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client, _ = latest()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "play_round", interrupt)
    with pytest.raises(SystemExit) as stopped:
        unlearn.main([str(finished), f"client={client}", f"out={tmp_path / 'deep' / 'out'}"])
    assert stopped.value.code == 130 and "nothing was kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
