"""What is wrong with the rows that clients hold: wrong labels, noisy, shifted or missing inputs, rare classes.

`keep_rows` thins the classes before the partition. `apply` spoils what one client holds, after preprocessing; it draws
from (seed, client) alone, so a client's data are spoilt alike in every round, process and resumed run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import require_bool, require_choice
from fedsim.data.dataset import IGNORED_TARGET
from fedsim.data.missing import Imputation, Kind, holes, impute
from fedsim.rng import SERVER, generator, numpy_generator
from fedsim.types import FedsimError


@dataclass(frozen=True)
class Corruption:
    """How rows are spoilt; the defaults spoil nothing. Units of inputs are those after preprocessing.

    label_noise: chance that a training label of a noisy client is wrong; the true rate, since no flip keeps the label.
    label_noise_kind: `uniform` flips to any other class alike, `class_dependent` to the next class, and from the last
        to the first (pair flip, arXiv 1804.06872).
    noisy_clients: share of clients, chosen by the seed, that every effect but class_imbalance touches.
    feature_noise: Gaussian noise of standard deviation feature_noise * i / N on the inputs of the i-th client of N,
        i = 1..N (the noise-based feature skew of NIID-Bench, arXiv 2102.02079).
    feature_shift: a client's sensor maps x to x * exp(feature_shift * a) + feature_shift * b, with a and b standard
        normal and drawn once for the client, for training and held-out rows alike.
    missing: chance that an input value, or with missing_kind `sensors` a whole sensor of a client, is missing.
    imputation: what fills a missing value: `zero`, the mean of standardized inputs, or `mean`, that of the client's own rows.
    indicator: whether as many inputs are appended that say which values are missing (see `fedsim.data.missing`).
    class_imbalance: rows of the smallest class over rows of the largest; exponential in the class number, class 0 the
        largest (arXiv 1906.07413).
    """

    label_noise: float = 0.0
    label_noise_kind: Literal["uniform", "class_dependent"] = "uniform"
    noisy_clients: float = 1.0
    feature_noise: float = 0.0
    feature_shift: float = 0.0
    missing: float = 0.0
    missing_kind: Kind = "values"
    imputation: Imputation = "zero"
    indicator: bool = False
    class_imbalance: float = 1.0

    def __post_init__(self) -> None:
        for key in ("label_noise", "noisy_clients", "missing"):
            _within(key, getattr(self, key), 1.0, "a share from 0 to 1")
        for key in ("feature_noise", "feature_shift"):
            _within(key, getattr(self, key), float("inf"), "a finite number from 0 up")
        _within("class_imbalance", self.class_imbalance, 1.0, "a ratio above 0 and up to 1")
        if self.class_imbalance == 0:
            raise FedsimError(
                "corruption.class_imbalance=0 leaves no rows of a class; set it above 0, to 0.01 for example"
            )
        require_choice("corruption.label_noise_kind", self.label_noise_kind, ("uniform", "class_dependent"))
        require_choice("corruption.missing_kind", self.missing_kind, ("values", "sensors"))
        require_choice("corruption.imputation", self.imputation, ("zero", "mean"))
        require_bool("corruption.indicator", self.indicator)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is spoilt."""
        return self.class_imbalance == 1 and (self.noisy_clients == 0 or not (self.label_noise or self._on_features))

    @property
    def _on_features(self) -> bool:
        return self.feature_noise > 0 or self.feature_shift > 0 or self.missing > 0

    def check(self, floating: bool, task: str) -> None:
        """Refuse what makes no sense for the data, before work starts. floating: whether x is, after preprocessing."""
        if (self._on_features or self.indicator) and not floating:
            raise FedsimError(
                "the inputs are symbols, which have no noise, shift or mean; set corruption.feature_noise, "
                "corruption.feature_shift and corruption.missing to 0, and corruption.indicator=false"
            )
        if self.label_noise and task == "regression":
            raise FedsimError("a regression has no classes to confuse; set corruption.label_noise=0")
        if self.class_imbalance != 1 and task != "classification":
            raise FedsimError(f"rows of a {task} dataset have no class; set corruption.class_imbalance=1")

    def keep_rows(self, label: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
        """Rows that stay, ascending int64: as many as possible in the exponential profile, at least one a class.

        label: (n,) int class numbers. Which rows of a class stay is up to the seed. Class c of C keeps
        largest * class_imbalance ** (c / (C - 1)) rows, where `largest` is as large as the scarcest class lets it be.
        """
        if self.class_imbalance == 1:
            return np.arange(len(label), dtype=np.int64)
        counts = np.bincount(label, minlength=num_classes)
        profile = self.class_imbalance ** (np.arange(num_classes) / max(num_classes - 1, 1))
        there = counts > 0
        largest = (counts[there] / profile[there]).min()
        wanted = np.where(there, np.maximum(np.rint(largest * profile).astype(np.int64), 1), 0)
        order = numpy_generator(seed, 0, SERVER, "corruption/imbalance").permutation(len(label))
        by_class = order[np.argsort(label[order], kind="stable")]  # shuffled within each class
        rank = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.sort(by_class[rank < np.repeat(wanted, counts)]).astype(np.int64)

    def apply(
        self, x: Tensor, y: Tensor, *, client: int, num_clients: int, num_classes: int, seed: int, training: bool
    ) -> tuple[Tensor, Tensor]:
        """All rows of one client's split at once, spoilt; the very same tensors where nothing touches them.

        x: (n, ...) preprocessed inputs; y: (n, ...) targets; training: whether labels are spoilt too. Returns the same
        shapes, types and device, never writes to its arguments.
        """
        labels_too = training and self.label_noise > 0
        if not (labels_too or self._on_features) or not _is_noisy(client, num_clients, self.noisy_clients, seed):
            return x, y
        split = "train" if training else "held-out"  # so that two splits do not share their noise
        if self._on_features:
            self.check(x.is_floating_point(), "classification")
            x = self._spoil_inputs(x, client, (client + 1) / num_clients, seed, split)
        if labels_too:
            y = self._flip(y, num_classes, generator(seed, 0, client, "corruption/label"))
        return x, y

    def _spoil_inputs(self, x: Tensor, client: int, level: float, seed: int, split: str) -> Tensor:
        """The sensor's shift, then noise, then holes, which are known to be holes and so are not noisy."""
        x, *marks = x.chunk(2, dim=1) if self.indicator else (x,)
        if self.feature_shift:
            gain, offset = torch.randn(2, generator=generator(seed, 0, client, "corruption/shift")).tolist()
            x = x * float(np.exp(self.feature_shift * gain)) + self.feature_shift * offset
        if self.feature_noise:
            noise = torch.randn(x.shape, generator=generator(seed, 0, client, f"corruption/noise/{split}"))
            x = x + self.feature_noise * level * noise.to(x)
        if self.missing:
            missing = holes(x.shape, self.missing_kind, self.missing, seed, client, split).to(x.device)
            x = impute(x, missing, self.imputation)
            marks = [missing.to(x) for _ in marks]
        return torch.cat([x, *marks], dim=1) if marks else x

    def _flip(self, y: Tensor, num_classes: int, random: torch.Generator) -> Tensor:
        """y: (n, ...) int64 -> the same with wrong classes at the rate; ignored targets stay as they are."""
        self.check(True, "regression" if y.is_floating_point() else "classification")
        if num_classes < 2:
            raise FedsimError("one class cannot be confused with another; set corruption.label_noise=0")
        flipped = (torch.rand(y.shape, generator=random) < self.label_noise).to(y.device) & (y != IGNORED_TARGET)
        if self.label_noise_kind == "uniform":
            step = torch.randint(1, num_classes, y.shape, generator=random).to(y)
            return torch.where(flipped, (y + step) % num_classes, y)
        return torch.where(flipped, (y + 1) % num_classes, y)


def _within(key: str, value: object, highest: float, meaning: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and np.isfinite(value) and 0 <= value <= highest):  # type: ignore[call-overload,operator]
        raise FedsimError(f"corruption.{key}={value} is not {meaning}; set it to one")


def _is_noisy(client: int, num_clients: int, share: float, seed: int) -> bool:
    return share == 1 or bool(_noisy(num_clients, share, seed)[client])


@lru_cache(maxsize=8)
def _noisy(num_clients: int, share: float, seed: int) -> np.ndarray:
    """(num_clients,) bool, round(share * num_clients) of them true, one at least where share > 0.

    Remembered, since each client asks and the draw costs as much as the population is large.
    """
    count = max(round(share * num_clients), 1 if share > 0 else 0)
    noisy = np.zeros(num_clients, bool)
    noisy[numpy_generator(seed, 0, SERVER, "corruption/clients").permutation(num_clients)[:count]] = True
    noisy.flags.writeable = False
    return noisy
