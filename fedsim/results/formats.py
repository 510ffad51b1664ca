"""How numbers are written for people; one that is missing or not finite is a dash, never a zero."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, TypeGuard

DASH = "\N{EN DASH}"


def known(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def text(value: Any) -> str:
    """Any value as it is."""
    return DASH if value is None or value == "" else str(value)


def percent(share: Any) -> str:
    """0.8731 as `87.3%`."""
    return f"{100 * share:.1f}%" if known(share) else DASH


def count_text(value: Any) -> str:
    """79510 as `79,510`."""
    return f"{value:,.0f}" if known(value) else DASH


def number_text(value: Any) -> str:
    """0.39310124 as `0.3931`."""
    return f"{value:.4g}" if known(value) else DASH


def at_most(value: Any) -> str:
    """An upper bound in four digits, never below it: 7.99412 as `7.995`, 0.00001 as `1e-5`."""
    return _rounded(value, ROUND_CEILING)


def at_least(value: Any) -> str:
    """A lower bound in four digits, never above it: 7.99488 as `7.994`."""
    return _rounded(value, ROUND_FLOOR)


def _rounded(value: Any, way: str) -> str:
    if not known(value):
        return DASH
    exact = Decimal(repr(float(value)))
    shown = exact if exact == 0 else exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), rounding=way)
    return f"{float(shown):.4g}".replace("e-0", "e-").replace("e+0", "e+")


def tenth_text(value: Any) -> str:
    """1234.56 as `1,234.6`."""
    return f"{value:,.1f}" if known(value) else DASH


def tenth_names(clients: int) -> tuple[str, str]:
    """What the worst and the best tenth of so many clients are called: of up to ten clients, each is one client."""
    return ("the worst client", "the best client") if clients <= 10 else ("the worst tenth", "the best tenth")


def bytes_text(count: Any) -> str:
    """A number of bytes with the unit that fits: `12.3 MB` (powers of 1,000)."""
    if not known(count):
        return DASH
    divisor, unit = byte_unit(count)
    return f"{count / divisor:.3g} {unit}" if count / divisor < 1000 else f"{count / divisor:,.0f} {unit}"


def byte_unit(count: float) -> tuple[float, str]:
    """The largest unit of which `count` bytes are at least one: its size in bytes and its name."""
    power = 0 if count < 1000 else min(int(math.log10(count) // 3), 5)
    return 1000.0**power, ("bytes", "kB", "MB", "GB", "TB", "PB")[power]


def duration(seconds: Any) -> str:
    """192 as `3 min 12 s`."""
    if not known(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
