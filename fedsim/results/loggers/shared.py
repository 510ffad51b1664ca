"""What the trackers share: which numbers are sent, credentials blotted out, and the tracker's own id of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fedsim.paths import whole
from fedsim.types import MissingPackageError


def scalars(row: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """The round of a row, and its other numbers that are there and finite."""
    return int(row["round"]), {name: value for name, value in numbers(row).items() if name != "round"}


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers of a nested mapping, by path (`federated/accuracy_mean`), without lists, texts and nulls."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """A nested configuration by dotted key, as on the command line: `{"client": {"lr": 1}}` -> `{"client.lr": 1}`."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def import_tracker(name: str) -> Any:
    """The tracker's package, named as its module and its extra are. Raises MissingPackageError."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"logger={name} needs the package {name}, which is not installed: "
            f"pip install 'fedsim-flower[{name}]', or use logger=none"
        ) from error


def without_credentials(text: str) -> str:
    """`text` with the user and password of every URL blotted out: a server's login is no part of a result."""
    return re.sub(r"://[^/@\s'\"]+@", "://***@", text)


def first_line(error: BaseException) -> str:
    """What an error says first, at most 300 characters."""
    return without_credentials(str(error)).strip().split("\n")[0].split(". ")[0][:300] or type(error).__name__


def _id_file(run_dir: Path, tracker: str) -> Path:
    return run_dir / f".{tracker}_run"


def saved_id(run_dir: Path, tracker: str) -> str | None:
    """The tracker's own id of the run in this folder, or None before the first start."""
    path = _id_file(run_dir, tracker)
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def save_id(run_dir: Path, tracker: str, run_id: str) -> None:
    """Remember the id, for a run that is resumed."""
    with whole(_id_file(run_dir, tracker)) as temporary:
        temporary.write_text(run_id + "\n", encoding="utf-8")
