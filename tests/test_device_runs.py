"""Whole runs on devices that take time: what the clock changes of the learning, and what it must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import parts, play, resume, run_into, tiny
from scipy.optimize import brentq
from scipy.stats import norm
from test_resume import disturb, model_of

from fedsim import flower
from fedsim.fleet.trips import USED
from fedsim.merging import merged
from fedsim.rounds import Outcome
from fedsim.server import Server
from fedsim.types import FedsimError, Params

pytestmark = pytest.mark.usefixtures("no_pictures")

SLOW, FAST = 0.01, 1.0


def devices(path: Path, *gflops: float) -> str:
    """A table of clients whose network takes no time to speak of."""
    table = pd.DataFrame({"client": range(len(gflops)), "gflops": gflops})
    table.assign(memory_mb=1000, down_mbps=1e6, up_mbps=1e6, compute_watts=2.0).to_csv(path, index=False)
    return f"fleet.path={path}"


def of_runs(folder: Path, *overrides: str) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    summary = run_into(folder, tiny(*overrides))
    return summary, pd.read_parquet(folder / "rounds.parquet"), pd.read_parquet(folder / "dispatches.parquet")


def same(ours: Params, others: Params) -> bool:
    return all(torch.equal(array, others[name]) for name, array in ours.items())


def test_a_device_a_hundred_times_slower_changes_no_learning_result(tmp_path: Path) -> None:
    ideal = play(parts("rounds=3"))
    even = parts("rounds=3", "fleet=table", devices(tmp_path / "a.csv", *[FAST] * 8))
    uneven = parts("rounds=3", "fleet=table", devices(tmp_path / "b.csv", *[FAST] * 7, SLOW))
    assert same(play(even), ideal)
    assert same(play(uneven), ideal)
    assert uneven.server.field.now == pytest.approx(100 * even.server.field.now, rel=0.05)


def test_seconds_and_joules_follow_from_counted_work(tmp_path: Path) -> None:
    """15 rows, of which one is held out, of 6 features in 3 classes: a step of a linear model is small arithmetic."""
    summary, rounds, trips = of_runs(
        tmp_path / "run",
        "fleet=table",
        devices(tmp_path / "a.csv", *[1e-6] * 8),
        "population.holdout=0",
        "client.batch_size=15",
    )
    sizes = 120 / 8
    # forward 2 x 6 x 3; backward the weights' gradient alone, since the input needs none; then lr times the gradient, and minus
    flops = sizes * (36 + 36) + 2 * 21
    computing = (trips["trained"] - trips["received"]).to_numpy()
    assert computing == pytest.approx(flops / 1e3, rel=1e-6)
    assert trips["joules_compute"].to_numpy() == pytest.approx(2.0 * computing)
    assert summary["simulated_seconds"] == pytest.approx(trips["ended"].max())
    assert summary["joules"] == pytest.approx(rounds["joules"].sum())
    assert summary["grams_co2"] == pytest.approx(summary["joules"] / 3.6e6 * 473)
    assert summary["bytes_up"] == trips["bytes_up"].sum()


def test_what_is_late_is_dropped_from_the_mean_and_counted(tmp_path: Path) -> None:
    table = devices(tmp_path / "a.csv", *[FAST] * 6, SLOW, SLOW)
    fast = play(parts("fleet=table", table, "rounds=1"))
    summary, rounds, trips = of_runs(tmp_path / "run", "fleet=table", table, "schedule.deadline=1e-5", "rounds=1")
    assert rounds["num_dropped"].tolist() == [2]
    assert summary["fleet"]["dropouts"]["late"] == 2
    assert set(trips.query("outcome == 'late'")["client"]) == {6, 7}
    made = parts("fleet=table", table, "schedule.deadline=1e-5", "rounds=1")
    six = play(made)
    assert not same(six, fast)
    assert sorted(made.server.state.participations) == [0, 1, 2, 3, 4, 5]
    clients = pd.read_parquet(tmp_path / "run" / "clients.parquet")
    assert clients["dropouts"].tolist() == [0] * 6 + [1, 1]
    assert clients["device"].tolist() == ["device"] * 8


def test_fedbuff_moves_by_the_stale_mean_worked_out_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round of a buffer of three, of which one update is of the first model: from the clients' own updates."""
    table = devices(tmp_path / "a.csv", *[FAST] * 2, 0.6, *[SLOW] * 5)
    chosen = (
        *("fleet=table", table, "schedule=fedbuff", "schedule.buffer=2", "sampler=fixed", "sampler.cohort_size=3"),
        *("client.batch_size=null", "evaluation.every=9", "rounds=6"),
    )
    made = parts(*chosen)
    seen: list[tuple[list[tuple[int, int]], dict[int, Params], Params, Params]] = []
    honest = Server._aggregate

    def spy(server: Server, round: int, outcome: Outcome) -> Params:
        versions = {version: dict(arrays) for version, arrays in server.state.versions.items()}
        after = honest(server, round, outcome)
        seen.append((sorted(outcome.versions.items()), versions, server.state.arrays, after))
        return after

    monkeypatch.setattr(Server, "_aggregate", spy)
    play(made)
    mixed = [round for round in seen if len({version for _, version in round[0]}) == 2]
    assert mixed
    for trained, versions, before, after in seen:
        number = next(n for n, one in enumerate(seen) if one[2] is before)
        moved = {name: torch.zeros_like(array, dtype=torch.float64) for name, array in before.items()}
        total = 0
        for client, version in trained:
            (update,) = made.trainer.train(
                versions[version], [client], made.population.training_data, lambda client: {}, version + 1
            )
            scale = (1 + number - version) ** -0.5
            total += update.num_examples
            for name, array in update.arrays.items():
                moved[name] += update.num_examples * scale * (array.double() - versions[version][name].double())
        for name, array in after.items():
            expected = before[name].double() + moved[name] / total
            assert torch.allclose(array.double(), expected, atol=1e-6)


