"""Counted work against counts by hand: FLOPs of every model that ships, bytes of a dense one, what optimisers add."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.fleet.work import Work, count_work
from fedsim.models import CNN, MLP, CharLSTM, CNN1d, Linear, ResNet, TanhCNN
from fedsim.training import OBJECTIVES, LocalTraining
from fedsim.training.dpsgd import MAX_NUMBERS
from fedsim.types import FedsimError

FLOAT = 4


def batch(shape: tuple[int, ...], classes: int, rows: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, *shape, generator=draw), torch.randint(classes, (rows,), generator=draw)


def work_of(
    model: nn.Module, shape: tuple[int, ...], classes: int = 10, private: bool = False, rows: int = 4, **client: Any
) -> Work:
    x, y = batch(shape, classes, rows)
    return count_work(model, OBJECTIVES["classification"], LocalTraining(**client), x, y, private)


def layers(first: int, *others: int) -> int:
    """FLOPs of layers' forward products, and backward for weights and inputs; the first layer's input needs no gradient."""
    return 2 * first + 3 * sum(others)


def dense(a: int, b: int) -> int:
    return 2 * a * b


def conv(positions: int, a: int, b: int, kernel: int) -> int:
    return 2 * positions * a * b * kernel


def resnet_layers() -> int:
    """Stem and three stages of one block on 28x28, 14x14 and 7x7 pictures."""
    stem, stages, width = conv(784, 1, 16, 9), [], 16
    for side, units in ((28, 16), (14, 32), (7, 64)):
        stages += [conv(side**2, width, units, 9), conv(side**2, units, units, 9)]
        stages += [conv(side**2, width, units, 1)] if width != units else []
        width = units
    return layers(stem, *stages, dense(64, 10))


IMAGE, SERIES = (1, 28, 28), (6, 128)

MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], int]] = {
    "linear": (Linear, IMAGE, layers(dense(784, 10))),
    "mlp": (MLP, IMAGE, layers(dense(784, 200), dense(200, 200), dense(200, 10))),
    "cnn": (CNN, IMAGE, layers(conv(784, 1, 32, 25), conv(196, 32, 64, 25), dense(3136, 512), dense(512, 10))),
    "small_cnn": (
        partial(CNN, channels=(16, 32), hidden=128),
        IMAGE,
        layers(conv(784, 1, 16, 25), conv(196, 16, 32, 25), dense(1568, 128), dense(128, 10)),
    ),
    # 13x13 after the first convolution of stride 2, 12x12 pooled, 5x5 after the second, 4x4 pooled
    "tanh_cnn": (
        TanhCNN,
        IMAGE,
        layers(conv(169, 1, 16, 64), conv(25, 16, 32, 16), dense(512, 32), dense(32, 10)),
    ),
    "cnn1d": (CNN1d, SERIES, layers(conv(128, 6, 32, 7), conv(64, 32, 64, 7), conv(32, 64, 64, 7), dense(64, 10))),
    "resnet": (ResNet, IMAGE, resnet_layers()),
}


@pytest.mark.parametrize("name", MODELS)
def test_flops_of_an_example_are_those_counted_by_hand(name: str) -> None:
    model, shape, expected = MODELS[name]
    assert work_of(model(shape, 10), shape).flops_per_example == expected


@pytest.mark.parametrize("layer_count", [1, 2])
def test_flops_of_an_lstm_are_those_counted_by_hand(layer_count: int) -> None:
    """Four gates a layer and symbol, from its input and from its past; the first past is zeros that need no gradient."""
    length, symbols, embedding, hidden = 12, 30, 8, 16
    model = CharLSTM((length,), symbols, embedding, hidden, layer_count)
    x = torch.randint(symbols, (4, length))
    work = count_work(model, OBJECTIVES["next_token"], LocalTraining(), x, x.clone())
    widths = [embedding, hidden][:layer_count]
    forward = length * (sum(dense(4 * hidden, width + hidden) for width in widths) + dense(hidden, symbols))
    assert work.flops_per_example == 3 * forward - layer_count * dense(4 * hidden, hidden)


@pytest.mark.parametrize(
    ("layer", "forward"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 2 * 36 * 8 * 9),
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), 2 * 36 * 12 * 2 * 9),
        (nn.Conv2d(8, 4, 3, stride=2, padding=1, dilation=1), 2 * 9 * 8 * 4 * 9),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), 2 * 36 * 8 * 4 * 4),
    ],
)
def test_convolutions_of_every_sort_cost_thrice_their_forward_pass(layer: nn.Module, forward: int) -> None:
    first = nn.Conv2d(3, 8, 1)
    model = nn.Sequential(first, layer, nn.Flatten())
    expected = layers(conv(36, 3, 8, 1), forward)
    assert work_of(model, (3, 6, 6), classes=4).flops_per_example == expected


def test_attention_is_counted() -> None:
    """Two tokens of width 8 and one head: four projections, and two products of attention, which take no weights."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0].mean(1)

    projected, products = layers(2 * dense(8, 24), 2 * dense(8, 8)), 3 * 2 * dense(2, 2 * 8)
    assert work_of(Attention(), (2, 8), classes=8).flops_per_example == projected + products


