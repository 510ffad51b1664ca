"""Noise has the spread that it was asked for, comes from where it says, and a release of it cannot be told to be weaker."""

import hashlib
import os
import time

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim import rng as draws
from fedsim.privacy.evidence import gaussian_mu_lower_bound, least_rate
from fedsim.privacy.noise import NoiseSource
from fedsim.rng import SERVER, derive_seed, generator, wide_generator
from fedsim.types import FedsimError

LEVEL = 1e-6
LIKE = {"weight": torch.zeros(300, 100), "scale": torch.zeros(()), "empty": torch.zeros(0, 4), "steps": torch.tensor(3)}
SOURCES = [NoiseSource(5, secure=False), NoiseSource(5, secure=True)]


def flat(noise):
    return torch.cat([array.flatten() for array in noise.values()])


def draw(source, std=1.0, round=1, client=SERVER, purpose="noise", like=LIKE):
    return source.gaussian(like, std, round, client, purpose)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("std", [0.37, 20.0])
def test_noise_is_normal_of_the_asked_deviation(source, std):
    drawn = flat(draw(source, std)).double().numpy() / std
    total = float((drawn**2).sum())
    assert LEVEL / 2 < stats.chi2.cdf(total, len(drawn)) < 1 - LEVEL / 2
    assert stats.kstest(drawn, "norm").pvalue > LEVEL
    assert abs(drawn.mean()) * len(drawn) ** 0.5 < stats.norm.isf(LEVEL / 2)


@pytest.mark.parametrize("source", SOURCES)
def test_noise_has_the_shapes_of_the_model_and_is_float(source):
    noise = draw(source)
    assert {name: array.shape for name, array in noise.items()} == {name: array.shape for name, array in LIKE.items()}
    assert {array.dtype for array in noise.values()} == {torch.float32}


@pytest.mark.parametrize("source", SOURCES)
def test_no_deviation_gives_zeros_and_a_bad_one_is_refused(source):
    assert not flat(draw(source, 0.0)).any()
    for std in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="standard deviation"):
            draw(source, std)


def test_the_seeded_source_depends_on_its_four_words_alone():
    first = flat(draw(NoiseSource(5)))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(first, flat(draw(NoiseSource(5))))
    others = [draw(NoiseSource(6)), draw(NoiseSource(5), round=2), draw(NoiseSource(5), client=3)]
    for other in [*others, draw(NoiseSource(5), purpose="count")]:
        correlation = float((first * flat(other)).sum()) / len(first) ** 0.5
        assert abs(correlation) < stats.norm.isf(LEVEL / 2)


# Pairs of (round, client, purpose) under seed 0 whose seeds have the same low 32 bits, which are all that torch takes
SAME_LOW_BITS = {
    "a message": ((96, 501, "local noise"), (126, 816, "local noise")),
    "a step's noise": ((17, 7, "dp-sgd noise 147"), (31, 3, "dp-sgd noise 178")),
    "a step's batch": ((11, 5, "dp-sgd batch 49"), (36, 4, "dp-sgd batch 95")),
}


def are_unrelated(first, second):
    """Whether two vectors of mean 0 and variance 1 differ everywhere and do not correlate."""
    return bool((first != second).float().mean() > 0.99) and abs(
        float((first * second).mean()) * len(first) ** 0.5
    ) < stats.norm.isf(LEVEL / 2)


@pytest.mark.parametrize(("one", "other"), SAME_LOW_BITS.values(), ids=SAME_LOW_BITS)
def test_no_two_draws_share_a_stream(one, other):
    assert derive_seed(0, *one) != derive_seed(0, *other)
    plain = [torch.randn(9, generator=generator(0, *words)) for words in (one, other)]
    assert torch.equal(*plain)  # what torch makes of such a pair of seeds
    noise = [flat(draw(NoiseSource(0), 1.0, *words)) for words in (one, other)]
    assert are_unrelated(*noise)


def test_dp_sgd_draws_its_noise_and_batches_from_streams_of_their_own():
    from helpers import parts

    protection = parts("privacy=example", "privacy.noise_multiplier=1", "privacy.delta=1e-3").server.protection
    noise = [protection.draw_noise(5000, 1.0, *words) for words in SAME_LOW_BITS["a step's noise"]]
    chances = [protection.draw_chances(5000, *words) for words in SAME_LOW_BITS["a step's batch"]]
    assert are_unrelated(*noise) and are_unrelated(*((uniform - 0.5) * 12**0.5 for uniform in chances))


