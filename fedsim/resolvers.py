"""What `${cell:}`, `${by_size:}` and `${trials:}` mean in the configuration, to OmegaConf once this module is imported."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedsim.checks import require_choice

SIZES = ("small", "full")
"""What `size` may be, which the experiments of studies have: minutes, or an evening."""

UNNAMED = (
    *("experiment", "name", "size", "device", "grid", "logger", "checkpoint", "evaluation", "dry_run", "baselines"),
    "objectives",
)
"""Keys, or groups of keys, that a cell's folder is not named after, since sweeps are hardly over them. They count in its digest."""

LONGEST = 100
"""Characters of overrides in a folder's name, which file systems limit to 255."""


def cell_name(overrides: Iterable[str]) -> str:
    """The folder of a sweep's cell: its overrides as far as they can be read, and 8 hex digits of SHA-256 of them all.

    Their order does not matter, so that a sweep may gain values and still find its cells. Nothing in it has to be quoted, in a
    shell or in `resume=FOLDER`.
    """
    overrides = sorted(overrides)
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    named = [one for one in overrides if key_of(one).partition(".")[0] not in UNNAMED]
    named.sort(key=lambda one: (key_of(one) == "seed", "." in key_of(one)))  # the last are the likeliest axes, and stay
    while len("_".join(map(_readable, named))) > LONGEST:
        named.pop(0)
    return "_".join([*map(_readable, named), digest])


def _readable(override: str) -> str:
    """`+client.lr=0.1` as lr-0.1."""
    words = override.lstrip("+~")
    key, value = words.partition("=")[0], words.partition("=")[2]
    return re.sub(r"[^\w.-]+", "-", f"{key.rpartition('.')[2]}-{value}", flags=re.ASCII).strip("-_.")


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value` or `~key`."""
    return override.lstrip("+~").partition("=")[0]


def by_size(small: Any, full: Any, *, _root_: DictConfig) -> Any:
    """`small` where the configuration has size=small, `full` where size=full. Raises FedsimError for another size."""
    return small if require_choice("size", _root_.get("size"), SIZES) == "small" else full


def trials(distribution: str, mean: float, shape: float = 1.0, *, _root_: DictConfig) -> int:
    """How often a tuner tries, drawn at random by the configuration's seed: see `privacy.tuning.Trials`."""
    from fedsim.privacy.tuning import Trials  # torch, which a command without a tuner need not wait for

    return Trials(distribution, float(mean), float(shape)).draw(_root_.seed)


def register() -> None:
    """Tell OmegaConf; again is harmless."""
    OmegaConf.register_new_resolver("cell", lambda overrides: cell_name(map(str, overrides)), replace=True)
    OmegaConf.register_new_resolver("by_size", by_size, replace=True)
    OmegaConf.register_new_resolver("trials", trials, replace=True)


register()
