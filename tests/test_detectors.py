"""Drift is noticed soon and seldom wrongly, survives a checkpoint, and is answered as the configuration says."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import yaml

from fedsim.paths import conf_dir
from fedsim.streams.detectors import Adwin, Kswin, NoWatch, PageHinkley, RiverWatch, TwoSample, Watch
from fedsim.streams.regret import judge_alarms
from fedsim.streams.responses import Boost, NoResponse, Reset, Response
from fedsim.streams.series import Observations, State, hands
from fedsim.streams.watching import Watcher
from fedsim.types import FedsimError, MissingPackageError

CLIENTS = np.arange(10)
Round = tuple[np.ndarray, np.ndarray]

WATCHES: dict[str, Callable[[], Watch]] = {
    "adwin": Adwin,
    "page_hinkley": PageHinkley,
    "kswin": Kswin,
    "two_sample": TwoSample,
    "two_sample, mmd": lambda: TwoSample(test="mmd"),
}
every_watch = pytest.mark.parametrize("kind", WATCHES)


def errors(
    seed: int, rounds: int, drift: int | None = None, *, learns: bool = False, examples: int = 100
) -> list[Round]:
    """(clients' counts, 0 or 1 an example) of each round: 20% are wrong, from round `drift` on 60%.

    learns: it begins with 90% and falls by 1/e in 15 rounds, clients differ (logits with a deviation of 0.6), and the model of a
    round is better or worse than its trend (an autoregressive logit with a deviation of 0.17), as models in training are.
    """
    draw = np.random.default_rng(seed)
    own, wobble, told = draw.normal(0, 0.6, len(CLIENTS)), 0.0, []
    for round in range(1, rounds + 1):
        rate = 0.6 if drift is not None and round >= drift else 0.2 + learns * 0.7 * np.exp(-round / 15)
        wobble = 0.5 * wobble + draw.normal(0, 0.15)
        logits = np.log(rate / (1 - rate)) + learns * (own + wobble)
        each = examples // len(CLIENTS)
        wrong = draw.random((len(CLIENTS), each)) < 1 / (1 + np.exp(-logits))[:, None]
        told.append((np.full(len(CLIENTS), each), wrong.astype(float).ravel()))
    return told


def alarms(watch: Watch, rounds: list[Round], seed: int = 0) -> list[int]:
    watcher = Watcher(watch, seed)
    return [
        number for number, (counts, wrong) in enumerate(rounds, 1) if watcher.update(number, CLIENTS, counts, wrong)
    ]


@every_watch
@pytest.mark.parametrize("learns", [False, True], ids=["level", "learning"])
def test_a_label_swap_is_noticed_within_five_rounds(kind: str, learns: bool) -> None:
    pytest.importorskip("river")
    drift, seeds = 46 if learns else 21, 4 if "mmd" in kind else 20  # permutations take their time
    told = [alarms(WATCHES[kind](), errors(seed, drift + 4, drift, learns=learns), seed) for seed in range(seeds)]
    judged = [judge_alarms(one, [drift], within=5) for one in told]
    assert sum(one.delays[0] is not None for one in judged) >= 0.9 * seeds
    assert sum(one.false for one in judged) <= 1


@pytest.mark.parametrize(
    ("kind", "seeds"), [("adwin", 20), ("page_hinkley", 20), ("two_sample", 20), ("two_sample, mmd", 2), ("kswin", 1)]
)
@pytest.mark.parametrize("learns", [False, True], ids=["level", "learning"])
def test_without_drift_there_is_at_most_one_alarm_in_two_hundred_rounds(kind: str, seeds: int, learns: bool) -> None:
    pytest.importorskip("river")
    for seed in range(seeds):
        assert len(alarms(WATCHES[kind](), errors(500 + seed, 200, learns=learns), seed)) <= 1


@pytest.mark.parametrize("kind", ["adwin", "page_hinkley", "two_sample"])
def test_large_rounds_of_a_model_that_wobbles_raise_no_alarm_and_hide_no_drift(kind: str) -> None:
    pytest.importorskip("river")
    for seed in range(3):
        told = alarms(WATCHES[kind](), errors(900 + seed, 105, 101, learns=True, examples=5000), seed)
        assert judge_alarms(told, [101], within=5).delays != [None] and judge_alarms(told, [101], within=5).false == 0


@pytest.mark.parametrize("watch", [Adwin(), PageHinkley(), TwoSample()], ids=lambda watch: watch.kind)
def test_fewer_errors_are_no_alarm(watch: Watch) -> None:
    pytest.importorskip("river")
    better = [(counts, 1 - wrong) for counts, wrong in errors(3, 60, 31)]  # 80% wrong, then 40%
    assert alarms(watch, better) == []


def test_clients_vote() -> None:
    pytest.importorskip("river")
    quiet = alarms(PageHinkley(where="clients"), errors(0, 60))
    told = alarms(PageHinkley(where="clients"), errors(0, 40, 31))
    assert quiet == [] and len(told) == 1 and 31 <= told[0] < 36
    one_of_ten = [(counts, wrong.copy()) for counts, wrong in errors(0, 50)]
    for _, wrong in one_of_ten[29:]:
        wrong[:10] = 1.0  # client 0 alone is wrong about everything
    assert alarms(PageHinkley(where="clients", votes=0.2), one_of_ten) == []
    assert alarms(PageHinkley(where="clients", votes=0.1), one_of_ten)


def test_losses_of_any_scale_are_the_same_series_and_a_model_that_blows_up_is_noticed() -> None:
    pytest.importorskip("river")
    draw = np.random.default_rng(0)
    losses = [draw.exponential(2.0 if r < 30 else 8.0, size=100) for r in range(40)]
    told = [
        alarms(Adwin(watch="losses"), [(np.full(10, 10), scale * one) for one in losses])
        for scale in (1.0, 2.0**-20, 2.0**20)
    ]
    assert told[0] == told[1] == told[2] and len(told[0]) == 1 and 31 <= told[0][0] <= 35
    losses[30:] = [np.full(100, np.nan if r % 2 else np.inf) for r in range(10)]
    assert alarms(Adwin(watch="losses"), [(np.full(10, 10), one) for one in losses]) == [31]


@pytest.mark.parametrize("test", ["ks", "mmd"])
def test_features_that_spread_are_noticed_and_nothing_else_is(test: str) -> None:
    draw = np.random.default_rng(1)
    watcher = Watcher(TwoSample(watch="features", test=test, reference=6, recent=2, level=0.2), 0)
    told = []
    for round in range(1, 36):
        x = draw.normal(size=(20, 3))
        x[:, 1] *= 6 if round >= 31 else 1
        if watcher.update(round, np.array([4, 2]), np.array([12, 8]), x):
            told.append(round)
    assert len(told) == 1 and 31 <= told[0] <= 33


@every_watch
@pytest.mark.parametrize("where", ["server", "clients"])
def test_a_watch_goes_on_from_its_state_as_if_nothing_had_been(kind: str, where: str) -> None:
    pytest.importorskip("river")
    stream = errors(0, 34, 19, examples=60)
    make = {name: type(watch()) for name, watch in WATCHES.items()}[kind]
    keys = {"where": where, "hand": 1, **({"test": "mmd", "level": 0.5} if "mmd" in kind else {})}

    def states(cut: int | None) -> tuple[list[int], list[State]]:
        watcher, told, seen = Watcher(make(**keys), 5), [], []
        for number, (counts, wrong) in enumerate(stream, 1):
            if number == cut:
                kept = {name: array.copy() for name, array in watcher.state().items()}
                watcher = Watcher(make(**keys), 5)
                watcher.load_state(kept)
            shown = counts * (number % 3 != CLIENTS % 3)  # not everybody is there in every round
            if watcher.update(number, CLIENTS, shown, wrong[np.repeat(number % 3 != CLIENTS % 3, counts)]):
                told.append(number)
            seen.append(watcher.state())
        return told, seen

    told, seen = states(None)
    for cut in (2, 21, 30):
        told_again, seen_again = states(cut)
        assert told_again == told
        for name, array in seen[-1].items():
            assert array.ndim <= 2 and array.dtype != object
            np.testing.assert_array_equal(seen_again[-1][name], array)


def test_the_order_in_which_clients_report_does_not_matter() -> None:
    pytest.importorskip("river")
    told = []
    for order in (CLIENTS, CLIENTS[::-1]):
        watcher = Watcher(Adwin(), 0)
        for number, (counts, wrong) in enumerate(errors(0, 12, 8), 1):
            watcher.update(number, order, counts, wrong.reshape(10, -1)[order].ravel())
        told.append(watcher.state())
    np.testing.assert_array_equal(told[0]["of.shown"], told[1]["of.shown"])


def test_a_hand_holds_enough_and_every_client() -> None:
    assert hands(np.arange(7.0), 3).tolist() == [3.0, 2.5, 3.5]
    seen = Observations("errors", 5, 10)
    assert len(seen.seen(np.ones(9))) == 0 and seen.seen(np.zeros(6)).tolist() == [[pytest.approx(0.6)]]
    assert seen.seen(np.ones(1000)).shape == (5, 1) and len(seen.seen(np.empty(0))) == 0


@pytest.mark.parametrize("name", ["none", "adwin", "page_hinkley", "kswin", "two_sample"])
def test_the_files_tell_the_codes_defaults(name: str) -> None:
    keys = yaml.safe_load((conf_dir() / "detector" / f"{name}.yaml").read_text())
    target = {"none": NoWatch, "adwin": Adwin, "page_hinkley": PageHinkley, "kswin": Kswin, "two_sample": TwoSample}[
        name
    ]
    assert keys.pop("_target_") == f"fedsim.streams.detectors.{target.__name__}"
    assert keys == {key: one.default for key, one in inspect.signature(target).parameters.items()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adwin(where="phone"),
        lambda: Adwin(watch="features"),
        lambda: PageHinkley(votes=0.0),
        lambda: PageHinkley(observations=0),
        lambda: Kswin(window_size=20, stat_size=11),
        lambda: TwoSample(test="t"),
        lambda: TwoSample(level=1.0),
    ],
)
def test_what_cannot_be_is_refused_by_key(make: Callable[[], Watch]) -> None:
    with pytest.raises(FedsimError, match=r"^detector\.\w+="):
        make()


def test_without_river_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    with pytest.raises(
        MissingPackageError, match=r"detector=adwin needs river; run `pip install 'fedsim-flower\[river\]'`"
    ):
        Watcher(Adwin(), 0)
    assert not Watcher(NoWatch(), 0).update(1, CLIENTS, np.ones(10, dtype=int), np.ones(10))
    assert issubclass(Adwin, RiverWatch) and Watcher(TwoSample(), 0)


def test_a_checkpoint_of_another_detector_is_refused() -> None:
    with pytest.raises(FedsimError, match="keeps no detector=two_sample"):
        Watcher(TwoSample(), 0).load_state(Watcher(NoWatch(), 0).state())


START, BEFORE, AFTER = ({"w": torch.full((2,), value), "n": torch.tensor(3)} for value in (0.0, 1.0, 2.0))


def told(response: Response, alarms: set[int], rounds: int = 30) -> dict[int, float]:
    """The rounds after which the arrays are others than aggregation's, and what they are."""
    found = {}
    for number in range(1, rounds + 1):
        response.hear(number, number in alarms)
        arrays = response.arrays(number, START, BEFORE, AFTER)
        assert int(arrays["n"]) == 3
        found[number] = float(arrays["w"][0])
    return {number: value for number, value in found.items() if value != 2.0}


def test_reset_goes_back_once_until_it_has_cooled_down() -> None:
    assert told(Reset(cool_down=5), {4, 6, 9, 10, 11}) == {4: 0.0, 10: 0.0}
    assert told(NoResponse(), {3}) == {}


def test_a_boost_decays_to_nothing() -> None:
    assert told(Boost(factor=8.0, rounds=3, cool_down=2), {5}) == pytest.approx({5: 9.0, 6: 5.0, 7: 3.0})


@pytest.mark.parametrize("make", [lambda: Reset(), lambda: Boost(rounds=6), NoResponse])
def test_a_response_goes_on_from_its_state(make: Callable[[], Response]) -> None:
    whole, half = make(), make()
    for number in range(1, 20):
        if number == 8:
            state, half = half.state(), make()
            half.load_state(state)
        for response in (whole, half):
            response.hear(number, number in (5, 9, 17))
        ours, others = (response.arrays(number, START, BEFORE, AFTER) for response in (whole, half))
        assert torch.equal(ours["w"], others["w"])
    with pytest.raises(FedsimError, match="start anew"):
        half.load_state({})
