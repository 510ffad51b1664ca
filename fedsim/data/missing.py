"""Input values that are missing on a device: where the holes are, what fills them, and channels that say where they were.

NaN never travels: a hole is filled where it is made, on the device, by the rule that is configured.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.data.dataset import Dataset
from fedsim.rng import generator

Kind = Literal["values", "sensors"]
Imputation = Literal["zero", "mean"]


def holes(shape: torch.Size, kind: Kind, chance: float, seed: int, client: int, split: str) -> Tensor:
    """(n, ...) bool: the values of a client's inputs of this shape (n, ...) that are missing.

    `values`: each by itself, completely at random. `sensors`: all that a broken sensor of the client measures, in every row and
    split: a column of a table, a channel of a series (channels, time), a pixel of an image with all its colours.
    """
    if kind == "values":
        return torch.rand(shape, generator=generator(seed, 0, client, f"corruption/missing/{split}")) < chance
    own = {2: shape[1:], 3: (shape[1], 1), 4: (1, *shape[2:])}.get(len(shape), shape[1:])
    broken = torch.rand(own, generator=generator(seed, 0, client, "corruption/missing sensors")) < chance
    return broken.expand(shape)


def impute(x: Tensor, missing: Tensor, rule: Imputation) -> Tensor:
    """x (n, ...) with its missing values (n, ...) filled: with 0, or with the mean of what these rows have of the same input.

    0 is the whole dataset's mean after standardisation; it fills what no row has, too.
    """
    there = x.masked_fill(missing, 0)
    if rule == "zero":
        return there
    known = (~missing).sum(0)
    means = there.double().sum(0) / known.clamp(min=1)
    return torch.where(missing, means.to(x), x)


class Indicators(nn.Module):
    """Appends to each input as many channels (or columns) that say which values are missing: 0 here, where none is yet."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, ...) -> (b, 2c, ...)."""
        return torch.cat([x, torch.zeros_like(x)], dim=1)


def with_indicators(dataset: Dataset) -> Dataset:
    """The same rows; what the model takes has channels that say which values are missing, see `Indicators`."""
    return dataclasses.replace(dataset, preprocess=nn.Sequential(dataset.preprocess, Indicators()))
