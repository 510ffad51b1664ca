"""The virtual clock against schedules worked out by hand."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from fedsim.fleet.asynchronous import FedAsync, FedBuff
from fedsim.fleet.availability import Always, Availability
from fedsim.fleet.field import Field, Load
from fedsim.fleet.fleet import Fleet
from fedsim.fleet.hardware import Hardware
from fedsim.fleet.schedules import Choice, Schedule, Synchronous, Turn
from fedsim.fleet.trips import BATTERY, LATE, NETWORK, OUTCOMES, USED, USER
from fedsim.types import FedsimError


class Given(Fleet):
    """Devices that compute for so many seconds; a message of 100 bytes takes 1 s down and 2 s up, latency included."""

    kinds = ("given",)
    carbon_intensity = 360.0  # g a kWh: 1e-4 g a joule

    def __init__(self, *seconds: float, **more: list[float]) -> None:
        self.seconds, self.more = np.array(seconds, dtype=float), more

    def hardware(self, clients: np.ndarray, seed: int) -> Hardware:
        n = len(self.seconds)
        numbers = {field.name: np.zeros(n) for field in fields(Hardware)} | {
            "kind": np.zeros(n, np.int64),
            "flops": 1000.0 / self.seconds,
            "memory": np.full(n, np.inf),
            "down": np.full(n, 200.0),  # 0.5 s and the latency
            "up": np.full(n, 100 / 1.5),
            "latency": np.full(n, 0.5),
            "compute_watts": np.full(n, 4.0),
            "down_watts": np.full(n, 1.0),
            "up_watts": np.full(n, 2.0),
            "battery": np.full(n, np.inf),
        }
        numbers |= {name: np.array(values, dtype=float) for name, values in self.more.items()}
        return Hardware(**{name: values[clients] for name, values in numbers.items()})


class Until(Availability):
    """There until a given moment each, and never again."""

    def __init__(self, *ends: float) -> None:
        self.ends = np.array(ends)

    def at(self, clients: np.ndarray, time: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there = time < self.ends[clients]
        return there, np.where(there, self.ends[clients], np.inf)


def field_of(fleet: Given, availability: Availability | None = None) -> Field:
    """A training of 1,000 FLOPs, and messages of 100 bytes."""
    load = Load(lambda c: np.full(len(c), 1000.0), lambda c: np.zeros(len(c)), 100.0, 100.0)
    return Field(fleet, availability or Always(), load, 0, len(fleet.seconds))


def choose(field: Field, size: int | None = None, cohort: list[int] | None = None, blind: bool = False) -> Choice:
    """Everyone who may be asked, or this cohort."""

    def draw(among: np.ndarray | None) -> np.ndarray:
        everyone = np.arange(field.num_clients) if among is None else among
        return everyone if cohort is None else np.intersect1d(everyone, cohort)

    size = field.num_clients if size is None else size
    return Choice(draw, np.arange(field.num_clients), blind, size, 0)


def outcomes(turn: Turn) -> dict[int, str]:
    """By client."""
    return {int(trip["client"]): OUTCOMES[trip["outcome"]] for trip in turn.ended}


def play(schedule: Schedule, field: Field, rounds: int, **chosen: int) -> list[tuple[list[int], list[int], float]]:
    """(clients, their versions, the clock) at the end of each round."""
    turns = [(schedule.turn(n, field, choose(field, **chosen)), field.now) for n in range(1, rounds + 1)]
    return [(turn.used["client"].tolist(), turn.used["version"].tolist(), now) for turn, now in turns]


def test_a_synchronous_round_lasts_as_long_as_its_slowest_device() -> None:
    field = field_of(Given(10, 20, 30))
    assert play(Synchronous(), field, 2) == [([0, 1, 2], [0, 0, 0], 33.0), ([0, 1, 2], [1, 1, 1], 66.0)]


def test_a_trip_is_its_three_parts_and_costs_what_they_draw() -> None:
    field = field_of(Given(10))
    (trip,) = field.send(np.array([0]), 0)
    assert [trip[name] for name in ("sent", "received", "trained", "arrived", "ended")] == [0, 1, 11, 13, 13]
    assert [trip[name] for name in ("joules_down", "joules_compute", "joules_up")] == [1, 40, 4]
    assert (trip["bytes_down"], trip["bytes_up"], OUTCOMES[trip["outcome"]]) == (100, 100, "used")
    costs = field.costs(np.array([trip]), 13.0)
    assert costs == {"simulated_seconds": 13.0, "joules": 45.0, "grams_co2": pytest.approx(45e-4)}


def test_a_deadline_drops_who_is_late_and_leaves_it_busy() -> None:
    field = field_of(Given(10, 20, 30))
    schedule = Synchronous(deadline=25)
    first = schedule.turn(1, field, choose(field))
    assert (first.used["client"].tolist(), first.seconds) == ([0, 1], 25.0)
    assert outcomes(first) == {0: "used", 1: "used", 2: "late"}
    second = schedule.turn(2, field, choose(field))  # the third is at work until 33
    assert (second.cohort.tolist(), second.used["client"].tolist(), field.now) == ([0, 1], [0, 1], 48.0)
    third = schedule.turn(3, field, choose(field))
    assert third.cohort.tolist() == [0, 1, 2]


def test_over_selection_ends_with_the_first_that_suffice() -> None:
    field = field_of(Given(10, 20, 30))
    turn = Synchronous(over_selection=1.5).turn(1, field, choose(field, size=2))
    assert (turn.used["client"].tolist(), turn.seconds) == ([0, 1], 23.0)
    assert outcomes(turn)[2] == "late"
    assert turn.asked == 3


def test_waiting_for_the_first_takes_the_lower_client_of_two_that_come_together() -> None:
    field = field_of(Given(10, 10, 30))
    turn = Synchronous(wait_for=1).turn(1, field, choose(field))
    assert (turn.used["client"].tolist(), turn.seconds) == ([0], 13.0)


def test_stragglers_are_used_in_the_round_in_which_they_come() -> None:
    field = field_of(Given(10, 20, 30))
    schedule = Synchronous(deadline=25, stragglers="use", staleness_power=1.0)
    assert play(schedule, field, 2) == [([0, 1], [0, 0], 25.0), ([0, 1, 2], [1, 1, 0], 48.0)]  # the third came at 33
    assert schedule.out() == set()
    assert schedule.weight(1) == 0.5


def test_fedbuff_by_hand() -> None:
    """Trips of 13, 23 and 33 s; all three at work; a buffer of two.

    0 comes at 13 and 1 at 23: round 1 ends at 23. 0 is sent model 0 no more while it lies in the buffer. At 23 both get model 1:
    0 is back at 36, but 2 (model 0) at 33: round 2 ends at 36 with 0 and 2. Then 0 and 2 get model 2; 1 is back at 46 (model 1),
    0 at 49: round 3 ends at 49.
    """
    field = field_of(Given(10, 20, 30))
    schedule = FedBuff(buffer=2, staleness="polynomial", a=0.5, b=0)
    assert play(schedule, field, 3) == [
        ([0, 1], [0, 0], 23.0),
        ([0, 2], [1, 0], 36.0),
        ([0, 1], [2, 1], 49.0),
    ]
    assert schedule.weight(1) == pytest.approx(2**-0.5)
    assert schedule.out() == {2}


def test_fedbuff_drops_what_is_too_old() -> None:
    field = field_of(Given(1, 40))
    schedule = FedBuff(buffer=1, staleness="constant", a=0, b=0, max_staleness=3)
    turns = [schedule.turn(n, field, choose(field)) for n in range(1, 13)]
    late = [
        (n, trip["client"]) for n, turn in enumerate(turns, 1) for trip in turn.ended[turn.ended["outcome"] == LATE]
    ]
    assert late == [(11, 1)]  # 43 s: ten rounds of 4 s are over
    assert all(turn.used["client"].tolist() == [0] for turn in turns)


def test_fedasync_is_a_buffer_of_one_and_its_weights_are_those_of_the_paper() -> None:
    schedule = FedAsync(mixing=0.6, staleness="hinge", a=10, b=4)
    field = field_of(Given(10, 20))
    assert play(schedule, field, 3) == [([0], [0], 13.0), ([1], [0], 23.0), ([0], [1], 26.0)]
    assert [schedule.weight(tau) for tau in (0, 4, 5)] == pytest.approx([0.6, 0.6, 0.6 / 11])


def test_concurrency_is_never_more_than_asked_for() -> None:
    field = field_of(Given(*np.linspace(5, 50, 40)))
    schedule = FedBuff(buffer=3, staleness="constant", a=0, b=0)
    for n in range(1, 30):
        turn = schedule.turn(n, field, choose(field, size=7))
        assert len(schedule._out) <= 7
        assert (field.busy_until > field.now).sum() <= 7
        assert len(set(turn.used["client"].tolist())) == 3


def test_a_schedule_goes_on_from_its_state_as_if_it_had_never_stopped() -> None:
    def fresh() -> tuple[Schedule, Field]:
        return FedBuff(4, "polynomial", 0.5, 0), field_of(Given(*np.linspace(5, 50, 30), failures=[0.005] * 30))

    schedule, field = fresh()
    whole = play(schedule, field, 12, size=8)
    schedule, field = fresh()
    first = play(schedule, field, 5, size=8)
    kept = schedule.state(), field.state()
    schedule, field = fresh()
    schedule.load_state(kept[0])
    field.load_state(kept[1])
    rest = [schedule.turn(n, field, choose(field, size=8)) for n in range(6, 13)]
    assert first == whole[:5]
    assert [turn.used["client"].tolist() for turn in rest] == [clients for clients, _, _ in whole[5:]]
    assert field.now == whole[-1][2]


def test_a_device_that_goes_is_lost_where_it_stood() -> None:
    field = field_of(Given(10, 10, 10), Until(6.0, 12.0, 100.0))
    turn = Synchronous().turn(1, field, choose(field))
    assert outcomes(turn) == {0: "user", 1: "user", 2: "used"}
    gone = {int(trip["client"]): trip for trip in turn.ended}
    assert gone[0]["joules_compute"] == 20.0  # 5 of its 10 s
    assert np.isnan(gone[0]["trained"])
    assert gone[1]["bytes_up"] == pytest.approx(
        100 * 0.5 / 1.5
    )  # it had been sending for half a second after the latency
    field.record(turn.ended)
    assert field.dropouts.tolist() == [1, 1, 0]


def test_a_battery_that_runs_out_and_a_device_that_must_charge() -> None:
    fleet = Given(10, 10, battery=[21.0, 1000.0], charge_watts=[12.0, 0.0])
    fleet.min_battery = 0.5
    field = field_of(fleet)
    turn = Synchronous().turn(1, field, choose(field))
    lost = turn.ended[turn.ended["outcome"] == BATTERY]
    assert lost["client"].tolist() == [0]
    assert lost["ended"].tolist() == [6.0]  # 1 J to receive, then 20 J at 4 W
    assert field.who(np.arange(2)).tolist() == [1]
    assert field.there(np.array([0]), 6.0 + 10.4)[0] == np.False_  # 1 W on average: 10.5 J after 10.5 s
    assert field.there(np.array([0]), 6.0 + 10.6)[0] == np.True_


def test_connections_break_at_the_rate_that_is_given() -> None:
    n = 20_000
    field = field_of(Given(*[7.0] * n, failures=[0.02] * n))
    trips = field.send(np.arange(n), 0)
    expected = n * (1 - np.exp(-0.02 * 10))
    lost = int((trips["outcome"] == NETWORK).sum())
    assert abs(lost - expected) < 5 * np.sqrt(expected)
    assert (trips["outcome"] == USED).sum() == n - lost
    again = field.send(np.arange(n), 0)  # another trip breaks elsewhere
    both = ((trips["outcome"] == NETWORK) & (again["outcome"] == NETWORK)).sum() / n
    assert both == pytest.approx((expected / n) ** 2, rel=0.15)


def test_a_blind_cohort_keeps_who_is_away_in_it() -> None:
    field = field_of(Given(10, 10, 10), Until(0.0, 50.0, 50.0))
    turn = Synchronous().turn(1, field, choose(field, cohort=[0, 2], blind=True))
    assert turn.cohort.tolist() == [0, 2]
    assert turn.present.tolist() == [2]
    assert outcomes(turn) == {0: "away", 2: "used"}


def test_the_server_waits_for_the_first_that_can_be_asked() -> None:
    field = field_of(Given(10, 20))
    field.send(np.array([0, 1]), 0)
    assert field.wait(np.array([0, 1])).tolist() == [0]
    assert field.now == 13.0


def test_what_no_device_can_do_is_refused() -> None:
    field = field_of(Given(10, 20))
    with pytest.raises(FedsimError, match=r"schedule\.deadline=12 s can be met by no device: the fastest takes 13 s"):
        Synchronous(deadline=12).check(field, 2)
    Synchronous(deadline=13).check(field, 2)
    with pytest.raises(FedsimError, match=r"schedule\.wait_for=5"):
        Synchronous(wait_for=5).check(field, 2)
    with pytest.raises(FedsimError, match=r"schedule\.buffer=3"):
        FedBuff(3, "constant", 0, 0).check(field, 2)
    fleet = field_of(Given(10, memory=[1e6]))
    fleet.load.memory = lambda clients: np.full(len(clients), 2e6)
    with pytest.raises(FedsimError, match="no device has the 2 MB"):
        fleet.require_able()


def test_user_loss_is_told_from_the_end_of_a_trip() -> None:
    field = field_of(Given(10), Until(13.0))
    assert field.send(np.array([0]), 0)["outcome"][0] == USED  # it arrives at the moment at which the device goes
    field = field_of(Given(10), Until(12.999))
    assert field.send(np.array([0]), 0)["outcome"][0] == USER
