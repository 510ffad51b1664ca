"""When devices are there: laws against closed forms and scipy, answers against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.fleet.availability import Always, Availability, World, waiting
from fedsim.fleet.daily_availability import Charging, DayNight
from fedsim.fleet.random_availability import Coins, Independent, Markov
from fedsim.make import make
from fedsim.paths import conf_dir
from fedsim.types import FedsimError

LEVEL = 1e-6  # seeds are fixed: a test that passes keeps passing
HOUR, DAY = 3600.0, 86400.0
CLIENTS = 60

KINDS: dict[str, Callable[[], Availability]] = {
    "independent": lambda: Independent(rate=0.4, period=700.1),
    "independent, rarely": lambda: Independent(rate=0.02, period=600),
    "independent, mostly": lambda: Independent(rate=0.97, period=1 / 3),
    "markov": lambda: Markov(mean_on=1000, mean_off=2500),
    "markov, spread": lambda: Markov(mean_on=3000, mean_off=70, spread=1.0),
    "day and night": lambda: DayNight(),
    "day and night, by data": lambda: DayNight(from_hour=1.5, to_hour=9.1, rate_in=0.9, rate_out=0, by_data=True),
    "charging": lambda: Charging(),
    "charging, wildly": lambda: Charging(spread_hours=24, charge_hours=14, charge_spread_hours=24, wifi=0.5),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def begun(availability: Availability, clients: int = CLIENTS, seed: int = 0) -> Any:
    availability.begin(World(seed, clients, lambda: np.arange(clients)[::-1] / clients))
    return availability


def asked(kind: str, clients: Any, time: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The answer of an object that was asked nothing before."""
    return begun(KINDS[kind](), seed=seed).at(np.asarray(clients), time)


def assert_share(there: np.ndarray, chance: float) -> None:
    """As many as a binomial law allows."""
    assert stats.binomtest(int(there.sum()), there.size, chance).pvalue > LEVEL, (there.mean(), chance)


