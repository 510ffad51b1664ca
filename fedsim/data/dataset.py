"""What a dataset is: examples in memory, two splits, one preprocessing pipeline, and a fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.training.objectives import IGNORED_TARGET
from fedsim.types import FedsimError

Task = Literal["classification", "next_token", "regression"]
"""`classification`: y (n,) int64. `next_token`: x, y (n, length) int64 symbols, y -100 where there is no target.
`regression`: y (n,) float32."""


@dataclass(frozen=True)
class Examples:
    """Rows of a dataset, stored as compactly as they come (bytes stay bytes).

    x: (n, ...) raw inputs. y: (n, ...) targets, see `Task`. user: (n,) int64 index into `Dataset.users`, or None.
    time: (n,) sortable arrival order (days, seconds, or an index), or None. All rows are in the source's own order.
    """

    x: Tensor
    y: Tensor
    user: np.ndarray | None = None
    time: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes = {len(column) for column in (self.x, self.y, self.user, self.time) if column is not None}
        if len(sizes) > 1:
            raise FedsimError(f"a dataset's columns have different lengths ({sorted(sizes)}); every row needs x and y")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """x (k, ...) and y (k, ...) of these row numbers (k,)."""
        index = torch.from_numpy(rows)
        return self.x[index], self.y[index]

    def targets(self, rows: np.ndarray) -> Tensor:
        """y alone."""
        return self.y[torch.from_numpy(rows)]

    def checked(self) -> tuple[Tensor, Tensor]:
        """The x and y that are looked through for mistakes."""
        return self.x, self.y

    @property
    def nbytes(self) -> int:
        """What x and y take in memory."""
        return self.x.nbytes + self.y.nbytes

    @property
    def label(self) -> Any:
        """(n, ...) targets, as an array or what numpy takes for one."""
        return self.y.numpy()

    @property
    def owner(self) -> Any:
        """(n,) the natural user of each row, as an array or what numpy takes for one; None where there are none."""
        return self.user

    @property
    def identity(self) -> str:
        """What stands for the rows in a fingerprint; empty where they stand for themselves."""
        return ""


@dataclass(frozen=True)
class Dataset:
    """A dataset with its train and test split, and the one pipeline for training, evaluation and export.

    classes: names of the classes (or symbols) in the order of their labels; empty for regression.
    preprocess: a module that maps a raw batch (b, ...) to the model's input (b, ...); it has no trainable parameter.
    users: names of the natural users in the order of `Examples.user`; empty where there are none.
    source: where the rows were read from, for people.
    """

    name: str
    train: Examples
    test: Examples
    task: Task
    classes: tuple[str, ...]
    preprocess: nn.Module = field(default_factory=nn.Identity)
    users: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for split, examples in (("train", self.train), ("test", self.test)):
            if len(examples) == 0:
                raise FedsimError(f"dataset {self.name} has no {split} rows")
            x, y = examples.checked()
            if x.is_floating_point() and not torch.isfinite(x).all():
                raise FedsimError(f"dataset {self.name} has NaN or Inf in its {split} inputs; fill or drop those rows")
            self._check_targets(split, y)

    def _check_targets(self, split: str, y: Tensor) -> None:
        wanted = torch.float32 if self.task == "regression" else torch.int64
        if y.dtype != wanted or y.ndim != (2 if self.task == "next_token" else 1):
            shape = "(n, length)" if self.task == "next_token" else "(n,)"
            raise FedsimError(
                f"dataset {self.name} has {split} targets y of type {y.dtype} and shape {tuple(y.shape)}; "
                f"task {self.task} needs {wanted} and {shape}"
            )
        if self.task == "regression":
            if not torch.isfinite(y).all():
                raise FedsimError(f"dataset {self.name} has NaN or Inf among its {split} targets; drop those rows")
            return
        known = y[y != IGNORED_TARGET] if self.task == "next_token" else y
        if len(known) and not (int(known.min()) >= 0 and int(known.max()) < len(self.classes)):
            raise FedsimError(
                f"dataset {self.name} has {split} labels outside 0..{len(self.classes) - 1}; "
                "number the classes from 0 in the order of `classes`"
            )

    @property
    def num_outputs(self) -> int:
        """How many numbers a model gives for one example (or one position of a sequence)."""
        return 1 if self.task == "regression" else len(self.classes)

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed example."""
        with torch.no_grad():
            return tuple(self.preprocess(self.one_row[0]).shape[1:])

    @cached_property
    def one_row(self) -> tuple[Tensor, Tensor]:
        """x (1, ...) and y (1, ...) of the first row, as stored."""
        return self.train.take(np.arange(1))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over both splits' columns: equal where and only where the rows are equal.

        Rows that are made when asked for (`fedsim.data.made`) are not gone through: what they depend on stands for them.
        """
        digest = hashlib.sha256()
        for examples in (self.train, self.test):
            if examples.identity:
                digest.update(examples.identity.encode())
                continue
            for column in (examples.x.numpy(), examples.y.numpy(), examples.user, examples.time):
                if column is not None:
                    digest.update(f"{column.dtype}{column.shape}".encode())
                    digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


class Normalize(nn.Module):
    """Raw bytes 0..255 (b, ...) to float32 (x / 255 - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | list[float], std: float | list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, [channels,] height, width) uint8 -> same shape, float32; per channel where mean is a list."""
        shape = (-1, 1, 1) if self.mean.ndim else ()
        return (x.float() / 255 - self.mean.reshape(shape)) / self.std.reshape(shape)


class Standardize(nn.Module):
    """Features (b, f) to zero mean and unit variance by the training split's moments; a constant column gives 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", torch.where(std > 0, std, torch.ones_like(std)).float())

    @classmethod
    def fit(cls, x: Tensor) -> Standardize:
        """Moments of x (n, f); the population's, since the training rows are all there are."""
        x = x.double()
        return cls(x.mean(0), x.std(0, unbiased=False))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, f) -> (b, f) float32."""
        return (x.float() - self.mean) / self.std


class Symbols(nn.Module):
    """Symbols stored as bytes to the int64 indices that an embedding takes."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, length) of any integer type -> (b, length) int64."""
        return x.long()
