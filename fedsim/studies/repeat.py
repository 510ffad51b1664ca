"""The command that repeats a study, from the commands of its runs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

START = ["python", "-m", "fedsim"]
MOST_LISTED = 12
NOT_SWEPT = ",{}[]()'\" "
"""What Hydra would read otherwise in a list of values."""


def repeating(commands: Sequence[str]) -> list[str]:
    """Command lines that repeat these runs: one sweep where they are a full grid of the values of their keys, else each run's."""
    different = list(dict.fromkeys(command for command in commands if command))
    parsed = [_overrides(command) for command in different]
    if len(different) < 2 or any(one is None for one in parsed):
        return different
    cells = [one for one in parsed if one is not None]
    keys = list(cells[0])
    if any(list(one) != keys for one in cells):
        return different
    values = {key: list(dict.fromkeys(one[key] for one in cells)) for key in keys}
    swept = [key for key in keys if len(values[key]) > 1]
    if math.prod(len(values[key]) for key in swept) != len(cells):
        return different
    if any(sign in value for key in swept for value in values[key] for sign in NOT_SWEPT):
        return different
    return [shlex.join([*START, "-m", *(f"{key}={','.join(_ordered(values[key]))}" for key in keys)])]


def _overrides(command: str) -> dict[str, str] | None:
    """Key -> value of a run's command, None where it is not one."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if words[: len(START)] != START or any("=" not in word for word in words[len(START) :]):
        return None
    return dict(word.split("=", 1) for word in words[len(START) :])


def _ordered(values: list[str]) -> list[str]:
    """Numbers by size, names as they come."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return values
