"""A private run from its plan to its folder: what is promised, written down, stopped by a budget, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from helpers import config, parts, play, resume, run_into, same_bits, tiny

from fedsim.build import build
from fedsim.experiment import run
from fedsim.types import FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures")

POISSON = ("privacy=user", "sampler=poisson", "sampler.fraction=0.5", "privacy.delta=1e-3")


def pld(z: float, rate: float, rounds: int, delta: float) -> float:
    """Epsilon by a composition of our own."""
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(z)), rounds))
    return float(accountant.get_epsilon(delta))


def ledger(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "privacy.json").read_text())


# The promise


def test_the_run_says_what_it_promised(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny(*POISSON, "privacy.noise_multiplier=2.0", "rounds=4"))
    book = ledger(tmp_path)
    assert book["epsilon"] == summary["epsilon"] == pytest.approx(pld(2.0, 0.5, 4, 1e-3), rel=1e-6)
    assert (summary["delta"], summary["noise_multiplier"]) == (1e-3, 2.0)
    assert book["unit"] == "client" and book["adjacency"] == "add-or-remove-one" and book["sampling"] == "poisson"
    assert book["denominator"] == 4 and book["sensitivity"] == 1.0 and book["rounds"] == book["rounds_planned"] == 4
    assert set(book["epsilon_by"]) == {"pld", "rdp", "prv"} and book["epsilon_by"]["rdp"] >= book["epsilon"]
    assert "dp-accounting" in book["accountant"] and "server" in book["trust"] and "seed" in book["generator"]
    rows = pq.read_table(tmp_path / "rounds.parquet").to_pydict()
    assert np.allclose(rows["epsilon"], [pld(2.0, 0.5, t, 1e-3) for t in (1, 2, 3, 4)], rtol=1e-3)
    clients = pq.read_table(tmp_path / "clients.parquet").to_pydict()
    assert np.allclose(clients["epsilon"], book["epsilon"])  # secret participation: all spend alike


@pytest.mark.parametrize(
    "sampler",
    [("sampler=poisson", "sampler.fraction=0.5"), ("sampler=all",), ("sampler.cohort_size=4", "sampler=fixed")],
)
def test_the_plan_foretells_the_promise_and_epsilon_is_kept(tmp_path: Path, sampler: tuple[str, ...]) -> None:
    overrides = (*sampler, "privacy=user", "privacy.epsilon=3", "privacy.delta=1e-3", "rounds=3")
    plan = run(tiny(*overrides, "dry_run=true"), tmp_path / "plan")
    summary = run_into(tmp_path / "run", tiny(*overrides))
    assert plan["epsilon"] == summary["epsilon"] and 2.97 <= plan["epsilon"] <= 3
    assert plan["noise_multiplier"] == summary["noise_multiplier"] > 0
    assert plan["unit"] == "client" and plan["sampling"] == overrides[0].split("=")[-1].replace("4", "fixed")


def test_sampling_without_amplification_is_allowed_with_a_warning() -> None:
    made = parts(
        "privacy=user", "privacy.noise_multiplier=2", "privacy.delta=1e-3", "sampler=fixed", "sampler.cohort_size=4"
    )
    plan = made.server.protection.plan()
    assert plan["adjacency"] == "replace-one" and "sampler=poisson of the same size would spend" in plan["warnings"][0]
    assert (
        "hides no one"
        in parts("privacy=user", "privacy.noise_multiplier=2", "privacy.delta=1e-3").server.protection.plan()[
            "warnings"
        ][0]
    )
    assert parts(*POISSON, "privacy.noise_multiplier=2").server.protection.plan()["warnings"] == []


def test_no_noise_is_no_promise(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny(*POISSON, "privacy.noise_multiplier=0"))
    assert summary["epsilon"] is None and any("no epsilon" in words for words in ledger(tmp_path)["caveats"])


def test_local_messages_compose_for_each_client(tmp_path: Path) -> None:
    overrides = (
        "privacy=local",
        "privacy.noise_multiplier=4",
        "privacy.delta=1e-3",
        "sampler=fixed",
        "sampler.cohort_size=3",
    )
    run_into(tmp_path, tiny(*overrides, "rounds=4"))
    clients = pq.read_table(tmp_path / "clients.parquet").to_pydict()
    took_part = clients["participations"]
    assert 0 in took_part or min(took_part) < max(took_part)
    for times, epsilon in zip(took_part, clients["epsilon"], strict=True):
        accountant = PLDAccountant()  # one message of sensitivity 2 C, `times` times
        if times:
            accountant.compose(SelfComposedDpEvent(GaussianDpEvent(4 / 2), times))
        assert epsilon == pytest.approx(accountant.get_epsilon(1e-3) if times else 0.0, rel=1e-6)
    assert ledger(tmp_path)["epsilon"] == pytest.approx(max(clients["epsilon"]))


# Limits


def test_a_budget_stops_the_run_before_the_round_that_would_exceed_it(tmp_path: Path) -> None:
    budget = pld(2.0, 0.5, 3, 1e-3) * 1.01
    assert pld(2.0, 0.5, 4, 1e-3) > budget
    summary = run_into(tmp_path, tiny(*POISSON, "privacy.noise_multiplier=2.0", f"privacy.budget={budget}", "rounds=9"))
    assert summary["rounds"] == 3 and summary["epsilon"] <= budget
    assert pq.read_table(tmp_path / "rounds.parquet")["accuracy"].to_pylist()[-1] is not None  # the last one is judged
    grown = resume(tmp_path, rounds=12)
    assert grown["rounds"] == 3 and grown["epsilon"] == summary["epsilon"]


def test_a_budget_for_no_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match=r"does not pay for one round.*privacy.budget"):
        run_into(tmp_path, tiny(*POISSON, "privacy.noise_multiplier=0.5", "privacy.budget=0.01"))
    assert not (tmp_path / "summary.json").exists()


def test_more_rounds_do_not_stretch_an_epsilon(tmp_path: Path) -> None:
    first = run_into(tmp_path, tiny(*POISSON, "privacy.epsilon=2", "rounds=3"))
    grown = resume(tmp_path, rounds=6)
    assert grown["noise_multiplier"] == first["noise_multiplier"] and grown["rounds"] == 3 and grown["epsilon"] <= 2


def test_max_participations_is_enforced(tmp_path: Path) -> None:
    overrides = (
        "privacy=local",
        "privacy.epsilon=5",
        "privacy.delta=1e-3",
        "privacy.max_participations=2",
        "sampler.cohort_size=5",
    )
    run_into(tmp_path, tiny(*overrides, "sampler=fixed", "rounds=5"))
    clients = pq.read_table(tmp_path / "clients.parquet").to_pydict()
    rows = pq.read_table(tmp_path / "rounds.parquet").to_pydict()
    assert max(clients["participations"]) == 2 and sum(rows["cohort_size"]) == 16 and rows["cohort_size"][-1] > 0
    assert max(clients["epsilon"]) <= 5


# Resume


@pytest.mark.parametrize("extra", [(), ("privacy.clipping=adaptive", "privacy.count_noise=1.5", "strategy=fedadam")])
def test_a_resumed_run_has_the_same_bits_and_the_same_ledger(tmp_path: Path, extra: tuple[str, ...]) -> None:
    overrides = (*POISSON, "privacy.noise_multiplier=2", *extra, "checkpoint.every=1")
    whole = run_into(tmp_path / "whole", tiny(*overrides, "rounds=4"))
    run_into(tmp_path / "part", tiny(*overrides, "rounds=2"))
    resumed = resume(tmp_path / "part", rounds=4)
    assert resumed["epsilon"] == whole["epsilon"] and ledger(tmp_path / "part")["rounds"] == 4
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert models[0] == models[1]


@pytest.mark.parametrize(("secure", "counted"), [("false", 4), ("true", 5)])
def test_a_round_done_again_counts_twice_where_its_noise_is_fresh(tmp_path: Path, secure: str, counted: int) -> None:
    overrides = (
        *POISSON,
        "privacy.noise_multiplier=2",
        f"privacy.secure_rng={secure}",
        "checkpoint.every=2",
        "checkpoint.keep=9",
    )
    run_into(tmp_path, tiny(*overrides, "rounds=2"))
    journal = tmp_path / "privacy_journal.jsonl"
    killed_in = {"round": 3, "clients": [1, 2]}
    with journal.open("a") as file:
        file.write(json.dumps(killed_in) + "\n")  # released, and then the machine went down
    resume(tmp_path, rounds=4)
    book = ledger(tmp_path)
    assert book["rounds"] == counted and book["epsilon"] == pytest.approx(pld(2.0, 0.5, counted, 1e-3), rel=1e-6)


def test_releases_are_written_down_before_they_happen(tmp_path: Path) -> None:
    cfg = tiny(*POISSON, "privacy.noise_multiplier=2", "rounds=2")
    made = build(cfg)
    made.server.protection.keep_journal(tmp_path / "journal.jsonl", None)
    seen: list[int] = []
    train = made.server._train

    def spy(*arguments: Any) -> Any:
        seen.append(len((tmp_path / "journal.jsonl").read_text().splitlines()))
        return train(*arguments)

    made.server._train = spy  # type: ignore[method-assign]
    play(made)
    assert seen == [1, 2]


# What is refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("privacy=user",), "privacy.epsilon and privacy.noise_multiplier exclude each other and neither is given"),
        (("privacy=user", "privacy.epsilon=1", "privacy.noise_multiplier=1"), "both are given"),
        (("privacy=user", "privacy.epsilon=1", "privacy.delta=0.2"), "privacy.delta=0.2 is not below 1/8"),
        (("privacy=user", "privacy.epsilon=0"), "privacy.epsilon=0 is out of range"),
        (
            ("privacy=user", "privacy.epsilon=1", "strategy=fedmedian"),
            "strategy=fedmedian needs each client's own update",
        ),
        (("privacy=local", "privacy.epsilon=1", "strategy=qfedavg", "strategy.q=1"), "numbers beside their update"),
        (("privacy=user", "privacy.epsilon=1", "strategy=local_only"), "strategy=local_only"),
        (("privacy=user", "privacy.epsilon=1", "strategy=central"), "hides one client among others"),
        (
            ("privacy=user", "privacy.epsilon=1", "privacy.clipping=adaptive", "privacy.count_noise=0.01"),
            "privacy.count_noise",
        ),
        (
            ("privacy=user", "privacy.epsilon=1", "privacy.bands=3"),
            "privacy.bands means nothing to privacy.mechanism=gaussian",
        ),
        (("privacy=user", "privacy.epsilon=1", "privacy.budget=3"), "a budget already"),
        (("privacy=user", "privacy.epsilon=1", "privacy.clip_norm=0"), "privacy.clip_norm=0 is out of range"),
        (("privacy=user", "privacy.epsilon=1", "privacy.mechanism=laplace"), "privacy.mechanism=laplace is not known"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(FedsimError) as caught:
        parts(*overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_that_mixes_examples_is_refused() -> None:
    with pytest.raises(FedsimError, match=r"privacy=user.*BatchNorm|BatchNorm.*privacy=user"):
        parts(
            "privacy=user",
            "privacy.epsilon=1",
            "privacy.delta=1e-3",
            "model=custom",
            "model._target_=test_privacy_run.Normed",
        )


class Normed(torch.nn.Sequential):
    """A model whose layers mix the examples of a batch."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))


