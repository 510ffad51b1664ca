"""Laws of `fedsim.data.corruption`: stated rates are true rates, the same in every round, and clean data untouched."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import binom, kstest

from fedsim.data.corruption import Corruption
from fedsim.types import FedsimError

CONF = Path(__file__).parent.parent / "conf" / "corruption"
TINY = 1e-6  # how often a true rate may fall outside a statistical bound


def spoil(corruption, x, y, client=0, num_clients=4, num_classes=10, seed=0, training=True):
    return corruption.apply(
        x, y, client=client, num_clients=num_clients, num_classes=num_classes, seed=seed, training=training
    )


def assert_rate(hits: int, trials: int, rate: float) -> None:
    assert binom.ppf(TINY / 2, trials, rate) <= hits <= binom.isf(TINY / 2, trials, rate), (hits, trials, rate)


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_uniform_label_noise_flips_at_the_stated_rate_to_each_other_class_alike(rate, classes):
    y = torch.arange(20_000) % classes
    _, noisy = spoil(Corruption(label_noise=rate), torch.zeros(20_000, 1), y, num_classes=classes)
    flipped = noisy != y
    assert noisy.dtype == y.dtype and noisy.min() >= 0 and noisy.max() < classes
    assert_rate(int(flipped.sum()), 20_000, rate)
    steps = torch.bincount((noisy - y)[flipped] % classes, minlength=classes)
    assert steps[0] == 0
    for count in steps[1:].tolist():
        assert_rate(count, int(flipped.sum()), 1 / (classes - 1))


def test_class_dependent_noise_flips_to_the_next_class_alone():
    y = torch.arange(20_000) % 7
    _, noisy = spoil(
        Corruption(label_noise=0.4, label_noise_kind="class_dependent"), torch.zeros(20_000, 1), y, num_classes=7
    )
    assert set(((noisy - y) % 7).tolist()) == {0, 1}
    assert_rate(int((noisy != y).sum()), 20_000, 0.4)


def test_label_noise_of_symbols_leaves_ignored_targets_and_inputs():
    x = torch.arange(400).reshape(20, 20) % 5
    y = x.clone()
    y[:, 15:] = -100
    spoiled_x, noisy = spoil(Corruption(label_noise=1.0), x, y, num_classes=5)
    assert spoiled_x is x
    assert (noisy[:, 15:] == -100).all() and (noisy[:, :15] != y[:, :15]).all() and (noisy[:, :15] >= 0).all()


def test_held_out_labels_stay_right():
    x, y = torch.zeros(50, 1), torch.arange(50) % 10
    held_x, held_y = spoil(Corruption(label_noise=1.0), x, y, training=False)
    assert held_x is x and held_y is y


def test_feature_noise_grows_over_clients():
    x, y = torch.zeros(50_000, 2), torch.zeros(50_000, dtype=torch.int64)
    for client, training in [(0, True), (3, True), (3, False)]:
        noise = spoil(Corruption(feature_noise=2.0), x, y, client=client, training=training)[0].flatten()
        assert kstest(noise.numpy() / (2.0 * (client + 1) / 4), "norm").pvalue > TINY


def test_splits_and_clients_do_not_share_their_noise():
    x, y = torch.zeros(1000), torch.zeros(1000, dtype=torch.int64)
    draws = [
        spoil(Corruption(feature_noise=1.0), x, y, client=client, training=training)[0]
        for client, training in [(2, True), (2, False), (3, True)]
    ]
    assert (np.abs(np.corrcoef(np.stack(draws)) - np.eye(3)) < 0.2).all()  # 0.2 is more than six deviations


def test_feature_shift_is_one_line_for_a_client_in_both_splits():
    y = torch.zeros(4, dtype=torch.int64)
    x, other = torch.tensor([-1.0, 0.0, 2.0, 5.0]), torch.tensor([3.0, 4.0, -2.0, 0.0])
    lines = set()
    for client in range(4):
        train, _ = spoil(Corruption(feature_shift=0.5), x, y, client=client)
        held, _ = spoil(Corruption(feature_shift=0.5), other, y, client=client, training=False)
        gain, offset = float(train[2] - train[1]) / 2, float(train[1])
        assert gain > 0
        torch.testing.assert_close(train, gain * x + offset)
        torch.testing.assert_close(held, gain * other + offset)
        lines.add((gain, offset))
    assert len(lines) == 4


def test_feature_shift_has_the_stated_size_over_clients():
    x, y = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    moved = torch.stack(
        [spoil(Corruption(feature_shift=0.5), x, y, client=client, num_clients=2000)[0] for client in range(2000)]
    )
    assert kstest(moved[:, 0].numpy() / 0.5, "norm").pvalue > TINY
    assert kstest((moved[:, 1] - moved[:, 0]).log().numpy() / 0.5, "norm").pvalue > TINY


@pytest.mark.parametrize("missing", [0.1, 1.0])
def test_missing_values_are_the_mean_at_the_stated_rate_after_all_noise(missing):
    x, y = torch.ones(2000, 5), torch.zeros(2000, dtype=torch.int64)
    holed, _ = spoil(Corruption(missing=missing, feature_noise=0.5), x, y)
    assert_rate(int((holed == 0).sum()), 10_000, missing)


@pytest.mark.parametrize(
    ("share", "num_clients", "expected"), [(0.3, 10, 3), (0.01, 10, 1), (0.0, 10, 0), (1.0, 10, 10)]
)
def test_noisy_clients_is_an_exact_share_that_the_seed_chooses(share, num_clients, expected):
    y = torch.arange(40) % 10
    corruption = Corruption(label_noise=1.0, noisy_clients=share)

    def spoilt(seed):
        return [
            client
            for client in range(num_clients)
            if spoil(corruption, torch.zeros(40), y, client=client, num_clients=num_clients, seed=seed)[1] is not y
        ]

    assert len(spoilt(0)) == expected and spoilt(0) == spoilt(0)
    if 0 < expected < num_clients:
        assert len({tuple(spoilt(seed)) for seed in range(5)}) > 1


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        Corruption,
        label_noise=st.floats(0, 1),
        label_noise_kind=st.sampled_from(["uniform", "class_dependent"]),
        noisy_clients=st.floats(0, 1),
        feature_noise=st.floats(0, 3),
        feature_shift=st.floats(0, 3),
        missing=st.floats(0, 1),
    ),
    st.integers(0, 4),
    st.integers(0, 2**40),
    st.booleans(),
)
def test_apply_is_pure(corruption, client, seed, training):
    x, y = torch.linspace(-2, 2, 60).reshape(10, 6), torch.arange(10) % 3
    before = x.clone(), y.clone()
    first, second = (spoil(corruption, x, y, client, 5, 3, seed, training) for _ in range(2))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[0].dtype == x.dtype and first[0].shape == x.shape and torch.isfinite(first[0]).all()
    if corruption.is_clean:
        assert first[0] is x and first[1] is y


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 1), st.integers(2, 12), st.integers(5, 300), st.integers(0, 100))
def test_equal_classes_follow_the_exponential_profile(ratio, classes, per_class, seed):
    label = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), per_class))
    kept = Corruption(class_imbalance=ratio).keep_rows(label, classes, seed)
    assert (np.diff(kept) > 0).all()
    expected = np.maximum(per_class * ratio ** (np.arange(classes) / (classes - 1)), 1)
    assert (np.abs(np.bincount(label[kept], minlength=classes) - expected) <= 0.5 + 1e-9).all()
    assert np.array_equal(kept, Corruption(class_imbalance=ratio).keep_rows(label, classes, seed))


def test_the_ratio_holds_for_uneven_classes_and_absent_ones():
    label = np.repeat([0, 1, 3], [1000, 300, 500])  # class 1 is the scarcest for its place, class 2 has no rows
    counts = np.bincount(label[Corruption(class_imbalance=0.1).keep_rows(label, 4, 0)], minlength=4)
    assert counts.tolist() == [646, 300, 0, 65]  # 300 * 10 ** (1 / 3) = 646.3, and a tenth of that


def test_which_rows_stay_depends_on_the_seed_and_not_on_their_place():
    label = np.zeros(2000, np.int64)
    label[::2] = 1
    kept = [Corruption(class_imbalance=0.5).keep_rows(label, 2, seed) for seed in range(2)]
    assert len(kept[0]) == len(kept[1]) == 1500 and not np.array_equal(*kept)
    stayed = kept[0][label[kept[0]] == 1]
    assert_rate(int((stayed < 1000).sum()), 500, 0.5)


def test_no_imbalance_keeps_every_row():
    assert np.array_equal(Corruption().keep_rows(np.array([2, 0, 0]), 3, 0), [0, 1, 2])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, bad) for key in ("label_noise", "noisy_clients", "missing") for bad in (-0.1, 1.1, float("nan"), "x")],
        *[(key, bad) for key in ("feature_noise", "feature_shift") for bad in (-1, float("inf"), True)],
        *[("class_imbalance", bad) for bad in (0, -1, 1.5)],
        *[(key, "pair") for key in ("label_noise_kind", "missing_kind", "imputation")],
        ("indicator", 1),
    ],
)
def test_impossible_values_name_their_key(key, value):
    with pytest.raises(FedsimError, match=rf"^corruption\.{key}={value} .* (set it|choose from|give one) ") as error:
        Corruption(**{key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["feature_noise", "feature_shift", "missing"])
def test_symbols_refuse_feature_effects(key):
    corruption = Corruption(**{key: 0.5})
    with pytest.raises(FedsimError, match=rf"symbols.*corruption\.{key}"):
        corruption.check(floating=False, task="next_token")
    corruption.check(floating=True, task="regression")
    with pytest.raises(FedsimError, match="symbols"):
        spoil(corruption, torch.arange(4), torch.arange(4))


def test_tasks_refuse_what_has_no_meaning_for_them():
    with pytest.raises(FedsimError, match=r"corruption\.label_noise=0"):
        Corruption(label_noise=0.1).check(floating=True, task="regression")
    with pytest.raises(FedsimError, match=r"corruption\.label_noise=0"):
        spoil(Corruption(label_noise=0.1), torch.zeros(3), torch.zeros(3))
    with pytest.raises(FedsimError, match=r"corruption\.label_noise=0"):
        spoil(Corruption(label_noise=0.1), torch.zeros(3), torch.zeros(3, dtype=torch.int64), num_classes=1)
    with pytest.raises(FedsimError, match=r"corruption\.class_imbalance=1"):
        Corruption(class_imbalance=0.1).check(floating=False, task="next_token")
    Corruption(label_noise=0.1).check(floating=False, task="next_token")
    Corruption(label_noise=0.1, class_imbalance=0.1, missing=0.1).check(floating=True, task="classification")


def test_what_is_clean():
    assert Corruption().is_clean and Corruption(label_noise=0.5, noisy_clients=0).is_clean
    for key, value in [("label_noise", 0.1), ("feature_noise", 1), ("feature_shift", 1), ("missing", 1)]:
        assert not Corruption(**{key: value}).is_clean
    assert not Corruption(class_imbalance=0.5, noisy_clients=0).is_clean


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_hold_every_key_and_change_what_they_are_named_after(path):
    preset = OmegaConf.to_container(OmegaConf.load(path))
    assert preset.pop("_target_") == "fedsim.data.corruption.Corruption"
    defaults = asdict(Corruption())
    assert preset.keys() == defaults.keys()
    Corruption(**preset)
    changed = {key for key in preset if preset[key] != defaults[key]}
    broken = {"missing", "missing_kind", "indicator"}
    known = {"none": set(), "pair_flip": {"label_noise", "label_noise_kind"}, "broken_sensors": broken}
    assert changed == known.get(path.stem, {path.stem})


def test_there_are_presets():
    assert {"none", "label_noise", "feature_noise"} <= {path.stem for path in CONF.glob("*.yaml")}
