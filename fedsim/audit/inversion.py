"""`audit=inversion`: what do a client's images look like to one who sees its update? (Geiping et al. 2020, arXiv 2003.14053)

The update of one step on a few images is inverted by Adam on the images themselves, so that their gradient points where
the update does (cosine), with little total variation. Labels are taken as known. Once as it is, once under the run's privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.audit.base import Audit, Subject
from fedsim.audit.verdict import finite
from fedsim.checks import require_int, require_number
from fedsim.training.arrays import load_arrays
from fedsim.types import FedsimError, Params

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedsim.privacy.accounting import Mechanism
    from fedsim.privacy.base import Protection, Setting

    Objective = Callable[[Tensor, Tensor], Tensor]


def gradient_of(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, graph: bool = False) -> list[Tensor]:
    """The gradient of the mean loss by parameter. x: (b, ...); y: (b,). graph: so that it can be differentiated again."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(objective(model(x), y), weights, create_graph=graph, materialize_grads=True))


def privatised(gradients: list[list[Tensor]], clip_norm: float, std: float, generator: torch.Generator) -> list[Tensor]:
    """Each gradient clipped to clip_norm as one vector, their sum, and Gaussian noise of `std`."""
    total = [torch.zeros_like(array) for array in gradients[0]]
    for gradient in gradients:
        norm = math.sqrt(sum(float(array.double().square().sum()) for array in gradient))
        for into, array in zip(total, gradient, strict=True):
            into += array * min(1.0, clip_norm / max(norm, 1e-12))
    return [array + std * torch.randn(array.shape, generator=generator).to(array) for array in total]


