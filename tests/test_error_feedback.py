"""Error feedback: what a message leaves out comes later. And PowerSGD, whose clients keep a start as well."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compression import SHAPES, draw, flat, shapes_of, through

from fedsim.compression import NF4, Compression, PowerSGD, Quantize, RandomK, Sign, TopK
from fedsim.compression.base import RESIDUAL
from fedsim.compression.powersgd import FACTOR, power_step
from fedsim.types import FedsimError, Params

FED_BACK: dict[str, Callable[[], Compression]] = {
    "topk": lambda: TopK(keep=0.1),
    "topk in float16": lambda: TopK(keep=0.1, values="float16"),
    "randomk": lambda: RandomK(keep=0.2, error_feedback=True),
    "sign": Sign,
    "quantize": lambda: Quantize(bits=3, bucket=64, error_feedback=True),
    "nf4": lambda: NF4(error_feedback=True),
    "powersgd": lambda: PowerSGD(rank=1),
}


def play(codec: Compression, updates: list[Params], state: Params | None = None) -> tuple[np.ndarray, Params]:
    """The sum of what the server decodes over the rounds of one client, and what the client holds at the end."""
    state, total = state or {}, np.zeros(len(flat(updates[0])))
    for round, update in enumerate(updates):
        message, state = codec.encode(update, state, 0, round, 7)
        total += flat(codec.decode(message, shapes_of(update)))
    return total, state


@pytest.mark.parametrize("name", FED_BACK)
def test_all_that_arrived_is_all_that_was_sent_less_the_last_residual(name: str) -> None:
    updates = [draw(SHAPES, seed) for seed in range(30)]
    total, state = play(FED_BACK[name](), updates)
    residual = state[RESIDUAL].double().numpy()
    assert np.allclose(total + residual, sum(flat(update) for update in updates), atol=2e-4)
    assert np.linalg.norm(residual) > 0


@pytest.mark.parametrize("name", FED_BACK)
def test_the_residual_does_not_grow_without_end(name: str) -> None:
    codec, updates = FED_BACK[name](), [draw(SHAPES, seed) for seed in range(5)] * 40
    norms: list[float] = []
    state: Params = {}
    for round, update in enumerate(updates):
        _, state = codec.encode(update, state, 0, round, 7)
        norms.append(float(state[RESIDUAL].norm()))
    assert max(norms[100:]) < 1.5 * max(norms[:100])


def test_topk_keeps_the_residual_within_the_bound_of_its_contraction() -> None:
    updates = [draw(SHAPES, seed) for seed in range(60)]
    largest = max(float(np.linalg.norm(flat(update))) for update in updates)
    _, state = play(TopK(keep=0.25), updates)
    delta = round(0.25 * 308) / 308
    assert float(state[RESIDUAL].norm()) <= 2 * (1 - delta) ** 0.5 / delta * largest  # arXiv 1901.09847, lemma 3


def test_a_small_coordinate_is_sent_in_time_with_feedback_and_never_without() -> None:
    updates = [{"v": torch.tensor([10.0 * (-1) ** i, 1.0])} for i in range(100)]
    without, _ = play(TopK(keep=0.5, error_feedback=False), updates)
    with_it, state = play(TopK(keep=0.5), updates)
    assert without[1] == 0 and with_it[1] == 100 - state[RESIDUAL][1] and with_it[1] > 85


def test_a_codec_without_feedback_keeps_nothing() -> None:
    for codec in (TopK(error_feedback=False), Sign(error_feedback=False), NF4(), Quantize(), RandomK()):
        assert codec.encode(draw(SHAPES), {}, 0, 0, 0)[1] == {}
    assert set(PowerSGD(2, error_feedback=False).encode(draw(SHAPES), {}, 0, 0, 0)[1]) == {FACTOR + "w"}


def test_a_state_is_read_and_not_changed_and_may_hold_more() -> None:
    codec, update = PowerSGD(rank=2), draw(SHAPES)
    _, state = codec.encode(update, {}, 0, 0, 0)
    given = {**state, "another": torch.ones(3)}
    before = {name: array.clone() for name, array in given.items()}
    message, kept = codec.encode(update, given, 0, 1, 0)
    assert all(torch.equal(given[name], before[name]) for name in before)
    assert kept.keys() == state.keys() == {RESIDUAL, FACTOR + "w"}
    assert message != codec.encode(update, {}, 0, 1, 0)[0]


@pytest.mark.parametrize(("name", "array"), [(RESIDUAL, torch.zeros(5)), (FACTOR + "w", torch.zeros(30, 3))])
def test_a_state_of_another_model_is_refused(name: str, array: torch.Tensor) -> None:
    with pytest.raises(FedsimError, match="start the run anew"):
        PowerSGD(rank=2).encode(draw(SHAPES), {name: array}, 0, 0, 0)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=60), st.floats(0.05, 1))
@settings(max_examples=150, deadline=None)
def test_topk_contracts_by_its_share(numbers: list[float], keep: float) -> None:
    update = {"v": torch.tensor(numbers)}
    left, whole = flat(through(TopK(keep), update)) - flat(update), flat(update)
    count = max(1, round(keep * len(numbers)))
    assert left @ left <= (1 - count / len(numbers)) * (whole @ whole) * (1 + 1e-6)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_signs_err_as_the_papers_lemma_says(numbers: list[float]) -> None:
    update = {"v": torch.tensor(numbers)}
    left, whole = flat(through(Sign(), update)) - flat(update), flat(update)
    expected = whole @ whole - np.abs(whole).sum() ** 2 / len(whole)
    assert left @ left == pytest.approx(expected, rel=1e-4, abs=1e-5 * (whole @ whole))


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=17), st.integers(2, 8))
@settings(max_examples=100, deadline=None)
def test_nearest_levels_contract_in_buckets_that_are_allowed(numbers: list[float], bits: int) -> None:
    update = {"v": torch.tensor(numbers)}
    codec = Quantize(bits, None, error_feedback=True)
    codec.check(shapes_of(update))
    left, whole = flat(through(codec, update)) - flat(update), flat(update)
    share = len(numbers) / (2 * (2**bits - 1) ** 2)
    assert left @ left <= share * (whole @ whole) + 1e-6 * (whole @ whole) + 1e-80


def singular_tail(matrix: np.ndarray, rank: int) -> float:
    """The least squared error of any matrix of this rank (Eckart and Young)."""
    return float(np.square(np.linalg.svd(matrix, compute_uv=False)[rank:]).sum())


@pytest.mark.parametrize("scale", [1.0, 1e26, 1e-36])
def test_powersgd_is_exact_where_the_rank_suffices(scale: float) -> None:
    draws = np.random.default_rng(0)
    low = torch.from_numpy((draws.standard_normal((20, 3)) @ draws.standard_normal((3, 45))).astype(np.float32)) * scale
    assert np.linalg.matrix_rank(low.double().numpy(), tol=1e-4 * scale) == 3
    for rank in (3, 5):
        found = through(PowerSGD(rank), {"w": low})["w"]
        assert torch.allclose(found / scale, low / scale, atol=1e-4)


def test_powersgd_reaches_the_best_rank_by_starting_where_it_ended() -> None:
    update = draw({"w": torch.Size((30, 40))}, seed=2)
    codec, errors = PowerSGD(3, error_feedback=False), []
    state: Params = {}
    for round in range(60):
        message, state = codec.encode(update, state, 0, round, 0)
        errors.append(float((codec.decode(message, shapes_of(update))["w"] - update["w"]).square().sum()))
    best = singular_tail(update["w"].double().numpy(), 3)
    assert errors[0] > 1.05 * best and errors[-1] == pytest.approx(best, rel=0.01)
    assert min(errors) >= best * (1 - 1e-5) and sorted(errors, reverse=True)[:5] == errors[:5]


def test_a_power_step_projects_onto_orthonormal_columns() -> None:
    matrix = draw({"w": torch.Size((12, 9))})["w"]
    left, right, start = power_step(matrix, torch.randn(9, 2, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(left.T @ left, torch.eye(2), atol=1e-5)
    assert torch.allclose(left @ right.T, left @ left.T @ matrix, atol=1e-5)
    assert float(start.norm()) == pytest.approx(1, rel=1e-5)


def test_powersgd_recovers_from_a_round_without_change() -> None:
    still, moving = {"w": torch.zeros(12, 10)}, {"w": torch.outer(torch.ones(12), torch.arange(10.0))}
    codec = PowerSGD(1, error_feedback=False)
    for state in (codec.encode(still, {}, 0, 0, 0)[1], {FACTOR + "w": torch.zeros(10, 1)}):
        for round in (1, 2):
            message, state = codec.encode(moving, state, 0, round, 0)
        assert torch.allclose(codec.decode(message, shapes_of(moving))["w"], moving["w"], atol=1e-4)