def raw(source, number):
    """(number,) uint32 from a torch generator: 64 bits are two draws, the first the higher."""
    pairs = torch.empty(number // 2, dtype=torch.int64).random_(-(2**63), None, generator=source).numpy()
    high, low = pairs.view(np.uint64) >> np.uint64(32), pairs.view(np.uint64) & np.uint64(0xFFFFFFFF)
    return np.stack([high, low], axis=1).reshape(-1).astype(np.uint32)


@pytest.mark.parametrize("words", [(0, 1, 2, "noise"), (2**40, 0, SERVER, ""), (5, 10**6, 10**9, "π")])
def test_the_wide_generator_is_numpys_twister_in_the_state_that_the_words_hash_to(words):
    name = "/".join(str(word) for word in words).encode()
    key = np.frombuffer(hashlib.shake_256(name).digest(624 * 4), dtype="<u4")
    twister = np.random.MT19937(1)
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    assert np.array_equal(raw(wide_generator(*words), 3000), twister.random_raw(3000).astype(np.uint32))
    one, other = (torch.randn(20, generator=wide_generator(*words)) for _ in range(2))
    assert torch.equal(one, other)


def test_all_of_the_hash_goes_into_the_wide_generator():
    """A bit of any word of the state changes what is drawn."""
    words = np.arange(1, 625, dtype=np.uint32)
    whole = raw(draws._twister(draws._layout(), words), 1248)
    for place in range(1, 624):
        changed = words.copy()
        changed[place] ^= 1 << 17
        assert not np.array_equal(whole, raw(draws._twister(draws._layout(), changed), 1248))


@pytest.mark.parametrize("spoil", ["shifted", "refused"])
def test_a_torch_of_another_layout_is_found_out(monkeypatch, spoil):
    genuine = draws._twister

    def other(layout, words):
        if spoil == "refused":
            raise RuntimeError("RNG state is wrong size")
        return genuine(layout, np.roll(words, 1))

    draws._layout.cache_clear()
    monkeypatch.setattr(draws, "_twister", other)
    with pytest.raises(FedsimError, match=r"privacy\.secure_rng=true"):
        draw(NoiseSource(5))
    monkeypatch.undo()
    assert draw(NoiseSource(5))["scale"].isfinite()  # a failure is not remembered


def test_a_wide_generator_costs_little():
    wide_generator(0, 1, 2, "noise")
    start = time.process_time()
    for client in range(1000):
        wide_generator(0, 1, client, "noise")
    assert time.process_time() - start < 0.5


def test_reseeding_everything_does_not_reproduce_the_secure_source():
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        drawn.append(flat(draw(NoiseSource(5, secure=True))))
    different = (drawn[0] != drawn[1]).float().mean()
    assert different > 0.999


def test_the_secure_source_leaves_other_generators_alone_and_asks_the_operating_system(monkeypatch):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    asked = []
    real = os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: asked.append(size) or real(size))
    draw(NoiseSource(5, secure=True))
    assert asked == [8 * 30_002] * 4
    assert torch.equal(torch_before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_the_secure_source_is_finite_at_the_ends_of_the_unit_interval(monkeypatch, byte):
    monkeypatch.setattr(os, "urandom", lambda size: byte * size)
    noise = flat(draw(NoiseSource(5, secure=True)))
    assert torch.isfinite(noise).all() and (noise.abs() > 16).all()  # four of 8.2 over two


def test_the_ledger_says_which_source_was_used():
    assert "research only" in NoiseSource(5).generator and "operating system" in NoiseSource(5, True).generator


def test_a_million_numbers_take_well_under_a_second():
    start = time.process_time()
    draw(NoiseSource(5), like={"weight": torch.zeros(1000, 1000)})
    assert time.process_time() - start < 0.5


def release(source, std, at, releases=100_000):
    """(releases,) the first coordinate of the sum C e_1 (at = C) or 0 after noise, by draws of their own."""
    noise = source.gaussian({"release": torch.zeros(releases)}, std, 1, at, "release")["release"]
    return noise.double().numpy() + at


@pytest.mark.parametrize("source", SOURCES)
def test_mu_of_a_hundred_thousand_releases_accepts_the_promise_and_catches_a_fifth_too_little(source):
    clip = 1
    honest = gaussian_mu_lower_bound(release(source, 1.0 * clip, clip), release(source, 1.0 * clip, 0), 1 - LEVEL)
    weak = gaussian_mu_lower_bound(release(source, 0.8 * clip, clip), release(source, 0.8 * clip, 0), 1 - LEVEL)
    assert 0.9 < honest <= 1 < weak <= 1.25


def test_the_mu_bound_holds_as_often_as_it_says():
    rng = np.random.default_rng(3)
    bounds = [gaussian_mu_lower_bound(rng.normal(1, 1, 300), rng.normal(0, 1, 300), 0.8) for _ in range(400)]
    wrong = sum(bound > 1 for bound in bounds)
    assert wrong <= stats.binom.isf(LEVEL, 400, 0.2)
    assert np.median(bounds) > 0.3


def test_nothing_is_shown_by_equal_or_too_few_scores():
    rng = np.random.default_rng(4)
    assert gaussian_mu_lower_bound(np.zeros(1000), np.zeros(1000)) == 0
    assert gaussian_mu_lower_bound(rng.normal(0, 1, 1000), rng.normal(2, 1, 1000)) == 0  # the wrong way round
    assert 0 < gaussian_mu_lower_bound(np.ones(1000), np.zeros(1000)) < 6  # apart, yet only as far as 500 can show
    for bad in ([1.0], [1.0, float("nan")], np.zeros((2, 2))):
        with pytest.raises(ValueError, match="finite"):
            gaussian_mu_lower_bound(bad, [0.0, 1.0])


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (480, 1000)])
def test_the_rate_bound_is_clopper_and_pearsons(successes, trials):
    expected = stats.binomtest(successes, trials, alternative="greater").proportion_ci(0.975, "exact").low
    assert least_rate(np.array([successes]), trials, 0.025)[0] == pytest.approx(expected, abs=1e-12)