def test_a_frozen_layer_costs_no_gradients() -> None:
    model = MLP((10,), 3, hidden=(7,))
    model[1].requires_grad_(False)
    work = work_of(model, (10,), classes=3, lr=1.0)
    assert work.flops_per_example == dense(10, 7) + 2 * dense(7, 3)
    assert work.flops_per_step == 2 * (7 * 3 + 3)
    assert work.fixed_bytes == FLOAT * (10 * 7 + 7 + 2 * (7 * 3 + 3)) + FLOAT


# Of MLP((10,), 3, hidden=(7, 5)): weights, and what its backward pass reads of an example.
NUMBERS = 10 * 7 + 7 + 7 * 5 + 5 + 5 * 3 + 3
KEPT = 7 + 5 + 3  # what the ReLUs gave, which the next layers took, and the log-probabilities
ROW = 10 * FLOAT + 8  # an example and its label
SUM_OF_WEIGHTS = FLOAT  # the cross-entropy keeps how many targets counted


def test_bytes_of_a_dense_model_are_those_counted_by_hand() -> None:
    work = work_of(MLP((10,), 3, hidden=(7, 5)), (10,), classes=3)
    assert work.bytes_per_example == KEPT * FLOAT + ROW
    assert work.fixed_bytes == 2 * NUMBERS * FLOAT + SUM_OF_WEIGHTS
    assert work.memory(16) == work.fixed_bytes + 16 * work.bytes_per_example
    assert np.array_equal(work.memory(np.array([1, 50])), work.fixed_bytes + np.array([1, 50]) * work.bytes_per_example)


@pytest.mark.parametrize(
    ("client", "copies", "flops"),
    [
        ({}, 0, 2),
        ({"momentum": 0.9}, 1, 4),
        ({"weight_decay": 0.1}, 0, 4),
        ({"momentum": 0.9, "weight_decay": 0.1}, 1, 6),
        ({"optimizer": torch.optim.AdamW}, 2, 14),
        ({"optimizer": torch.optim.Adagrad}, 1, 8),
        ({"optimizer": torch.optim.SGD}, 0, 2),
    ],
)
def test_an_optimiser_adds_its_state_and_its_step(client: dict[str, Any], copies: int, flops: int) -> None:
    work = work_of(MLP((10,), 3, hidden=(7, 5)), (10,), classes=3, **client)
    counters = 6 * FLOAT if copies and "optimizer" in client else 0  # torch's own optimisers number each array's steps
    assert work.fixed_bytes == (2 + copies) * NUMBERS * FLOAT + SUM_OF_WEIGHTS + counters
    assert work.flops_per_step == flops * NUMBERS
    assert work.bytes_per_example == KEPT * FLOAT + ROW


