"""DP-SGD on a device (Abadi et al. 2016, arXiv 1607.00133): the kind of local steps that hides any one example.

A step draws a Poisson batch from the client's n examples, each with chance q = expected batch / n; clips every example's
gradient; adds the noise to their sum; and divides by the expected batch, never by the drawn one. An empty batch makes a step
of noise alone. What follows (momentum, weight decay, a client half's correction) only looks at the noisy mean.

A round has `LocalTraining.steps(n)` steps, epochs / q of them. The expected batch is client.batch_size; where that is null, or
the client has fewer examples than that, it is all n of them, at rate 1.

Noise that no step of the round can see may be drawn once, at its end: `span.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsim.training.arrays import trained_weights
from fedsim.training.layer_gradients import Gradients
from fedsim.training.objectives import Objective
from fedsim.training.per_example import NOT_FINITE, WAYS, PerExample
from fedsim.training.settings import LocalTraining
from fedsim.training.span import FirstLayer, Span, span_of
from fedsim.training.steps import last_coefficients
from fedsim.training.unchanged import unchanged
from fedsim.types import ClientData, FedsimError, Params

CLIPPINGS = ("flat", "per_layer", "adaptive")
WAY_NAMES = ("auto", *WAYS)

Noise = Callable[[int, float, int, int, str], Tensor]
"""(size, std, round, client, purpose) -> (size,) float32 draws of N(0, std^2), on the CPU."""

Chances = Callable[[int, int, int, str], Tensor]
"""(size, round, client, purpose) -> (size,) float64 draws, uniform in [0, 1), on the CPU."""

MAX_NUMBERS = 2**26
"""Of written-out gradients at a time (256 MiB); a larger batch is taken in parts, whose sums are the same."""
MAX_ROWS = 1024

COUNT_NOISE = 20.0
"""By default the count of unclipped examples is noised by the expected batch over this (arXiv 1905.03871, section 3) or z."""

KEPT = "dp-sgd clip norm"
"""What an adaptive client keeps on its device until it takes part again."""


def expected_batch(settings: LocalTraining, num_examples: int) -> int:
    """Examples that a step takes on average: the batch size, or all where there are fewer."""
    return min(settings.batch_size or num_examples, num_examples)


def update_multiplier(noise_multiplier: float, count_noise: float) -> float:
    """z of the gradients such that they and the noisy count of unclipped examples together cost `noise_multiplier`.

    (z^-2 - (2 sigma_b)^-2)^(-1/2), arXiv 1905.03871, theorem 1. Raises FedsimError where the count alone costs more.
    """
    if noise_multiplier == 0:
        return 0.0
    if 2 * count_noise <= noise_multiplier:
        raise FedsimError(
            f"privacy.count_noise={count_noise:g} must be more than half of the noise multiplier {noise_multiplier:.4g}, "
            "or counting alone would cost more than that; raise it, or leave it out"
        )
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


@dataclass(frozen=True)
class DPSGD:
    """How devices clip and noise.

    noise_multiplier: client -> z, the std of the noise in the sum over the clipping norm; adaptive clipping pays for its count
    out of it. clipping: flat (an example's whole gradient to clip_norm), per_layer (each parameter's to clip_norm over the
    root of their number), or adaptive (flat, to a norm that follows the target_quantile of gradients' norms by steps of
    clip_lr; count_noise is the std of the noise on the count of those unclipped). noise, chances: where draws come from.
    """

    noise_multiplier: Callable[[int], float]
    noise: Noise
    chances: Chances
    clip_norm: float = 1.0
    clipping: str = "flat"
    way: str = "auto"
    target_quantile: float = 0.5
    clip_lr: float = 0.2
    count_noise: float | None = None

    def count_std(self, noise_multiplier: float, batch: int) -> float:
        """Std of the noise on the count of unclipped examples, of a client with this z and expected batch."""
        if noise_multiplier == 0:
            return 0.0
        return max(batch / COUNT_NOISE, noise_multiplier) if self.count_noise is None else self.count_noise


class Batch(NamedTuple):
    """rows: (b,) row numbers, may be none. step: counted from 0 in the round."""

    rows: Tensor
    step: int


class PrivateClient:
    """What one client draws and keeps in one round: its batches, its noise, its clipping norm.

    num_trained: numbers in the weights that training changes. state: what the client kept on its device.
    """

    def __init__(
        self, rule: DPSGD, num_trained: int, settings: LocalTraining, data: ClientData, state: Params, round: int
    ) -> None:
        self.rule, self.num_trained, self.data, self.round = rule, num_trained, data, round
        self.most_rows = max(1, min(MAX_ROWS, MAX_NUMBERS // num_trained))
        self.settings, self.steps = settings, settings.steps(len(data.x))
        self.expected_batch = expected_batch(settings, len(data.x))
        self.rate = self.expected_batch / len(data.x)
        self.clip_norm = float(state[KEPT]) if KEPT in state else rule.clip_norm
        self.noise_multiplier = rule.noise_multiplier(data.client)
        if rule.clipping == "adaptive":
            self.count_std = rule.count_std(self.noise_multiplier, self.expected_batch)
            self.noise_multiplier = update_multiplier(self.noise_multiplier, self.count_std)
        self.span: Span | None = None
        self._first: FirstLayer
        self._drawn: list[Tensor] = []
        self._stds: list[float] = []

    def keep_to_span(self, first: FirstLayer) -> None:
        """Draw all batches now; then, where it saves draws, of the noise in this first layer's weight only what steps can see.

        After the last step the weight lacks `add_unseen_noise`.
        """
        self._drawn = [self._rows(step) for step in range(self.steps)]
        self._first, self.span = first, span_of(self.data.x, self._drawn, first)

    def rows(self, step: int) -> Tensor:
        """Row numbers of a Poisson batch: each example is in it with chance `rate`, whatever the others."""
        return self._drawn[step] if self._drawn else self._rows(step)

    def _rows(self, step: int) -> Tensor:
        chances = self.rule.chances(len(self.data.x), self.round, self.data.client, f"dp-sgd batch {step}")
        return (chances < self.rate).nonzero().flatten()

    def noise(self, step: int) -> Tensor:
        """(num_trained,) of a step, on the CPU; of what keeps to a span, the noise in it."""
        if self.span is None:
            return self._noise(self.num_trained, step)
        seen, others = self._seen(step)
        return torch.cat([(seen.to(self.span.basis) @ self.span.basis).flatten(), others.to(self.span.basis)])

    def noise_in_span(self, step: int, width: int) -> Tensor:
        """The same with the first layer's (outputs, width) in the span's coordinates, which are `width` at most."""
        seen, others = self._seen(step)
        padded = torch.nn.functional.pad(seen, (0, width - seen.shape[1]))
        return torch.cat([padded.flatten(), others])

    def unseen_std(self) -> float:
        """Of the noise in the first layer that all steps leave behind."""
        taken = last_coefficients(self.settings, self.settings.lr_in(self.round), self.steps)
        return math.hypot(*(c * own for c, own in zip(taken, self._stds, strict=True))) / self.expected_batch

    def unseen_noise(self) -> Tensor:
        """(outputs, inputs) whose part outside of the span is to be added, with all steps' noise drawn; on the CPU.

        To be asked for once: a second draw beside the first would tell their mean, which has less noise.
        """
        std = self.unseen_std()
        self._stds = []  # another call raises
        noise = self.rule.noise(self._first.numbers, std, self.round, self.data.client, "dp-sgd unseen noise")
        return noise.view(self._first.outputs, self._first.inputs)

    @torch.no_grad()
    def add_unseen_noise(self, weight: Tensor) -> None:
        """Give the first layer's weight (outputs, inputs), after all steps, the noise that they could not see."""
        if self.span is not None:
            weight += self.span.outside(self.unseen_noise().to(weight))

    def _seen(self, step: int) -> tuple[Tensor, Tensor]:
        """(outputs, u) of the first layer in the span's coordinates, and of all other weights."""
        assert self.span is not None
        size = self._first.outputs * len(self.span.rows)
        drawn = self._noise(size + self.num_trained - self._first.numbers, step)
        return drawn[:size].view(self._first.outputs, -1), drawn[size:]

    def _noise(self, size: int, step: int) -> Tensor:
        std = self.noise_multiplier * self.clip_norm
        self._stds.append(std)
        return self.rule.noise(size, std, self.round, self.data.client, f"dp-sgd noise {step}")

    def adapt(self, centred_count: float, step: int) -> None:
        """Move an adaptive norm towards the quantile.

        An unclipped example counts 1/2 and a clipped one -1/2, so that one example moves the count by no more than 1/2.
        """
        noise = self.rule.noise(1, self.count_std, self.round, self.data.client, f"dp-sgd count {step}")
        share = (centred_count + float(noise)) / self.expected_batch + 0.5
        self.clip_norm *= math.exp(-self.rule.clip_lr * (share - self.rule.target_quantile))

    def end(self, weights: list[Tensor]) -> None:
        """Add the noise that no step could see."""
        self.add_unseen_noise(weights[0])

    def metrics(self) -> dict[str, float]:
        """Nothing: a loss is of the data in clear."""
        return {}

    def keeps(self) -> Params:
        """What stays on the device until the client takes part again."""
        return {KEPT: torch.tensor(self.clip_norm)} if self.rule.clipping == "adaptive" else {}


