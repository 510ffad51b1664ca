"""Directions that canaries push the model in: orthogonal, and cheap to make and to measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim import rng
from fedsim.types import Params

WIDEST = 1024
"""Coordinates of one direction at most: more would make it neither more orthogonal nor easier to see."""


@dataclass(frozen=True)
class Directions:
    """Unit vectors of random signs on disjoint sets of coordinates, so that Gaussian noise moves their scores independently.

    places: (canaries, width) indices into all floating arrays laid end to end. signs: (canaries, width) float32, +1 or -1.
    """

    like: Params
    places: np.ndarray
    signs: np.ndarray

    @classmethod
    def draw(cls, like: Params, canaries: int, seed: int) -> Directions:
        """As many as `canaries`, or one a coordinate where the model has fewer."""
        like = {name: torch.empty_like(array, device="meta") for name, array in like.items()}
        size = sum(array.numel() for array in like.values() if array.is_floating_point())
        canaries = min(canaries, size)
        width = min(size // canaries, WIDEST)
        draw = rng.numpy_generator(seed, 0, rng.SERVER, "audit directions")
        places = draw.permutation(size)[: canaries * width].reshape(canaries, width)
        signs = draw.choice(np.array([-1, 1], dtype=np.float32), (canaries, width))
        return cls(like, places, signs)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def width(self) -> int:
        """Coordinates of each direction."""
        return self.places.shape[1]

    @property
    def size(self) -> int:
        """Coordinates of the space that they are in."""
        return sum(array.numel() for array in self.like.values() if array.is_floating_point())

    def vector(self, canary: int, length: float) -> Params:
        """One direction times `length`, of the model's names and shapes, float32; zeros in arrays of whole numbers."""
        flat = torch.zeros(self.size)
        flat[torch.from_numpy(self.places[canary])] = torch.from_numpy(self.signs[canary]) * (length / self.width**0.5)
        arrays, start = {}, 0
        for name, array in self.like.items():
            if array.is_floating_point():
                arrays[name] = flat[start : start + array.numel()].view(array.shape)
                start += array.numel()
            else:
                arrays[name] = torch.zeros(array.shape)
        return arrays

    def along(self, arrays: Params) -> np.ndarray:
        """(canaries,) float64 inner products of all directions with `arrays`, which may hold more names than the model."""
        return (self._flat(arrays)[self.places].astype(np.float64) * self.signs).sum(1) / self.width**0.5

    def product(self, canary: int, arrays: Params) -> float:
        """The inner product of one direction with `arrays`."""
        chosen = self._flat(arrays)[self.places[canary]].astype(np.float64)
        return float((chosen * self.signs[canary]).sum() / self.width**0.5)

    def _flat(self, arrays: Params) -> np.ndarray:
        names = [name for name, array in self.like.items() if array.is_floating_point()]
        return torch.cat([arrays[name].detach().reshape(-1).float().cpu() for name in names]).numpy()


class CanaryUpdates(Sequence[Params]):
    """The updates of a round's canaries, each made when it is asked for: hundreds of a large model do not fit in memory."""

    def __init__(self, directions: Directions, canaries: np.ndarray, length: float) -> None:
        self.directions, self.canaries, self.length = directions, canaries, length

    def __len__(self) -> int:
        return len(self.canaries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return CanaryUpdates(self.directions, self.canaries[index], self.length)
        return self.directions.vector(int(self.canaries[index]), self.length)

    def __iter__(self) -> Iterator[Params]:
        return (self.directions.vector(int(canary), self.length) for canary in self.canaries)