def invert(
    model: nn.Module,
    objective: Objective,
    seen: list[Tensor],
    y: Tensor,
    shape: tuple[int, ...],
    bounds: tuple[float, float],
    *,
    steps: int,
    smoothness: float,
    generator: torch.Generator,
) -> Tensor:
    """Images (b, ...) in `bounds` whose gradient points where `seen` (by parameter) does. y: (b,) their labels."""
    model.eval()
    low, high = bounds
    middle, spread = (low + high) / 2, (high - low) / 4
    x = (middle + spread * torch.randn(len(y), *shape, generator=generator)).to(seen[0]).clamp(low, high)
    x.requires_grad_(True)
    adam = torch.optim.Adam([x], lr=0.3 * spread)
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [steps * 3 // 8, steps * 5 // 8, steps * 7 // 8], gamma=0.3)
    length = torch.sqrt(sum_of_products(seen, seen))
    for _ in range(steps):
        own = gradient_of(model, objective, x, y, graph=True)
        cosine = sum_of_products(own, seen) / (torch.sqrt(sum_of_products(own, own) + 1e-20) * length + 1e-20)
        loss = 1 - cosine + smoothness * total_variation(x) / (high - low)
        (x.grad,) = torch.autograd.grad(loss, [x])
        x.grad.sign_()
        adam.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return x.detach()


def sum_of_products(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """The inner product of two lists of arrays, each as one vector."""
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


def total_variation(x: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels. x: (..., height, width)."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def psnr(found: Tensor, true: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each image in dB. Both (b, ...) in [0, 1]."""
    errors = (found - true).double().square().flatten(1).mean(1).clamp(min=1e-10)
    return [round(-10 * math.log10(float(error)), 2) for error in errors]


@dataclass
class InversionAudit(Audit):
    """The keys of `audit=inversion`. images: of the client, one to four. steps: of Adam. smoothness: of total variation."""

    images: int = 4
    steps: int = 400
    smoothness: float = 0.001
    needs_subject: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        require_int("audit.images", self.images, low=1, high=4)
        require_int("audit.steps", self.steps, low=10)
        require_number("audit.smoothness", self.smoothness, low=0)

    def check(self, task: str, input_shape: tuple[int, ...]) -> None:
        """See Audit."""
        channels = input_shape[0] if len(input_shape) == 3 else 1
        if len(input_shape) not in (2, 3) or channels not in (1, 3) or task != "classification":
            raise FedsimError(
                "audit=inversion draws images, and this dataset holds none; choose an image dataset, or set audit=none"
            )

    def begin(self, setting: Setting, protection: Protection, like: Params) -> None:
        """See Audit. Early updates give most away, so the first model is the one that is looked at."""
        self.seed, self.protection = setting.seed, protection
        self.start = {name: array.detach().cpu().clone() for name, array in like.items()}

    def examine(self, subject: Subject) -> None:
        """See Audit."""
        x, y = self._chosen(subject)
        model, objective = subject.model, subject.objective
        load_arrays(model, self.start)
        model.eval()
        low, high = float(subject.member_x.min()), float(subject.member_x.max())
        views = {"plain": gradient_of(model, objective, x, y)}
        if self.protection.unit is not None:
            views["private"] = self._private(model, objective, x, y, subject.lr)
        show = lambda images: ((images - low) / (high - low)).clamp(0, 1).cpu()  # noqa: E731
        self.images_shown, self.psnr = {"originals": _pictures(show(x))}, {}
        for name, seen in views.items():
            generator = rng.generator(self.seed, 0, rng.SERVER, f"inversion {name}")
            found = invert(
                *(model, objective, seen, y, tuple(x.shape[1:]), (low, high)),
                steps=self.steps,
                smoothness=self.smoothness,
                generator=generator,
            )
            self.images_shown[name], self.psnr[name] = _pictures(show(found)), psnr(show(found), show(x))

    def _chosen(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """The first member of each of as many classes, so that labels say which image is which."""
        x, y = subject.member_x, subject.member_y
        self.check(subject.task, tuple(x.shape[1:]))
        firsts = [int((y == label).nonzero()[0]) for label in y.unique()[: self.images]]
        return x[firsts], y[firsts]

    def _private(self, model: nn.Module, objective: Objective, x: Tensor, y: Tensor, lr: float) -> list[Tensor]:
        """What the run's clipping and noise leave: of each example's gradient, or of the whole update (lr times it)."""
        protection: Any = self.protection
        clip_norm = float(
            getattr(getattr(protection, "clip", protection), "clip_norm", 0) or protection.local_steps.clip_norm
        )
        if protection.unit == "example":
            z = float(protection.noise_multiplier_of(0))
            parts = [gradient_of(model, objective, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        else:
            z = float(protection.noise_multiplier)
            parts = [[lr * array for array in gradient_of(model, objective, x, y)]]
        return privatised(parts, clip_norm, z * clip_norm, rng.generator(self.seed, 0, rng.SERVER, "inversion noise"))

    def finish(self, claimed_epsilon: float | None, delta: float, mechanism: Mechanism | None) -> dict[str, Any]:
        """See Audit."""
        means = {name: float(np.mean(values)) for name, values in self.psnr.items()}
        words = [
            f"From the update of one step on {len(self.psnr['plain'])} images, by one who knows the model and the labels, they "
            f"come back at {means['plain']:.1f} dB (PSNR; arXiv 2003.14053)"
            + (
                f", and under the run's clipping and noise at {means['private']:.1f} dB." if "private" in means else "."
            ),
            *(
                ["With privacy, what is seen is a released sum that the client is alone in."]
                if self.protection.sums
                else []
            ),
            "It is an attack, not a bound: a better one may see more.",
        ]
        claimed = math.inf if claimed_epsilon is None else claimed_epsilon
        return {
            "kind": "inversion",
            "unit": self.protection.unit,
            "claimed": finite(claimed),
            "observed": None,
            "delta": delta,
            "confidence": None,
            "verdict": None,
            "psnr": self.psnr,
            "images": self.images_shown,
            "words": words,
        }

    def state(self) -> dict[str, Any]:
        """See Audit."""
        return {name: array.numpy() for name, array in self.start.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Audit."""
        self.start = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}


def _pictures(images: Tensor) -> list[Any]:
    """Nested lists (images, height, width) or (images, height, width, 3), three decimals."""
    if images.ndim == 4:
        images = images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
    return np.round(images.double().numpy(), 3).tolist()
