"""What a drift does to examples: to their inputs (covariates), their labels, or how often which label comes.

A shift moves preprocessed rows, each by its own amount: 0 is the old concept, 1 the new one. What it draws is drawn for each
example by name, so that an example is moved alike however often and with whomever it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedsim.checks import require_number
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError

Draw = Callable[[str, int], np.ndarray]
"""draw(name, columns): (n, columns) float64 in (0, 1), independent, the same whenever it is asked for this name."""


class Rows(NamedTuple):
    """What a shift must know of the dataset. shape, floating: of one preprocessed input."""

    task: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    floating: bool


@dataclass(frozen=True)
class Shift:
    """Base class: nothing moves. strength: of amount 1, in the shift's own unit."""

    strength: float
    rows: Rows
    seed: int
    moves_inputs: ClassVar[bool] = False
    moves_targets: ClassVar[bool] = False
    usual: ClassVar[float]
    """The strength where none is given."""
    limits: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def check(self) -> None:
        """Refuse in a sentence what makes no sense for these rows."""

    def inputs(self, x: Tensor, amounts: Tensor, draw: Draw) -> Tensor:
        """(n, ...) inputs, moved; amounts: (n,) float64 above 0."""
        return x

    def targets(self, y: Tensor, amounts: Tensor, draw: Draw) -> Tensor:
        """(n,) targets, moved."""
        return y

    def weights(self, amount: float) -> np.ndarray | None:
        """(classes,) how often a row comes, by its class; None where this shift leaves that alone."""
        return None

    def words(self) -> dict[str, Any]:
        """What else belongs to the truth about this drift."""
        return {}


class _OnInputs(Shift):
    moves_inputs = True

    def check(self) -> None:
        """See Shift."""
        if not self.rows.floating:
            raise FedsimError(
                "the inputs are symbols, which cannot be turned, lit or blurred; set drift.kind=label_swap"
            )


