"""Checks of what a user typed: each refuses in one sentence that names the configuration key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from fedsim.types import FedsimError


def require_int(key: str, value: object, *, low: int, high: int | None = None) -> int:
    """`value` as an int within [low, high]. Raises FedsimError naming `key` otherwise (a bool is not a number here)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise FedsimError(f"{key}={shown(value)} is not a whole number; give one of at least {low}")
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        raise FedsimError(f"{key}={value} is out of range; it must be {bound}")
    return value


def require_number(
    key: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """`value` as a finite float with low <= value <= high, and strictly above/below where given."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FedsimError(f"{key}={shown(value)} is not a finite number; give one, as in {key}={_example(low, above)}")
    outside = value < low or value > high
    outside |= above is not None and value <= above
    outside |= below is not None and value >= below
    if outside:
        words = [f"above {above:g}"] if above is not None else [f"at least {low:g}"] if low > -math.inf else []
        words += [f"below {below:g}"] if below is not None else [f"at most {high:g}"] if high < math.inf else []
        raise FedsimError(f"{key}={value:g} is out of range; it must be {' and '.join(words)}")
    return float(value)


def require_bool(key: str, value: object) -> bool:
    """`value` where it is true or false. Raises FedsimError naming `key` otherwise."""
    if not isinstance(value, bool):
        raise FedsimError(f"{key}={shown(value)} is neither true nor false; give one of them")
    return value


def shown(value: object) -> str:
    """A value as a user types it: null and true, not None and True."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _example(low: float, above: float | None) -> str:
    return "0.1" if above is not None or low < 0.1 else f"{low:g}"


def require_name(value: object) -> None:
    """Refuse what cannot be the name of a run and of its folder."""
    if not isinstance(value, str) or not value or value.startswith("/") or ".." in value:
        raise FedsimError(f"name={shown(value)} cannot name a run and its folder; give a word, as in name=mine")


def require_choice(key: str, value: object, choices: Iterable[str]) -> str:
    """`value` where it is one of `choices`; else the sentence suggests the closest."""
    choices = list(choices)
    if value not in choices:
        raise FedsimError(
            f"{key}={shown(value)} is not known{did_you_mean(str(value), choices)}; choose from {', '.join(choices)}"
        )
    return str(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` as the tail of a sentence, or nothing where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