class PrivateSteps(PrivateClient):
    """One client's steps of one round. Inside `with`, `batches` gives the batches and `gradients` a batch's noisy mean.

    way: one of WAYS.
    """

    def __init__(
        self,
        rule: DPSGD,
        way: str,
        model: nn.Module,
        objective: Objective,
        settings: LocalTraining,
        data: ClientData,
        state: Params,
        round: int,
    ) -> None:
        self.model = model
        self.weights = trained_weights(model)
        super().__init__(rule, sum(weight.numel() for weight in self.weights), settings, data, state, round)
        self._contexts = ExitStack()
        self._open = (WAYS[way](model, objective), unchanged(model, weights=False))
        self._per_example: PerExample

    def __enter__(self) -> PrivateSteps:
        gradients, others = self._open
        self._contexts.enter_context(others)
        self._per_example = self._contexts.enter_context(gradients)
        return self

    def __exit__(self, *error: object) -> None:
        self._contexts.__exit__(*error)  # type: ignore[arg-type]

    def batches(self) -> Iterator[Batch]:
        """The round's Poisson batches."""
        for step in range(self.steps):
            yield Batch(self.rows(step).to(self.data.x.device), step)

    def gradients(self, batch: Batch) -> list[Tensor]:
        """The noisy sum of clipped gradients over the expected batch, in the order of the weights."""
        total = self.noise(batch.step).to(self.weights[0])
        sizes = [weight.numel() for weight in self.weights]
        pieces = [piece.view_as(weight) for piece, weight in zip(total.split(sizes), self.weights, strict=True)]
        unclipped = torch.zeros((), device=total.device)
        for rows in batch.rows.split(self.most_rows) if len(batch.rows) else ():
            with unchanged(self.model, others=False):
                given = self._per_example(self.data.x[rows], self.data.y[rows])
            factors = clip_factors(given, len(rows), self.clip_norm, self.rule.clipping)
            for gradients, piece, factor in zip(given, pieces, factors, strict=True):
                gradients.add_to(piece, factor)
            unclipped += (factors[0] == 1).sum()
        total /= self.expected_batch
        if self.rule.clipping == "adaptive":
            self.adapt(float(unclipped) - len(batch.rows) / 2, batch.step)
        return pieces


def clip_factors(given: list[Gradients], examples: int, clip_norm: float, clipping: str) -> Tensor:
    """(parameters, examples) by how much to multiply, at most 1, as Opacus does. Raises FedsimError at NaN or Inf."""
    squares = torch.stack([gradients.square_norms() for gradients in given])  # (parameters, b)
    assert squares.shape[1] == examples, "a row is an example"
    if clipping == "per_layer":
        norms, limit = squares.sqrt(), clip_norm / math.sqrt(len(given))
    else:
        norms, limit = squares.sum(0).sqrt(), clip_norm
    if not bool(torch.isfinite(norms).all()):
        raise FedsimError(NOT_FINITE)
    return (limit / (norms + 1e-6)).clamp(max=1.0).expand_as(squares)
