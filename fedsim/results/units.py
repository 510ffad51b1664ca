"""Simulated time, energy and carbon as people write them: one that is missing or not finite is a dash, never a zero."""

from __future__ import annotations

import math
from typing import Any

from fedsim.results.formats import DASH, known

JOULES_A_WATT_HOUR = 3600.0


def second_unit(seconds: float) -> tuple[float, str]:
    """The unit that fits so many seconds: its size in seconds and its name."""
    units = ((172_800.0, 86_400.0, "days"), (7_200.0, 3_600.0, "hours"), (120.0, 60.0, "min"))
    return next(((divisor, unit) for least, divisor, unit in units if seconds >= least), (1.0, "s"))


def joule_unit(joules: float) -> tuple[float, str]:
    """The largest unit of which so many joules are at least one: its size in joules and its name."""
    power = 0 if joules < 1000 else min(int(math.log10(joules) // 3), 3)
    return 1000.0**power, ("J", "kJ", "MJ", "GJ")[power]


def gram_unit(grams: float) -> tuple[float, str]:
    """The largest unit of which so many grams are at least one: its size in grams and its name."""
    units = ((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"))
    return next((one for one in units if grams >= one[0]), (1e-3, "mg") if grams > 0 else (1.0, "g"))


def time_text(seconds: Any) -> str:
    """11520 as `3.2 hours`."""
    return _with_unit(seconds, second_unit)


def energy_text(joules: Any) -> str:
    """41000 as `41 kJ`."""
    return _with_unit(joules, joule_unit)


def watt_hours_text(joules: Any) -> str:
    """41000 joules as `11.4 Wh`."""
    if not known(joules):
        return DASH
    hours = joules / JOULES_A_WATT_HOUR
    return f"{_three(hours / 1000)} kWh" if hours >= 1000 else f"{_three(hours)} Wh"


def carbon_text(grams: Any) -> str:
    """5.5 as `5.5 g of CO₂`."""
    return f"{_with_unit(grams, gram_unit)} of CO₂" if known(grams) else DASH


def _with_unit(value: Any, unit_of: Any) -> str:
    if not known(value):
        return DASH
    divisor, unit = unit_of(abs(value))
    return f"{_three(value / divisor)} {unit}"


def _three(value: float) -> str:
    """In three digits, or whole where it has more before the point."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