def test_fedasync_mixes_models(tmp_path: Path) -> None:
    flower.enter_runtime()
    own = {"w": torch.tensor([1.0, 2.0])}
    reply = _reply({"w": torch.tensor([3.0, 6.0])}, 5.0)
    found = merged(own, [(reply, 0)], lambda version: own, lambda version: 0.25, "num-examples")
    assert found["w"].tolist() == [1.5, 3.0]  # 0.75 x + 0.25 x_new


def _reply(arrays: Params, examples: float) -> Any:
    from flwr.app import Message, MessageType, MetricRecord, RecordDict

    asked = Message(RecordDict(), 7, MessageType.TRAIN)
    flower.stamp(asked, 1)
    content = {"arrays": flower.to_record(arrays), "metrics": MetricRecord({"num-examples": examples})}
    return Message(RecordDict(content), reply_to=asked)


BUFFERED = (
    *("fleet=phones", "fleet.kinds.entry.failures_per_hour=20000", "schedule=fedbuff", "schedule.buffer=3"),
    *("sampler=fixed", "sampler.cohort_size=5", "population.num_clients=12", "rounds=8", "compression=sign"),
    *("fleet.kinds.mid.share=0.1", "availability=markov"),
)


def test_an_asynchronous_run_has_the_same_bits_on_every_grid(tmp_path: Path) -> None:
    here = run_into(tmp_path / "a", tiny(*BUFFERED))
    there = run_into(tmp_path / "b", tiny(*BUFFERED, "grid=processes", "grid.workers=2"))
    assert model_of(tmp_path / "a") == model_of(tmp_path / "b")
    assert pd.read_parquet(tmp_path / "a" / "dispatches.parquet").equals(
        pd.read_parquet(tmp_path / "b" / "dispatches.parquet")
    )
    assert here["simulated_seconds"] == there["simulated_seconds"]


def test_an_asynchronous_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = run_into(tmp_path / "a", tiny(*BUFFERED))
    run_into(tmp_path / "b", tiny(*BUFFERED, "rounds=3"))
    again = resume(tmp_path / "b", rounds=8)
    assert model_of(tmp_path / "a") == model_of(tmp_path / "b")
    for name in ("simulated_seconds", "joules", "bytes_up", "fleet"):
        assert again[name] == whole[name]
    ours, others = (pd.read_parquet(tmp_path / run / "dispatches.parquet") for run in "ab")
    assert ours.equals(others)