class Rotation(_OnInputs):
    """Images turned counter-clockwise by strength degrees; what turns in from outside is the border's colour."""

    usual = 90.0
    limits = (-360.0, 360.0)

    def check(self) -> None:
        """See Shift."""
        super().check()
        if len(self.rows.shape) != 3:
            raise FedsimError(
                f"inputs of shape {self.rows.shape} are no images (channels, height, width) to turn; set drift.kind=brightness"
            )

    def inputs(self, x: Tensor, amounts: Tensor, draw: Draw) -> Tensor:
        """See Shift. The affine map is in units of half a side, hence the ratios of height and width."""
        height, width = x.shape[-2:]
        angle = torch.deg2rad(self.strength * amounts)
        cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rows = [cos, -sin * height / width, none, sin * width / height, cos, none]
        maps = torch.stack(rows, dim=1).reshape(-1, 2, 3).to(x)  # (n, 2, 3)
        grid = functional.affine_grid(maps, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


class Brightness(_OnInputs):
    """Inputs with strength added, in preprocessed units (standard deviations, as a rule)."""

    usual = 1.0
    limits = (-np.inf, np.inf)

    def inputs(self, x: Tensor, amounts: Tensor, draw: Draw) -> Tensor:
        """See Shift."""
        return x + (self.strength * _beside(amounts, x)).to(x)


class Noise(_OnInputs):
    """Inputs with Gaussian noise of standard deviation strength, in preprocessed units."""

    usual = 1.0

    def inputs(self, x: Tensor, amounts: Tensor, draw: Draw) -> Tensor:
        """See Shift."""
        from scipy.special import ndtri

        noise = torch.from_numpy(ndtri(draw("noise", x[0].numel()))).to(x).reshape(x.shape)
        return x + (self.strength * _beside(amounts, x)).to(x) * noise


class _OnLabels(Shift):
    limits = (0.0, 1.0)

    def check(self) -> None:
        """See Shift."""
        if self.rows.task == "regression":
            raise FedsimError("a regression has no classes whose labels could drift; set drift.kind=target")
        if self.rows.task != "classification" or len(self.rows.classes) < 2:
            raise FedsimError(
                f"rows of a {self.rows.task} dataset with {len(self.rows.classes)} classes have no label that could drift; "
                "set drift.kind=noise, or choose another dataset"
            )


@dataclass(frozen=True)
class LabelSwap(_OnLabels):
    """The concept itself: classes change places, for the share `strength` of examples.

    changing: those that do, each to the next and the last to the first; None: all of them, in an order drawn by the seed.
    """

    changing: Sequence[int] | None = None
    moves_targets: ClassVar[bool] = True
    usual: ClassVar[float] = 1.0

    def check(self) -> None:
        """See Shift."""
        super().check()
        if max(self.changing or [0]) >= len(self.rows.classes):
            raise FedsimError(
                f"drift.classes={list(self.changing or [])} names a class that there is not; number them from 0 to "
                f"{len(self.rows.classes) - 1}"
            )

    @property
    def becomes(self) -> np.ndarray:
        """(classes,) int64 the new label of each class."""
        number = len(self.rows.classes)
        if self.changing is None:
            circle = numpy_generator(self.seed, 0, SERVER, "drift/classes").permutation(number)
        else:
            circle = np.asarray(self.changing)
        becomes = np.arange(number)
        becomes[circle] = np.roll(circle, -1)
        return becomes

    def targets(self, y: Tensor, amounts: Tensor, draw: Draw) -> Tensor:
        """See Shift: a label cannot move in part, so an amount is a chance."""
        moved = torch.from_numpy(draw("swap", 1)[:, 0]).to(y.device) < self.strength * amounts
        return torch.where(moved, torch.from_numpy(self.becomes).to(y.device)[y], y)

    def words(self) -> dict[str, Any]:
        """See Shift."""
        names = self.rows.classes
        return {"becomes": {names[old]: names[new] for old, new in enumerate(self.becomes.tolist()) if old != new}}


class LabelNoise(_OnLabels):
    """Labels that are wrong with chance strength, any other class alike."""

    moves_targets = True
    usual = 0.4

    def targets(self, y: Tensor, amounts: Tensor, draw: Draw) -> Tensor:
        """See Shift."""
        draws = torch.from_numpy(draw("label noise", 2)).to(y.device)  # (n, 2)
        number = len(self.rows.classes)
        step = 1 + (draws[:, 1] * (number - 1)).long()
        return torch.where(draws[:, 0] < self.strength * amounts, (y + step) % number, y)


class Prior(_OnLabels):
    """Other classes come: a row of the favourite class `strength` times as often as one of the least favoured.

    Classes are in an order drawn by the seed; the new concept has the reverse of it. Between them weights are mixed.
    """

    usual = 10.0
    limits = (1.0, np.inf)

    def weights(self, amount: float) -> np.ndarray:
        """See Shift. (classes,), up to 1."""
        return np.asarray((1 - amount) * self.strength**-self._place + amount * self.strength ** (self._place - 1))

    @cached_property
    def _place(self) -> np.ndarray:
        """(classes,) from 0, the favourite of the old concept, to 1."""
        number = len(self.rows.classes)
        return numpy_generator(self.seed, 0, SERVER, "drift/prior").permutation(number) / (number - 1)

    def words(self) -> dict[str, Any]:
        """See Shift."""
        return {
            name: dict(zip(self.rows.classes, self.weights(amount).tolist(), strict=True))
            for name, amount in (("weights_old", 0.0), ("weights_new", 1.0))
        }


class Target(Shift):
    """The concept of a regression: targets times 1 - strength; 2 turns their sign."""

    moves_targets = True
    usual = 2.0

    def check(self) -> None:
        """See Shift."""
        if self.rows.task != "regression":
            raise FedsimError(f"a {self.rows.task} has classes, not numbers to scale; set drift.kind=label_swap")

    def targets(self, y: Tensor, amounts: Tensor, draw: Draw) -> Tensor:
        """See Shift."""
        return y * (1 - self.strength * amounts).to(y)


KINDS: dict[str, type[Shift]] = {
    "label_swap": LabelSwap,
    "rotation": Rotation,
    "brightness": Brightness,
    "noise": Noise,
    "prior": Prior,
    "label_noise": LabelNoise,
    "target": Target,
}


def make_shift(kind: str, strength: float | None, changing: Sequence[int] | None, rows: Rows, seed: int) -> Shift:
    """The shift of this kind, checked against the rows. changing: of label_swap alone."""
    form = KINDS[kind]
    low, high = form.limits
    given = form.usual if strength is None else require_number("drift.strength", strength, low=low, high=high)
    shift = LabelSwap(given, rows, seed, changing) if form is LabelSwap else form(given, rows, seed)
    shift.check()
    return shift


def _beside(amounts: Tensor, x: Tensor) -> Tensor:
    """(n,) amounts as (n, 1, ...), to go with x (n, ...)."""
    return amounts.reshape(-1, *[1] * (x.ndim - 1))
