"""Mistakes that published code has made, one by one: each check passes on fedsim and fails once the mistake is built in.

The numbers are those of the list that they come from. Number 5 (shuffling claimed as Poisson sampling) is in
test_accounting.py, and those of DP-SGD and of distributed noise are in test_example_privacy.py and test_distributed.py too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from helpers import failing, parts, play
from test_user_privacy import WIDE, Still, is_normal_with, moved

from fedsim import client as client_module
from fedsim.parts import Parts
from fedsim.privacy.clipping import UNCLIPPED, AdaptiveClip, clip_to, norm_of
from fedsim.training import ClientUpdate
from fedsim.transforms import on_server
from fedsim.types import FedsimError, Params

pytestmark = pytest.mark.usefixtures("no_pictures")

USER = ("privacy=user", "privacy.noise_multiplier=1.5", "privacy.delta=1e-3")
Spoil = Callable[[Parts], None]


def fine(made: Parts) -> None:
    """No mistake."""


def after(spoil: Spoil, *overrides: str) -> Parts:
    made = parts(*overrides)
    spoil(made)
    return made


# 1: a fresh engine every round


def forgets(made: Parts) -> None:
    protection = made.server.protection
    charge = protection.charge

    def fresh(round: int, cohort: np.ndarray) -> None:
        protection.book.releases = 0  # type: ignore[attr-defined]
        charge(round, cohort)

    protection.charge = fresh  # type: ignore[method-assign]


def spends_for_all_rounds(spoil: Spoil) -> bool:
    made = after(spoil, *USER, "sampler=poisson", "sampler.fraction=0.5", "rounds=5")
    play(made)
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.5, GaussianDpEvent(1.5)), 5))
    return made.server.protection.ledger()["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-6)


def test_1_rounds_compose() -> None:
    assert spends_for_all_rounds(fine) and not spends_for_all_rounds(forgets)


# 2: the number of replies in the denominator; 4: no noise for no one


def divides_by_replies(made: Parts) -> None:
    protection, server = made.server.protection, made.server
    train = server._train

    def count(*arguments: object) -> object:
        outcome = train(*arguments)  # type: ignore[arg-type]
        protection.denominator = max(len(outcome.metrics), 1)  # type: ignore[attr-defined]
        return outcome

    server._train = count  # type: ignore[method-assign,assignment]


def keeps_its_noise_under_dropouts(spoil: Spoil) -> bool:
    made = after(spoil, *USER, WIDE[0], *failing(raising=[1, 2, 5]), "rounds=1")
    made.trainer.client_half.correct = Still().correct  # type: ignore[method-assign]
    return is_normal_with(moved(made), 1.5 / 8)


def test_2_the_denominator_is_fixed() -> None:
    assert keeps_its_noise_under_dropouts(fine) and not keeps_its_noise_under_dropouts(divides_by_replies)


def skips_empty_cohorts(made: Parts) -> None:
    protection = made.server.protection
    release = protection.release

    def skip(total: Params, round: int) -> Params:
        return total if not any(array.any() for array in total.values()) else release(total, round)

    protection.release = skip  # type: ignore[method-assign]


def noises_an_empty_cohort(spoil: Spoil) -> bool:
    made = after(spoil, *USER, *WIDE, "sampler=poisson", "sampler.fraction=0.001", "rounds=1")
    values = moved(made)
    assert made.server.state.rows[0]["cohort_size"] == 0
    return bool(values.any()) and is_normal_with(values, 1.5 / 0.008)


def test_4_an_empty_cohort_is_a_round_all_the_same() -> None:
    assert noises_an_empty_cohort(fine) and not noises_an_empty_cohort(skips_empty_cohorts)


# 3: weights by examples; 8: clipping array by array, or not at all


def weighs_by_examples(made: Parts) -> None:
    on_device, sizes = made.server.protection.on_device, made.population.partition.sizes

    def weighted(update: Params, client: int, round: int, memory: dict) -> Params:  # type: ignore[type-arg]
        share = float(sizes[client] / sizes.mean())
        return {name: array * share for name, array in on_device(update, client, round, memory).items()}

    made.server.protection.on_device = weighted  # type: ignore[method-assign]


def clips_array_by_array(made: Parts) -> None:
    def each(update: Params, client: int, round: int, memory: dict) -> Params:  # type: ignore[type-arg]
        return {name: clip_to({name: array}, 1.0)[0][name] for name, array in update.items()}

    made.server.protection.on_device = each  # type: ignore[method-assign]


def total_of(made: Parts) -> Params:
    seen: list[Params] = []
    release = made.server.protection.release

    def spy(total: Params, round: int) -> Params:
        seen.append({name: array.clone() for name, array in total.items()})
        return release(total, round)

    made.server.protection.release = spy  # type: ignore[method-assign]
    play(made)
    return seen[0]


def no_client_moves_the_sum_by_more_than_the_norm(spoil: Spoil) -> bool:
    common = (*USER, "partition=quantity", "client.lr=50", "rounds=1")
    whole = total_of(after(spoil, *common))
    for gone in range(8):
        without = total_of(after(spoil, *common, *failing(raising=[gone])))
        if norm_of(whole[name].double() - without[name].double() for name in whole) > 1 + 1e-4:
            return False
    return True


@pytest.mark.parametrize("mistake", [weighs_by_examples, clips_array_by_array])
def test_3_and_8_a_clients_influence_is_bounded_as_one_vector(mistake: Spoil) -> None:
    assert no_client_moves_the_sum_by_more_than_the_norm(fine)
    assert not no_client_moves_the_sum_by_more_than_the_norm(mistake)


def test_8_a_norm_test_alone_lets_nan_through() -> None:
    bad = {"a": torch.tensor([math.nan, 1.0])}
    norm = float(bad["a"].norm())
    naive = bad["a"] * (1.0 / norm if norm > 1.0 else 1.0)  # NaN > 1 is false
    assert torch.isnan(naive).any()
    with pytest.raises(FedsimError, match="NaN or Inf"):
        clip_to(bad, 1.0)


def test_8_a_client_with_nan_is_left_out_and_the_round_goes_on() -> None:
    made = parts(*USER, *failing(diverging=[3]), "rounds=1")
    arrays = play(made)
    assert all(torch.isfinite(array).all() for array in arrays.values()) and made.server.state.failures == {3: 1}


# 6: noise on every client as if it were alone


def full_noise_each(made: Parts) -> None:
    made.server.protection.clip_norm *= math.sqrt(8)  # type: ignore[attr-defined]


def local_noise_averages_out(spoil: Spoil) -> bool:
    made = after(spoil, "privacy=local", *USER[1:], *WIDE, "rounds=1")
    return is_normal_with(moved(made), 1.5 / math.sqrt(8))


def test_6_the_mean_of_n_messages_has_noise_over_the_root_of_n() -> None:
    assert local_noise_averages_out(fine) and not local_noise_averages_out(full_noise_each)


# 7: noise after the server's optimiser


def noise_after_the_optimiser(made: Parts) -> None:
    server, protection = made.server, made.server.protection
    aggregate, source = server._aggregate, protection.source  # type: ignore[attr-defined]
    protection.noise_removed = True  # type: ignore[attr-defined]

    def late(round: int, outcome: object) -> Params:
        arrays = aggregate(round, outcome)  # type: ignore[arg-type]
        noise = source.gaussian(arrays, 1.5 / 8, round, -1, "noise")
        return {name: array + noise[name] for name, array in arrays.items()}

    server._aggregate = late  # type: ignore[method-assign,assignment]


def the_optimiser_sees_noise(spoil: Spoil) -> bool:
    """Adam's first step has the same size in every coordinate that moved, however large the noise."""
    made = after(spoil, *USER, *WIDE, "strategy=custom", "strategy._target_=test_privacy_traps.still_adam", "rounds=1")
    sizes = moved(made).abs()
    return bool(sizes.max() < 0.011)