@pytest.mark.parametrize("stragglers", ["drop", "use"])
def test_stragglers_go_on_after_a_resume(stragglers: str, tmp_path: Path) -> None:
    chosen = (
        *("fleet=table", devices(tmp_path / "a.csv", *[FAST] * 5, *[0.1] * 3)),
        *("schedule.deadline=4e-6", f"schedule.stragglers={stragglers}", "rounds=9"),
    )
    run_into(tmp_path / "a", tiny(*chosen))
    run_into(tmp_path / "b", tiny(*chosen, "rounds=4"))
    resume(tmp_path / "b", rounds=9)
    assert model_of(tmp_path / "a") == model_of(tmp_path / "b")
    rounds = pd.read_parquet(tmp_path / "a" / "rounds.parquet")
    assert (rounds["mean_staleness"].max() > 0) == (stragglers == "use")


PRIVATE = (
    *("privacy=user", "privacy.noise_multiplier=1.0", "privacy.delta=1e-2", "sampler=poisson", "sampler.fraction=0.5"),
    *("population.num_clients=12", "rounds=6"),
)
LOSSY = (
    *("fleet=phones", "fleet.kinds.mid.failures_per_hour=60000", "availability=independent", "schedule.deadline=0.1"),
)


def test_user_level_privacy_keeps_its_promise_under_dropouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger states what the same run without devices states, and the noise is the same however few answer."""
    noise: dict[str, list[float]] = {}

    def play_with(name: str, *overrides: str) -> tuple[dict[str, Any], list[int]]:
        made = parts(*PRIVATE, *overrides)
        mechanism, drawn = made.server.protection, noise.setdefault(name, [])
        honest = mechanism.release

        def spy(total: Params, round: int) -> Params:
            mean = honest(total, round)
            drawn.append(sum(float((a.double() * mechanism.denominator - total[n]).sum()) for n, a in mean.items()))
            return mean

        monkeypatch.setattr(mechanism, "release", spy)
        play(made)
        return mechanism.ledger(), [row["num_dropped"] for row in made.server.state.rows]

    plain, _ = play_with("plain")
    lossy, dropped = play_with("lossy", *LOSSY)
    assert sum(dropped) > 5
    for key in ("epsilon", "delta", "noise_multiplier", "denominator", "sampling_rate", "adjacency", "sampling"):
        assert lossy[key] == plain[key]
    assert noise["lossy"] == pytest.approx(noise["plain"], abs=1e-5)  # one noise a round, over the same denominator


def test_who_was_drawn_is_charged_there_or_not(tmp_path: Path) -> None:
    made, plain = parts(*PRIVATE, *LOSSY), parts(*PRIVATE)
    play(made)
    play(plain)
    assert made.server.protection.state()["ledger"] == plain.server.protection.state()["ledger"]
    drawn = sum(made.server.state.participations.values()), sum(plain.server.state.participations.values())
    assert drawn[0] < drawn[1]


def gaussian(participations: int, delta: float) -> float:
    """Epsilon of so many Gaussian releases of noise multiplier 1 (Balle and Wang 2018, arXiv 1805.06083, theorem 8)."""
    mu = participations**0.5

    def excess(epsilon: float) -> float:
        return norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize(
    ("schedule", "amplified"),
    [
        (("schedule.over_selection=1.3", "sampler=poisson", "sampler.fraction=0.5"), False),
        (("schedule.wait_for=3", "sampler=poisson", "sampler.fraction=0.5"), False),
        (("schedule=fedbuff", "schedule.buffer=3", "sampler=fixed", "sampler.cohort_size=5"), False),
        (("schedule.deadline=1", "sampler=poisson", "sampler.fraction=0.5"), True),
    ],
)
def test_sampling_amplifies_nothing_where_others_decide_who_counts(schedule: tuple[str, ...], amplified: bool) -> None:
    made = parts(
        "privacy=user", "privacy.noise_multiplier=1", "privacy.delta=0.01", "fleet=phones", "rounds=4", *schedule
    )
    play(made)
    ledger, charges = made.server.protection.ledger(), made.server.protection.book.charges
    plain = gaussian(4 if amplified else max(charges.values()), 0.01)
    assert (ledger["epsilon"] < 0.9 * plain) == amplified
    if not amplified:
        assert ledger["epsilon"] == pytest.approx(plain, rel=1e-3)


def test_one_client_is_in_no_release_twice() -> None:
    made = parts(*BUFFERED, "availability=always", "compression=none", "sampler.cohort_size=4")
    play(made)
    trips = made.server.field.trips
    used = trips[trips["outcome"] == USED]
    pairs = list(zip(used["round"].tolist(), used["client"].tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) == 24


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("availability=markov",), "fleet=ideal takes no time"),
        (("schedule=fedbuff", "sampler=fixed"), "fleet=ideal takes no time"),
        (("fleet=phones", "schedule=fedbuff"), "use sampler=fixed"),
        (("fleet=phones", "schedule.deadline=1e-9"), "can be met by no device"),
        (("fleet=phones", "schedule=fedbuff", "sampler=fixed", "strategy=fedmedian"), "takes the mean of the updates"),
        (("fleet=phones", "schedule.stragglers=use", "strategy=krum"), "takes the mean of the updates"),
        (
            ("fleet=phones", "schedule.stragglers=use", "privacy=distributed", "privacy.epsilon=8"),
            "must all come in its round",
        ),
        (("compression=topk", "privacy=distributed", "privacy.epsilon=8"), "use compression=none"),
        (("compression.down_bits=4", "strategy=fedmedian"), r"compression\.down_bits"),
        (
            ("fleet=phones", *(f"fleet.kinds.{kind}.memory_mb=1e-6" for kind in ("entry", "mid", "flagship"))),
            "no device has",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(FedsimError, match=sentence):
        parts(*overrides)


def test_devices_that_cannot_hold_the_model_are_told_apart_and_never_asked(tmp_path: Path) -> None:
    pd.DataFrame(
        {"client": range(8), "gflops": 1.0, "memory_mb": [1e-6] * 3 + [100] * 5, "down_mbps": 10, "up_mbps": 10}
    ).to_csv(tmp_path / "a.csv", index=False)
    summary, _, trips = of_runs(tmp_path / "run", "fleet=table", f"fleet.path={tmp_path / 'a.csv'}")
    assert summary["fleet"]["cannot_train"] == 3
    assert set(trips["client"]) == {3, 4, 5, 6, 7}
    clients = pd.read_parquet(tmp_path / "run" / "clients.parquet")
    assert clients["can_train"].tolist() == [False] * 3 + [True] * 5


def test_bytes_up_are_the_lengths_of_the_messages(tmp_path: Path) -> None:
    made = parts("compression=sign", "rounds=1")
    play(made)
    (row,) = made.server.state.rows
    message, _ = made.server.compression.encode(
        {"linear.weight": torch.ones(3, 6), "linear.bias": torch.ones(3)}, {}, 0, 1, 0
    )
    assert row["bytes_up"] == 8 * len(message) < row["bytes_down"] / 3


def test_a_quantised_broadcast_moves_the_servers_own_model(tmp_path: Path) -> None:
    """At sixteen bits what devices see is all but the model, and the server's stays exact: the run is the plain one's, nearly."""
    plain, down = parts("rounds=3"), parts("rounds=3", "compression.down_bits=16")
    ours, others = play(plain), play(down)
    for name, array in ours.items():
        assert torch.allclose(array, others[name], atol=1e-3)
    assert not same(ours, others)
    assert down.server.state.rows[0]["bytes_down"] < plain.server.state.rows[0]["bytes_down"]


def test_baselines_have_no_devices(tmp_path: Path) -> None:
    made = parts("strategy=central", "fleet=phones", "compression=topk", "compression.keep=0.5")
    assert not made.server.field.modelled
    assert not made.server.compression.compresses


@pytest.mark.parametrize("how", ["SIGKILL"])
def test_a_killed_asynchronous_run_goes_on(how: str, tmp_path: Path) -> None:
    import signal

    arguments = (
        *("dataset=digits", "model=linear", "population.num_clients=12", "sampler.cohort_size=6", "rounds=40"),
        *(
            "evaluation.clients=4",
            "checkpoint.every=1",
            "device=cpu",
            "fleet=phones",
            "schedule=fedbuff",
            "schedule.buffer=3",
        ),
    )
    from helpers import config

    run_into(tmp_path / "whole", config(*arguments))
    disturb(tmp_path / "killed", [*arguments, f"hydra.run.dir={tmp_path / 'killed'}"], 9, signal.Signals[how])
    resume(tmp_path / "killed")
    assert model_of(tmp_path / "killed") == model_of(tmp_path / "whole")


def test_the_clock_of_a_large_population_is_asked_about_few(tmp_path: Path) -> None:
    made = parts("fleet=phones", "rounds=1")
    assert np.array_equal(made.server.field.who(np.array([3, 5])), [3, 5])