def test_dp_sgd_holds_each_examples_gradient_of_so_many_rows() -> None:
    model = MLP((10,), 3, hidden=(7, 5))
    plain, private = (work_of(model, (10,), classes=3, private=private) for private in (False, True))
    assert private.bytes_per_example == plain.bytes_per_example + NUMBERS * FLOAT
    assert private.flops_per_example == plain.flops_per_example + 4 * NUMBERS
    assert (private.fixed_bytes, private.flops_per_step) == (plain.fixed_bytes, plain.flops_per_step)
    assert private.most_rows == 1024 and plain.most_rows == math.inf
    assert private.memory(5000) == private.memory(1024) > private.memory(1000)
    large = work_of(Linear((1000,), 1000), (1000,), classes=1000, private=True)
    assert large.most_rows == MAX_NUMBERS // 1_001_000


def test_memory_follows_the_real_peak_of_a_convolutional_model() -> None:
    """Tensors alive as the backward pass begins, by autograd's own graph: an independent walk over what its nodes hold."""
    model, (x, y) = CNN(IMAGE, 10), batch(IMAGE, 10, 8)
    loss = OBJECTIVES["classification"](model(x), y)
    storages, todo, seen = {}, [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            if isinstance(value, Tensor):
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        todo += [following for following, _ in node.next_functions]
    own = [*model.parameters(), x, y]
    activations = sum(size for at, size in storages.items() if at not in {t.untyped_storage().data_ptr() for t in own})
    weights = sum(p.nbytes for p in model.parameters())
    expected = 2 * weights + x.nbytes + y.nbytes + activations
    assert work_of(model, IMAGE, rows=8).memory(8) == pytest.approx(expected, abs=1)


def test_flops_of_a_round_add_examples_and_steps() -> None:
    work = work_of(Linear((4,), 3), (4,), classes=3)
    examples, steps = np.array([100, 0]), np.array([10, 0])
    assert np.array_equal(work.flops(examples, steps), [100 * 2 * 24 + 10 * 2 * 15, 0])


class Odd(nn.Module):
    """Batch norm, dropout, a shared weight, and a change of its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.norm(self.first(x.relu_()))))


def test_counting_leaves_no_trace() -> None:
    model, (x, y) = Odd().eval(), batch((6,), 6)
    before = {name: array.clone() for name, array in model.state_dict().items()}
    was, state, enabled = x.clone(), torch.get_rng_state(), torch.backends.mkldnn.enabled
    work = count_work(model, OBJECTIVES["classification"], LocalTraining(optimizer=torch.optim.Adam), x, y)
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())
    assert torch.equal(x, was) and torch.equal(torch.get_rng_state(), state) and not model.training
    assert torch.backends.mkldnn.enabled == enabled and all(p.grad is None for p in model.parameters())
    assert work.flops_per_example == layers(dense(6, 6), dense(6, 6))
    weights, buffers = 36 + 6 + 6 + 12, 12  # the shared one once
    assert work.fixed_bytes >= FLOAT * (4 * weights + buffers)
    assert work.fixed_bytes < FLOAT * (4 * (weights + 36))


def test_counting_again_gives_the_same() -> None:
    assert work_of(CNN(IMAGE, 10, dropout=0.5), IMAGE) == work_of(CNN(IMAGE, 10, dropout=0.5), IMAGE)


def test_regression_is_counted() -> None:
    x, y = torch.randn(6, 5), torch.randn(6)
    work = count_work(Linear((5,), 1), OBJECTIVES["regression"], LocalTraining(), x, y)
    assert work.flops_per_example == 2 * dense(5, 1)


def test_a_model_that_does_not_run_is_refused_in_a_sentence() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("only on Tuesdays\nreally")

    with pytest.raises(FedsimError, match=r"cannot be counted on the CPU \(only on Tuesdays\); use fleet=ideal"):
        work_of(Broken(4, 3), (4,), classes=3)
