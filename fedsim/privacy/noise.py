"""Where the noise of every mechanism comes from: the run's seed, or the operating system's randomness."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import torch

from fedsim import rng
from fedsim.types import Params

SEEDED = "seeded with the run's seed: for research only; anyone who knows the seed can subtract the noise"
SECURE = "the operating system's"


@dataclass(frozen=True)
class NoiseSource:
    """Gaussian noise by name (seed, round, client, purpose), or, with `secure`, drawn from the operating system.

    A secure source uses neither torch's nor numpy's generators, so that seeding them reproduces nothing, and the same
    four words give new noise each time.
    """

    seed: int
    secure: bool = False

    @property
    def generator(self) -> str:
        """In words, for the ledger."""
        return SECURE if self.secure else SEEDED

    def gaussian(self, like: Params, std: float, round: int, client: int, purpose: str) -> Params:
        """Independent N(0, std^2) in every coordinate, of the names, shapes and devices of `like`, as float32.

        Drawn on the CPU in one go and split in the order of `like`, so that the device does not change it. Raises
        ValueError where std is negative or not finite.
        """
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"noise of standard deviation {std}")
        sizes = [array.numel() for array in like.values()]
        if std == 0:
            flat = torch.zeros(sum(sizes))
        elif self.secure:
            flat = torch.from_numpy((secure_normals(sum(sizes)) * std).astype(np.float32))
        else:
            flat = torch.randn(sum(sizes), generator=rng.wide_generator(self.seed, round, client, purpose)).mul_(std)
        pieces = flat.split(sizes)
        return {name: p.view(like[name].shape).to(like[name].device) for name, p in zip(like, pieces, strict=True)}


def secure_normals(size: int) -> np.ndarray:
    """(size,) float64 standard normals from `os.urandom`, each the sum of four over two.

    The sum hides the low bits by which one inverted float can betray the number that it was added to (Holohan and
    Braghin 2021, arXiv 2107.10138).
    """
    from scipy.special import ndtri

    total = np.zeros(size)
    for _ in range(4):
        integers = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(12)
        total += ndtri(
            (integers + 0.5) * 2.0**-52
        )  # 52 bits and a half are exact: never 0 or 1, whose normal is infinite
    return total / 2
