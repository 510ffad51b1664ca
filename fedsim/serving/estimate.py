"""How long an answer takes on devices that are not here: counted operations over the speed that a fleet's profile gives."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedsim.paths import conf_dir


class Profile(NamedTuple):
    """A kind of device. fleets: names of those that it is in. flops: floating-point operations a second that it gets done."""

    fleets: tuple[str, ...]
    kind: str
    flops: float


def profiles() -> list[Profile]:
    """The kinds of devices of conf/fleet/ that have a speed, slowest first."""
    import yaml

    found: dict[tuple[str, float], tuple[str, ...]] = {}
    for path in sorted((conf_dir() / "fleet").glob("*.yaml")):
        part = yaml.safe_load(path.read_text(encoding="utf-8"))
        kinds: dict[str, Any] = (part or {}).get("kinds") or {}
        for kind, own in kinds.items():
            if speed := own.get("gflops"):
                found[kind, speed] = (*found.get((kind, speed), ()), path.stem)
    ordered = sorted(found.items(), key=lambda item: item[0][1])
    return [Profile(fleets, kind, 1e9 * speed) for (kind, speed), fleets in ordered]


def flops_per_example(module: nn.Module, example: Tensor) -> int:
    """Operations of one forward pass (a multiplication and an addition are two), counted by torch. example: (1, ...).

    Without oneDNN, whose LSTM is one operation that the counter does not know.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of GPUs that oneDNN might have
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            module(example)
    return int(counter.get_total_flops())


def estimate(flops: float, flops_per_second: float) -> float:
    """Seconds for one example: the arithmetic alone, a lower bound; memory is waited for too, and operators cost a start each."""
    return flops / flops_per_second