def spells(availability: Availability, clients: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(clients, number) bool and float64 seconds: the first whole spells after time 0."""
    who, kinds, lengths = np.arange(clients), [], []
    time = availability.at(who, 0.0)[1]
    for _ in range(number):
        there, until = availability.at(who, time)
        kinds.append(there)
        lengths.append(until - time)
        time = until
    return np.stack(kinds, axis=1), np.stack(lengths, axis=1)


# What all kinds promise


@every_kind
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_state_lasts_until_its_end_and_turns_there(kind: str, data: st.DataObject) -> None:
    time = data.draw(st.floats(0, 1e7))
    share = data.draw(st.floats(0, 1))
    who = np.arange(CLIENTS)
    there, until = asked(kind, who, time)
    assert (until > time).all()
    for moment in (time + share * (until - time), np.nextafter(until, -np.inf)):
        moment = np.clip(moment, time, np.nextafter(until, -np.inf))
        same, end = asked(kind, who, moment)
        assert (same == there).all() and (end == until).all()
    assert (asked(kind, who, until)[0] == ~there).all()


@every_kind
@settings(max_examples=6, deadline=None)
@given(times=st.lists(st.floats(0, 1e7), min_size=1, max_size=8), data=st.data())
def test_an_answer_does_not_depend_on_what_else_is_asked(kind: str, times: list[float], data: st.DataObject) -> None:
    """Nor on order, on clients given twice, on time that goes back, or on being one number or many."""
    remembers = begun(KINDS[kind]())
    for time in times:
        clients = np.array(data.draw(st.lists(st.integers(0, CLIENTS - 1), min_size=1, max_size=6)))
        moments = np.array(data.draw(st.permutations([time + k * HOUR for k in range(len(clients))])))
        whole = asked(kind, np.arange(CLIENTS), time)
        for found, wanted in zip(remembers.at(clients, time), whole, strict=True):
            assert (found == wanted[clients]).all()
        several = remembers.at(clients, moments)
        single = [asked(kind, [client], float(moment)) for client, moment in zip(clients, moments, strict=True)]
        assert several[0].tolist() == [bool(there[0]) for there, _ in single]
        assert several[1].tolist() == [float(until[0]) for _, until in single]


@every_kind
def test_seeds_differ_and_repeat(kind: str) -> None:
    first, again, other = (asked(kind, np.arange(CLIENTS), 5 * HOUR, seed)[1] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@every_kind
def test_nobody_can_be_asked(kind: str) -> None:
    there, until = asked(kind, np.empty(0, np.int64), 3.0)
    assert there.shape == until.shape == (0,) and there.dtype == bool


@pytest.mark.parametrize("kind", ["independent", "markov", "day and night, one zone", "charging, one zone"])
def test_clients_are_independent(kind: str) -> None:
    """How often two neighbours are there together, over far-apart times at one hour, against the product."""
    makers = KINDS | {
        "day and night, one zone": lambda: DayNight(rate_in=0.5, zones=[1]),
        "charging, one zone": lambda: Charging(zones=[1], wifi=0.6),
    }
    availability = begun(makers[kind](), clients=500)
    there = np.stack([availability.at(np.arange(500), day * DAY + HOUR)[0] for day in range(0, 60, 2)])
    for left, right in ((there[:, :-1], there[:, 1:]), (there[:-1], there[1:])):  # neighbours, and two nights later
        table = np.array(
            [[(left & right).sum(), (left & ~right).sum()], [(~left & right).sum(), (~left & ~right).sum()]]
        )
        assert stats.chi2_contingency(table).pvalue > LEVEL


def test_always() -> None:
    there, until = begun(Always()).at(np.arange(3), np.array([0.0, 5.0, 1e9]))
    assert there.tolist() == [True] * 3 and until.tolist() == [math.inf] * 3 and Always.always
    assert not any(make().always for make in KINDS.values())


# A coin a slot


@pytest.mark.parametrize("rate", [0.003, 0.3, 0.5, 0.8, 0.995])
def test_a_slot_is_a_coin(rate: float) -> None:
    """Share, independence of neighbouring slots, and how long a run of equal slots goes on (a geometric law)."""
    clients, period = np.arange(30_000), 60.0
    availability = begun(Independent(rate, period), clients=len(clients))
    there, until = availability.at(clients, 1000 * period + 59)
    assert_share(there, rate)
    after, _ = availability.at(clients, 1001 * period)
    assert_share(after[there], rate)
    assert_share(after[~there], rate)
    for side, stay in ((there, rate), (~there, 1 - rate)):
        slots = until[side] / period - 1000
        assert (slots == np.round(slots)).all()
        upper = stats.geom(1 - stay).ppf([0.25, 0.5, 0.75, 0.95])
        edges = np.concatenate([[0], np.unique(upper), [np.inf]])
        expected = np.diff(stats.geom(1 - stay).cdf(edges)) * side.sum()
        observed = [((slots > low) & (slots <= high)).sum() for low, high in itertools.pairwise(edges)]
        if expected.min() > 5 and len(expected) > 1:
            assert stats.chisquare(observed, expected).pvalue > LEVEL


def test_a_certain_coin_never_turns() -> None:
    for rate in (0, 1):
        there, until = begun(Independent(rate)).at(np.arange(5), 1e6)
        assert (there == bool(rate)).all() and np.isinf(until).all()


@pytest.mark.parametrize("rate", [0.01, 0.4, 0.7])
def test_the_first_coin_of_a_side_is_found_as_by_looking_at_each(rate: float) -> None:
    coins, clients = Coins(3, "test", rate), np.arange(40)
    sides = np.stack([coins.at(clients, np.full(40, k)) for k in range(300)])  # (numbers, clients)
    for start in (0, 17, 64):
        for side in (True, False):
            found = coins.first(clients, np.full(40, start), np.full(40, side))
            for client in clients:
                hits = np.flatnonzero(sides[start:, client] == side)
                assert found[client] == start + hits[0] if hits.size else found[client] >= 300


# On and off


@pytest.mark.parametrize(("mean_on", "mean_off"), [(1000, 3000), (500, 400), (60, 7200)])
def test_a_markov_device_is_there_for_its_share_of_any_moment(mean_on: float, mean_off: float) -> None:
    """Stationary from the start: the same share at second 0, later, and much later."""
    for time in (0.0, 777.0, 3e6):
        there, _ = begun(Markov(mean_on, mean_off), clients=30_000).at(np.arange(30_000), time)
        assert_share(there, mean_on / (mean_on + mean_off))


def test_markov_spells_are_exponential_and_independent() -> None:
    there, lengths = spells(begun(Markov(1000, 3000), clients=4000), 4000, 6)
    assert (there[:, 1:] == ~there[:, :-1]).all()
    assert stats.kstest(lengths[there], stats.expon(scale=1000).cdf).pvalue > LEVEL
    assert stats.kstest(lengths[~there], stats.expon(scale=3000).cdf).pvalue > LEVEL
    scaled = np.where(there, lengths / 1000, lengths / 3000)
    assert stats.spearmanr(scaled[:, :-1].ravel(), scaled[:, 1:].ravel()).pvalue > LEVEL


def test_what_remains_of_a_markov_spell_is_exponential_too() -> None:
    there, until = begun(Markov(1000, 3000), clients=8000).at(np.arange(8000), 12_345.0)
    assert stats.kstest(until[there] - 12_345, stats.expon(scale=1000).cdf).pvalue > LEVEL
    assert stats.kstest(until[~there] - 12_345, stats.expon(scale=3000).cdf).pvalue > LEVEL


@pytest.mark.parametrize("lag", [50, 400, 1500, 6000])
def test_markov_states_are_correlated_by_the_closed_form(lag: float) -> None:
    """P(there now and `lag` later) = p^2 + p (1 - p) exp(-(1 / on + 1 / off) lag)."""
    mean_on, mean_off, clients = 1000.0, 3000.0, np.arange(40_000)
    availability = begun(Markov(mean_on, mean_off), clients=len(clients))
    both = availability.at(clients, 9999.0)[0] & availability.at(clients, 9999.0 + lag)[0]
    p = mean_on / (mean_on + mean_off)
    assert_share(both, p * p + p * (1 - p) * math.exp(-(1 / mean_on + 1 / mean_off) * lag))


def test_a_spread_gives_each_client_its_own_lognormal_means() -> None:
    availability = begun(Markov(1000, 3000, spread=0.8), clients=20_000)
    for means, mean in ((availability.means_on, 1000), (availability.means_off, 3000)):
        assert stats.kstest(np.log(means / mean), stats.norm(-0.32, 0.8).cdf).pvalue > LEVEL
    assert stats.spearmanr(availability.means_on, availability.means_off).pvalue > LEVEL
    there, _ = availability.at(np.arange(20_000), 1e5)
    chances = availability.means_on / (availability.means_on + availability.means_off)
    z = (there - chances).sum() / math.sqrt((chances * (1 - chances)).sum())
    assert abs(z) < stats.norm.isf(LEVEL / 2)
    rare, often = np.argsort(chances)[:5000], np.argsort(chances)[-5000:]
    assert there[often].mean() > 3 * there[rare].mean()


# The hours of the day


@pytest.mark.parametrize("hour", [0, 3, 5.99, 6, 12, 21.99, 22, 23.5])
def test_nights_and_days_have_their_shares(hour: float) -> None:
    clients = np.arange(6000)
    inside = hour >= 22 or hour < 6
    there, until = begun(DayNight(zones=[1]), clients=6000).at(clients, 4 * DAY + hour * HOUR)
    assert_share(there, 0.8 if inside else 0.2)
    assert (((until - 6 * HOUR) % DAY == 0) | ((until - 22 * HOUR) % DAY == 0)).all()


def test_a_night_is_one_coin_and_nights_are_independent() -> None:
    clients = np.arange(6000)
    availability = begun(DayNight(rate_in=0.4, zones=[1]), clients=6000)
    evening, morning, next_night = (
        availability.at(clients, DAY * day + HOUR * h)[0] for day, h in ((3, 22.5), (4, 5.5), (5, 3))
    )
    assert (evening == morning).all()
    assert_share(next_night[evening], 0.4)
    assert_share(next_night[~evening], 0.4)


def test_each_zone_has_its_own_night() -> None:
    """At any moment every zone has the share of its own local hour."""
    availability = begun(DayNight(from_hour=20, to_hour=8, rate_in=0.9, rate_out=0.1), clients=24_000)
    assert stats.chisquare(np.bincount(availability.zone, minlength=24)).pvalue > LEVEL
    there, _ = availability.at(np.arange(24_000), 10 * DAY + 7.5 * HOUR)
    for zone in range(24):
        local = (7.5 + zone) % 24
        assert_share(there[availability.zone == zone], 0.9 if local >= 20 or local < 8 else 0.1)


def test_zones_follow_their_weights() -> None:
    zone = begun(DayNight(zones=[3, 0, 1]), clients=8000).zone
    assert set(zone) == {0, 2}
    assert_share(zone == 0, 0.75)


def test_by_data_the_night_half_of_the_world_has_other_data() -> None:
    """With certain coins those who are there at midnight UTC are exactly the ranks of the zones that have night."""
    clients = np.arange(2400)
    availability = begun(DayNight(rate_in=1, rate_out=0, by_data=True), clients=2400)
    rank = clients[::-1] / 2400
    there, until = availability.at(clients, 0.0)
    assert (there == ((rank < 6 / 24) | (rank >= 22 / 24))).all()
    local = np.floor(rank * 24)
    assert (until[there] == (6 - local[there]) % 24 * HOUR).all()
    assert (until[~there] == (22 - local[~there]) * HOUR).all()
    by_chance = begun(DayNight(), clients=2400)
    assert stats.spearmanr(by_chance.zone, rank).pvalue > LEVEL


@pytest.mark.parametrize("zone", [0, 5])
def test_a_punctual_charger_is_there_from_plug_to_charge(zone: int) -> None:
    weights = [0.0] * zone + [1.0]
    availability = begun(
        Charging(plug_hour=23, spread_hours=0, charge_hours=7, charge_spread_hours=0, wifi=1, zones=weights)
    )
    for day in (0, 9):
        for hour in np.arange(0, 24, 0.25):
            there, until = availability.at(np.array([3]), day * DAY + hour * HOUR)
            local = (hour + zone) % 24
            plugged = local >= 23 or local < 6
            assert there[0] == plugged
            assert until[0] == (day * 24 + hour + ((6 if plugged else 23) - local) % 24) * HOUR


@pytest.mark.parametrize("hour", [21, 23, 0, 3, 7, 10.5, 11.5, 14])
def test_chargers_are_on_at_the_hours_that_the_two_laws_give(hour: float) -> None:
    """Against a simulation by numpy and scipy's truncated normal: a plug-in around 23, cut off 12 hours later."""
    clients, spread, length, length_spread, wifi = np.arange(20_000), 3.0, 7.0, 4.0, 0.7
    availability = begun(Charging(23, spread, length, length_spread, wifi, zones=[1]), clients=len(clients))
    there, _ = availability.at(clients, 5 * DAY + hour * HOUR)
    rng, since = np.random.default_rng(0), (hour - 11) % 24  # hours of the charging day, which begins at 11
    plug = stats.truncnorm(-12 / spread, 12 / spread, 12, spread).rvs(200_000, random_state=rng)
    stay = stats.truncnorm(-length / length_spread, np.inf, length, length_spread).rvs(200_000, random_state=rng)
    chance = wifi * np.mean((plug <= since) & (since < plug + stay))
    assert abs(there.mean() - chance) < 5 * math.sqrt(max(chance, 1e-4) * (1 / 20_000 + 1 / 200_000))


def test_wifi_is_a_coin_a_night() -> None:
    availability = begun(Charging(2, 0, 4, 0, wifi=0.3, zones=[1]), clients=5000)
    nights = [availability.at(np.arange(5000), day * DAY + 3 * HOUR)[0] for day in range(3)]
    for night in nights:
        assert_share(night, 0.3)
    assert_share(nights[1][nights[0]], 0.3)
    there, until = begun(Charging(wifi=0)).at(np.arange(9), 1e5)
    assert not there.any() and np.isinf(until).all()


# Waiting for somebody


def test_waiting_ends_when_the_first_comes() -> None:
    punctual = begun(Charging(23, 0, 7, 0, wifi=1, by_data=True))  # clients 0 and 59: in the zones UTC+23 and UTC
    assert waiting(punctual, np.array([59]), 8 * HOUR) == 23 * HOUR
    assert waiting(punctual, np.array([0]), 8 * HOUR) == 24 * HOUR
    assert waiting(punctual, np.array([0, 59]), 8 * HOUR) == 23 * HOUR
    assert waiting(punctual, np.array([59]), 23.5 * HOUR) == 23.5 * HOUR
    for kind in ("markov", "independent, rarely"):
        few = np.arange(3)
        for time in np.linspace(0, 1e5, 20):
            there, until = asked(kind, few, time)
            assert waiting(begun(KINDS[kind]()), few, time) == (time if there.any() else until.min())


@pytest.mark.parametrize(
    ("availability", "way_out"),
    [
        (Independent(rate=0), "raise availability.rate"),
        (Markov(1, 1e12), "lower availability.mean_off"),
        (DayNight(rate_in=0, rate_out=0), "raise availability.rate_in"),
        (Charging(wifi=0), "raise availability.wifi"),
    ],
)
def test_nobody_is_waited_for_longer_than_a_month(availability: Availability, way_out: str) -> None:
    with pytest.raises(FedsimError, match=rf"none of 3 devices is there for 30 simulated days .*; {way_out}"):
        waiting(begun(availability), np.arange(3), 5e4)


# What users type


@pytest.mark.parametrize("name", ["always", "independent", "markov", "day_night", "charging"])
def test_the_files_make_what_they_say(name: str) -> None:
    keys = yaml.safe_load((conf_dir() / "availability" / f"{name}.yaml").read_text())
    availability = begun(make(keys, "availability"))
    there, until = availability.at(np.arange(CLIENTS), 4 * HOUR)
    assert there.any() and (until > 4 * HOUR).all()


@pytest.mark.parametrize(
    ("maker", "keys", "words"),
    [
        (Independent, {"rate": 1.2}, "availability.rate=1.2 is out of range"),
        (Independent, {"rate": "often"}, "availability.rate=often is not a finite number"),
        (Independent, {"period": 0}, "availability.period=0 is out of range"),
        (Markov, {"mean_on": 0}, "availability.mean_on=0 is out of range"),
        (Markov, {"mean_off": -1}, "availability.mean_off=-1 is out of range"),
        (Markov, {"mean_off": math.inf}, "availability.mean_off=inf is not a finite number"),
        (Markov, {"spread": -0.1}, "availability.spread=-0.1 is out of range"),
        (DayNight, {"from_hour": 25}, "availability.from_hour=25 is out of range"),
        (DayNight, {"to_hour": -1}, "availability.to_hour=-1 is out of range"),
        (
            DayNight,
            {"from_hour": 0, "to_hour": 24},
            "availability.from_hour=0 and availability.to_hour=24 are the same hour",
        ),
        (DayNight, {"rate_in": 1.01}, "availability.rate_in=1.01 is out of range"),
        (DayNight, {"rate_out": -0.01}, "availability.rate_out=-0.01 is out of range"),
        (DayNight, {"by_data": "yes"}, "availability.by_data=yes is neither true nor false"),
        (DayNight, {"zones": []}, "availability.zones=[] is no list of 1 to 24 weights"),
        (DayNight, {"zones": [1] * 25}, "is no list of 1 to 24 weights"),
        (DayNight, {"zones": 5}, "availability.zones=5 is no list of 1 to 24 weights"),
        (DayNight, {"zones": [0, 0]}, "availability.zones=[0, 0] gives no zone a weight above 0"),
        (DayNight, {"zones": [1, -2]}, "availability.zones[1]=-2 is out of range"),
        (Charging, {"plug_hour": 24.5}, "availability.plug_hour=24.5 is out of range"),
        (Charging, {"spread_hours": -1}, "availability.spread_hours=-1 is out of range"),
        (Charging, {"charge_hours": 0}, "availability.charge_hours=0 is out of range"),
        (Charging, {"charge_spread_hours": math.nan}, "availability.charge_spread_hours=nan is not a finite number"),
        (Charging, {"wifi": 2}, "availability.wifi=2 is out of range"),
    ],
)
def test_impossible_keys_are_refused(maker: Callable[..., Availability], keys: dict[str, Any], words: str) -> None:
    with pytest.raises(FedsimError) as caught:
        maker(**keys)
    assert words in str(caught.value) and "\n" not in str(caught.value)
