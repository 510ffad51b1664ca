"""Clipping of a client's whole update, so that no client moves the sum by more than the clipping norm."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fedsim.transforms import Transform
from fedsim.types import FedsimError, Params

UNCLIPPED = "privacy.unclipped"
"""The array beside an update, of one number: +1/2 where it was not clipped, -1/2 where it was (adaptive clipping)."""

BELOW = 1 - 1e-6
"""Scaling aims this far below the norm: rounding to float32 must not lift an update above it."""


def norm_of(arrays: Iterable[Tensor]) -> float:
    """The L2 norm of all arrays as one vector, in float64. Raises FedsimError where an element is NaN or Inf."""
    total = float(sum(array.double().square().sum() for array in arrays))
    if not math.isfinite(total):
        raise FedsimError("its update holds NaN or Inf, which no clipping bounds; lower client.lr")
    return math.sqrt(total)


def clip_to(update: Params, clip_norm: float) -> tuple[Params, bool]:
    """The update scaled to at most `clip_norm`, and whether it was left as it is. A zero update stays zero."""
    norm = norm_of(update.values())
    if norm <= clip_norm:
        return update, True
    return {name: array * (BELOW * clip_norm / norm) for name, array in update.items()}, False


class Clip(Transform):
    """Flat: all arrays as one vector, to norm C. A client with `share` s is clipped to s C, for a stricter promise."""

    def __init__(self, clip_norm: float) -> None:
        self.clip_norm = clip_norm

    def norm_for(self, client: int) -> float:
        """What this client's update is clipped to."""
        return self.clip_norm

    def on_device(self, update: Params, client: int, round: int) -> Params:
        """At most C."""
        return clip_to(update, self.norm_for(client))[0]


class ClipByGroup(Clip):
    """Clients of a stricter budget are clipped to a smaller norm under the same noise, which protects them more.

    shares: (clients,) of the clipping norm, above 0 to 1.
    """

    def __init__(self, clip_norm: float, shares: Tensor) -> None:
        super().__init__(clip_norm)
        self.shares = shares

    def norm_for(self, client: int) -> float:
        """The client's share of C."""
        return self.clip_norm * float(self.shares[client])


class ClipPerLayer(Clip):
    """Each of the L arrays to C / sqrt(L), so that the whole is at most C."""

    def on_device(self, update: Params, client: int, round: int) -> Params:
        """Array by array."""
        each = self.clip_norm / math.sqrt(len(update))
        return {name: clip_to({name: array}, each)[0][name] for name, array in update.items()}


class AdaptiveClip(Clip):
    """C follows a quantile of the clients' norms (Andrew et al. 2021, arXiv 1905.03871, algorithm 1).

    quantile: gamma, the share of clients whose update should NOT be clipped. lr: eta. denominator: expected cohort size.
    """

    def __init__(self, clip_norm: float, quantile: float, lr: float, denominator: float) -> None:
        super().__init__(clip_norm)
        self.quantile, self.lr, self.denominator = quantile, lr, denominator

    def on_device(self, update: Params, client: int, round: int) -> Params:
        """The clipped update, and beside it which side of C its norm was."""
        clipped, unclipped = clip_to(update, self.clip_norm)
        return {**clipped, UNCLIPPED: torch.tensor([0.5 if unclipped else -0.5])}

    def on_server(self, total: Params, round: int) -> Params:
        """C <- C exp(-eta (b - gamma)), with b the noisy share of updates that were not clipped."""
        share = float(total[UNCLIPPED]) / self.denominator + 0.5
        self.clip_norm *= math.exp(-self.lr * (share - self.quantile))
        return {name: array for name, array in total.items() if name != UNCLIPPED}