def still_adam():  # type: ignore[no-untyped-def]
    """FedAdam of step size 0.01 among clients that learn nothing."""
    from fedsim.algorithms import fedadam

    return fedadam(server_lr=0.01, beta_1=0.0, beta_2=0.0, tau=1e-9)._replace(client=Still())


def test_7_noise_comes_before_the_optimiser() -> None:
    assert the_optimiser_sees_noise(fine) and not the_optimiser_sees_noise(noise_after_the_optimiser)


# 9: numbers in clear beside the update


def sends_its_metrics(made: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = client_module.what_leaves

    def chatty(devices, update, *others):  # type: ignore[no-untyped-def]
        leaving = honest(devices, update, *others)
        assert isinstance(leaving, ClientUpdate)
        return leaving._replace(num_examples=update.num_examples, metrics=update.metrics)

    monkeypatch.setattr(client_module, "what_leaves", chatty)


def replies_hold_no_number_of_the_data(made: Parts) -> bool:
    seen: list[set[tuple[str, float]]] = []
    aggregate = made.server._aggregate

    def spy(round: int, outcome):  # type: ignore[no-untyped-def]
        seen.extend({*metrics.items()} for metrics in outcome.metrics.values())
        return aggregate(round, outcome)

    made.server._aggregate = spy  # type: ignore[method-assign]
    play(made)
    return len(seen) == 8 and all(metrics == {("num-examples", 1.0)} for metrics in seen)


@pytest.mark.parametrize("unit", ["user", "local"])
def test_9_counts_and_losses_are_not_sent(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (f"privacy={unit}", *USER[1:], "rounds=1")
    assert replies_hold_no_number_of_the_data(parts(*overrides))
    made = parts(*overrides)
    sends_its_metrics(made, monkeypatch)
    assert not replies_hold_no_number_of_the_data(made)


# 10: adaptive clipping in the wrong direction


class Backwards(AdaptiveClip):
    """Feeds the share that was clipped where the formula wants the share that was not."""

    def on_server(self, total: Params, round: int) -> Params:
        return super().on_server({**total, UNCLIPPED: -total[UNCLIPPED]}, round)


def finds_the_median(kind: type[AdaptiveClip]) -> bool:
    clip, norms = kind(3.0, 0.5, 0.2, 50), np.linspace(0.1, 4, 50)
    for _ in range(100):
        sent = [clip.on_device({"a": torch.tensor([float(norm)])}, 0, 1) for norm in norms]
        on_server([clip], {UNCLIPPED: torch.stack([update[UNCLIPPED] for update in sent]).sum(0)}, 1)
    return clip.clip_norm == pytest.approx(float(np.median(norms)), rel=0.1)


def test_10_adaptive_clipping_moves_towards_its_quantile() -> None:
    assert finds_the_median(AdaptiveClip) and not finds_the_median(Backwards)


# 11: a published seed


def can_be_reproduced_by_seeds(*overrides: str) -> bool:
    def release() -> torch.Tensor:
        torch.default_generator.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - what an attacker reseeds
        return moved(parts(*USER, *WIDE, *overrides, "rounds=1"))

    return torch.equal(release(), release())


def test_11_secure_noise_cannot_be_reproduced_and_the_ledger_says_which_it_was() -> None:
    assert can_be_reproduced_by_seeds("privacy.secure_rng=false")
    assert not can_be_reproduced_by_seeds("privacy.secure_rng=true")
    said = [
        parts(*USER, f"privacy.secure_rng={secure}").server.protection.ledger()["generator"]
        for secure in ("false", "true")
    ]
    assert "research only" in said[0] and "operating system" in said[1]