# Plan


def test_the_plan_reads_no_pixel(tmp_path: Path) -> None:
    for privacy in ("user", "local"):
        cfg = config(
            *("dataset=custom", "dataset._target_=test_privacy_run.unread_dataset", "model=linear", "dry_run=true"),
            *(
                "population.num_clients=8",
                "sampler=poisson",
                "sampler.fraction=0.5",
                "device=cpu",
                "partition=dirichlet",
            ),
            *(f"privacy={privacy}", "privacy.epsilon=2", "privacy.delta=1e-3"),
        )
        plan = run(cfg, tmp_path / privacy)
        assert plan["epsilon"] and plan["noise_multiplier"] and plan["unit"] == "client" and plan["accountant"]


def unread_dataset():  # type: ignore[no-untyped-def]
    """Inputs that have a shape and no values: reading one raises."""
    from fedsim.data.dataset import Dataset, Examples

    y = torch.arange(80) % 4
    x = torch.empty(80, 1, 28, 28, dtype=torch.uint8, device="meta")
    return Dataset("unread", Examples(x, y), Examples(x, y), "classification", ("a", "b", "c", "d"), ToFloat())


class ToFloat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def test_a_private_run_is_the_same_twice() -> None:
    first, second = (play(parts(*POISSON, "privacy.noise_multiplier=1")) for _ in range(2))
    assert same_bits(first, second)
