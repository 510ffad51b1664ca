"""What leaves a device under a client-level mechanism, and what a server or a sampler of another kind may do to a promise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg
from helpers import failing, parts, play, resume, run_into, tiny
from test_rounds import GOOD, MODEL, reply
from test_user_privacy import WIDE, is_normal_with, moved
from torch import Tensor, nn

from fedsim import flower
from fedsim.build import build
from fedsim.experiment import run
from fedsim.models.build import moving_arrays
from fedsim.privacy.accounting import GaussianReleases, spend
from fedsim.privacy.clipping import UNCLIPPED
from fedsim.rounds import Outcome, fault
from fedsim.samplers import PoissonSampler
from fedsim.training.arrays import model_arrays
from fedsim.types import FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures")

USER = ("privacy=user", "privacy.noise_multiplier=1", "privacy.delta=1e-3")
LOCAL = ("privacy=local", *USER[1:])


# Arrays


class Odd(nn.Module):
    """A frozen layer, an index, a mask, and two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight
        self.register_buffer("order", torch.arange(6))
        self.register_buffer("mask", torch.tensor([True, False] * 3))
        self.register_buffer("scale", torch.full((6,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(x)[:, self.order] * self.scale
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


ODD = ("model=custom", "model._target_=test_private_clients.Odd")


def test_moving_arrays_are_the_trainable_ones_by_their_first_name() -> None:
    names = moving_arrays(Odd())
    assert names["second.weight"] == "first.weight" == names["first.weight"]
    assert set(names) == {f"{layer}.{kind}" for layer in ("first", "second", "last") for kind in ("weight", "bias")}


@pytest.mark.parametrize("unit", [USER, LOCAL, ("privacy=distributed", *USER[1:])])
def test_what_training_does_not_change_stays_and_shared_weights_stay_one(unit: tuple[str, ...]) -> None:
    made = parts(*unit, *ODD, "rounds=3")
    before = {name: array.clone() for name, array in made.server.state.arrays.items()}
    after = play(made)
    for name in ("frozen.weight", "frozen.bias", "order", "mask", "scale"):
        assert torch.allclose(after[name].double(), before[name].double(), atol=1e-6), (
            name
        )  # a mean of equals is rounded
    assert torch.equal(after["first.weight"], after["second.weight"])
    assert not torch.equal(after["first.weight"], before["first.weight"])


# Failures


def test_a_failing_client_sends_a_message_like_any_other_under_local() -> None:
    made = parts(*LOCAL, WIDE[0], *failing(raising=[2]), "rounds=1")
    sent: list[int] = []
    take = Outcome.take

    def spy(self: Outcome, message, client, refuse=None):  # type: ignore[no-untyped-def]
        if not message.has_error():
            sent.extend(flower.column(flower.record_of(message.content, flower.CLIENTS), "id"))
        take(self, message, client, refuse)

    Outcome.take = spy  # type: ignore[method-assign]
    try:
        play(made)
    finally:
        Outcome.take = take  # type: ignore[method-assign]
    assert sorted(sent) == list(range(8)) and made.server.state.failures == {2: 1}


def test_one_clients_failure_does_not_end_a_run_of_sums() -> None:
    overrides = ("sampler=poisson", "sampler.cohort_size=1", "rounds=25", *failing(raising=[3]))
    made = parts(*USER, *overrides)
    play(made)
    rows = made.server.state.rows
    assert made.server.state.round == 25 and any(row["num_failed"] == row["cohort_size"] == 1 for row in rows)


def test_a_round_of_too_many_dropouts_is_given_up_and_the_next_one_played(tmp_path: Path) -> None:
    overrides = ("privacy=distributed", *USER[1:], "privacy.dropout=0.35", "privacy.dropout_tolerance=0.3", "rounds=12")
    summary = run_into(tmp_path, tiny(*overrides))
    rows = pq.read_table(tmp_path / "rounds.parquet").to_pydict()
    assert summary["rounds"] == 12 and 0 < sum(rows["aggregated"]) < 12
    assert json.loads((tmp_path / "privacy.json").read_text())["rounds_given_up"] == 12 - sum(rows["aggregated"])


# Replies from outside


def test_a_real_node_speaks_for_itself_alone() -> None:
    message = reply(MODEL, GOOD)
    message.content[flower.CLIENTS] = ConfigRecord({"id": [5, 6], flower.NUM_EXAMPLES: [9.0, 9.0]})
    outcome = Outcome()
    outcome.take(message, 3, lambda one: fault(one, MODEL))
    assert set(outcome.metrics) == {3}
    spoilt = reply({name: array * float("nan") for name, array in MODEL.items()}, GOOD)
    spoilt.content[flower.CLIENTS] = ConfigRecord({"id": [5], flower.NUM_EXAMPLES: [9.0]})
    outcome.take(spoilt, 4, lambda one: fault(one, MODEL))
    assert "NaN" in outcome.failed[4]


def test_a_real_nodes_update_beyond_the_norm_is_refused() -> None:
    made = parts(*USER)
    shapes = {name: torch.full(array.shape, 1e6) for name, array in model_arrays(made.model).items()}
    assert "clipping norm" in str(made.server.protection.refusal(shapes))
    assert made.server.protection.refusal({name: array * 0 for name, array in shapes.items()}) is None


# Samplers


class RoundRobin:
    """Two clients after the other: nobody is drawn by chance."""

    kind = "poisson"

    def cohort(self, seed: int, round: int, num_clients: int, eligible: np.ndarray | None = None) -> np.ndarray:
        return np.sort(np.arange(2 * round, 2 * round + 2) % num_clients)

    def expected_size(self, num_clients: int) -> float:
        return 2


def test_a_sampler_of_unknown_law_amplifies_nothing_whatever_it_calls_itself() -> None:
    made = parts(*USER, "sampler._target_=test_private_clients.RoundRobin", "rounds=8")
    plan = made.server.protection.plan()
    assert plan["adjacency"] == "zero-out" and "nothing is known of this sampler" in plan["warnings"][0]
    assert made.server.protection.mechanism.sampling == "none"  # type: ignore[attr-defined]


@pytest.mark.parametrize("secure", [False, True])
def test_secret_noise_means_a_secret_cohort(tmp_path: Path, secure: bool) -> None:
    cfg = tiny(
        *USER, "sampler=poisson", "sampler.fraction=0.5", f"privacy.secure_rng={str(secure).lower()}", "rounds=12"
    )
    made = build(cfg)
    made.server.protection.keep_journal(tmp_path / "journal.jsonl", None)
    play(made)
    drawn = [json.loads(line)["clients"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    guessed = [PoissonSampler(fraction=0.5).cohort(0, round, 8).tolist() for round in range(1, 13)]
    assert (drawn == guessed) is not secure


# Mistakes that tests once did not see


def test_the_count_of_adaptive_clipping_is_noised_as_promised() -> None:
    adaptive = ("privacy.clipping=adaptive", "privacy.count_noise=2.5")
    protection = parts(*USER, *adaptive).server.protection
    zeros = {name: torch.zeros(shape) for name, shape in protection.setting.shapes.items()}  # type: ignore[attr-defined]
    seen = []
    for round in range(1, 2001):
        protection.clip.clip_norm = 1.0  # type: ignore[attr-defined]
        protection.release(zeros | {UNCLIPPED: torch.zeros(1)}, round)
        share = 0.5 - math.log(protection.clip.clip_norm) / 0.2  # type: ignore[attr-defined]
        seen.append((share - 0.5) * 8)
    assert is_normal_with(torch.tensor(seen), 2.5)


def test_a_limit_on_participations_forgoes_amplification() -> None:
    made = parts(*USER, "privacy.max_participations=2", "sampler=poisson", "sampler.fraction=0.25", "rounds=4")
    assert made.server.protection.mechanism == GaussianReleases(1.0, "none", adjacency="zero-out")  # type: ignore[attr-defined]


def test_a_client_leaves_when_its_budget_is_spent(tmp_path: Path) -> None:
    one = spend(GaussianReleases(4.0, "none", adjacency="replace-one"), 2, 1e-3).epsilon
    overrides = ("privacy=local", "privacy.noise_multiplier=4", "privacy.delta=1e-3", f"privacy.budget={one * 1.01}")
    summary = run_into(tmp_path, tiny(*overrides, "rounds=5"))
    clients = pq.read_table(tmp_path / "clients.parquet").to_pydict()
    assert summary["rounds"] == 2 and clients["participations"] == [2] * 8 and max(clients["epsilon"]) <= one * 1.01


@pytest.mark.parametrize("unit", [USER, LOCAL])
def test_a_round_played_again_elsewhere_has_noise_of_its_own(unit: tuple[str, ...]) -> None:
    def play_twice(deterministic: bool) -> list[torch.Tensor]:
        protection = parts(*unit).server.protection
        protection.deterministic = deterministic  # type: ignore[attr-defined]
        shapes = protection.setting.shapes  # type: ignore[attr-defined]
        found = []
        for _ in range(2):
            protection.charge(1, np.arange(8))
            zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}
            noisy = protection.release(zeros, 1) if protection.sums else protection.on_device(zeros, 0, 1, {})
            found.append(torch.cat([array.reshape(-1) for array in noisy.values()]))
        return found

    first, again = play_twice(deterministic=False)
    assert not torch.equal(first, again)
    first, again = play_twice(deterministic=True)
    assert torch.equal(first, again)


# Strategies that ask few


class AsksHalf(FedAvg):
    """Sends to every other client that it is shown."""

    linear = True

    def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
        return list(super().configure_train(server_round, arrays, config, grid))[::2]


class AsksNobody(FedAvg):
    """Sends nothing."""

    def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
        return []


def test_clients_that_a_strategy_does_not_ask_have_not_failed() -> None:
    made = parts("strategy=custom", "strategy._target_=test_private_clients.AsksHalf", "rounds=1")
    play(made)
    assert made.server.state.rows[0]["num_failed"] == 0 and len(made.server.state.participations) == 4


def test_a_strategy_that_asks_nobody_is_told_so() -> None:
    with pytest.raises(FedsimError, match="asked none of the 8 clients"):
        play(parts("strategy=custom", "strategy._target_=test_private_clients.AsksNobody"))


# Budgets by group


def test_a_stricter_group_is_clipped_more_and_spends_less(tmp_path: Path) -> None:
    groups = "privacy.budgets={careful:{share:0.5,epsilon:1},open:{share:0.5,epsilon:4}}"
    overrides = ("privacy=user", groups, "privacy.delta=1e-3", "sampler=poisson", "sampler.fraction=0.5", "rounds=3")
    run_into(tmp_path, tiny(*overrides))
    epsilons = pq.read_table(tmp_path / "clients.parquet")["epsilon"].to_pylist()
    assert sorted(round(epsilon) for epsilon in epsilons) == [1] * 4 + [4] * 4 and max(epsilons) <= 4
    book = json.loads((tmp_path / "privacy.json").read_text())
    assert book["epsilon"] == pytest.approx(max(epsilons)) and set(book["budgets"]) == {"careful", "open"}
    made = parts(*overrides)
    norms = sorted({made.server.protection.clip.norm_for(client) for client in range(8)})  # type: ignore[attr-defined]
    z = {name: group["noise_multiplier"] for name, group in book["budgets"].items()}
    assert norms == pytest.approx([z["open"] / z["careful"], 1.0])


# The run around it


def test_baselines_of_a_private_run_are_not_private(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny(*USER, "baselines=true", "rounds=1"))
    assert set(summary["baselines"]) == {"central", "local_only"}
    assert json.loads((tmp_path / "baselines" / "central" / "privacy.json").read_text())["mechanism"] == "none"
    assert any("baselines/" in words for words in json.loads((tmp_path / "privacy.json").read_text())["caveats"])


def test_a_run_that_its_budget_ends_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_into(tmp_path, tiny("privacy=user", "privacy.epsilon=2", "privacy.delta=1e-3", "rounds=2"))
    resume(tmp_path, rounds=4)
    assert "2 rounds of 4, where its privacy budget or its clients' limits ended it" in capsys.readouterr().out


def test_an_adaptive_run_can_grow(tmp_path: Path) -> None:
    adaptive = (
        "privacy.clipping=adaptive",
        "privacy.count_noise=0.75",
        "privacy.noise_multiplier=null",
        "privacy.epsilon=3",
    )
    first = run_into(tmp_path, tiny(*USER, *adaptive, "rounds=1"))
    assert resume(tmp_path, rounds=6)["noise_multiplier"] == first["noise_multiplier"]


def test_limits_that_the_population_cannot_fill_are_said_in_the_plan() -> None:
    made = parts(*USER, "privacy.max_participations=1", "sampler=fixed", "sampler.cohort_size=2", "rounds=12")
    assert any("fill about 4 of 12 rounds" in words for words in made.server.protection.plan()["warnings"])


def test_noise_begun_on_another_device_is_not_drawn_again() -> None:
    made = parts(*USER, *WIDE, "rounds=1")
    state = made.server.protection.state()
    made.server.protection.load_state(state | {"deterministic": False})
    assert made.server.protection.book.repeats_count  # type: ignore[attr-defined]
    assert is_normal_with(moved(made), 1 / 8)


def test_a_folder_with_a_journal_alone_counts_it(tmp_path: Path) -> None:
    (tmp_path / "privacy_journal.jsonl").write_text('{"round":1,"clients":[1]}\n{"round":2,"clients":[2]}\n')
    run_into(tmp_path, tiny(*USER, "privacy.secure_rng=true", "rounds=2"))
    assert json.loads((tmp_path / "privacy.json").read_text())["rounds"] == 4


def test_a_private_experiment_runs_without_privacy_too(tmp_path: Path) -> None:
    cfg = tiny(
        "privacy=none", "+privacy.epsilon=8", "+privacy.clip_norm=0.15"
    )  # as +experiment=user_dp privacy=none has it
    assert run_into(tmp_path, cfg)["epsilon"] is None


def test_a_wrong_group_is_refused() -> None:
    with pytest.raises(FedsimError, match=r"privacy.budgets says what each group"):
        parts(*USER, "privacy.budgets={a:{share:1,epsilon:1}}")


def test_a_run_without_its_noise_states_no_epsilon_whatever_the_audit_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = ("privacy.mechanism=tree", "privacy.noise_multiplier=9")
    summary = run_into(tmp_path, tiny(*USER, *tree, "audit=canary", "audit.canaries=10", "audit.remove_noise=true"))
    assert summary["epsilon"] is None and summary["noise_removed"] is True
    assert "the noise was removed on purpose" in capsys.readouterr().out


def test_a_run_of_which_every_round_was_given_up_is_no_run(tmp_path: Path) -> None:
    overrides = ("privacy=distributed", *USER[1:], "privacy.dropout=0.6", "rounds=2")
    with pytest.raises(FedsimError, match=r"all 2 rounds were given up.*privacy.dropout"):
        run_into(tmp_path, tiny(*overrides))
    assert not (tmp_path / "summary.json").exists()
    warnings = parts(*overrides).server.protection.plan()["warnings"]
    assert any("privacy.dropout=0.6 is not below privacy.dropout_tolerance" in words for words in warnings)


def test_the_last_round_is_judged_where_limits_end_the_run(tmp_path: Path) -> None:
    overrides = ("privacy.max_participations=1", "evaluation.every=5", "rounds=5")
    summary = run_into(tmp_path, tiny(*LOCAL, *overrides))
    assert summary["rounds"] == 1 and summary["accuracy"] is not None


def test_who_failed_is_not_told_in_a_private_run(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny(*USER, *failing(raising=[5]), "rounds=1"))
    assert summary["failures"]["first_reason"].startswith("a client in round 1")


@pytest.mark.parametrize("unit", [USER, LOCAL, ("privacy=distributed", *USER[1:])])
def test_the_plan_foretells_the_bytes(tmp_path: Path, unit: tuple[str, ...]) -> None:
    plan = run(tiny(*unit, "dry_run=true", "rounds=1"), tmp_path / "plan")
    summary = run_into(tmp_path / "run", tiny(*unit, "rounds=1"))
    assert (plan["bytes_up"], plan["bytes_down"]) == (summary["bytes_up"], summary["bytes_down"])
