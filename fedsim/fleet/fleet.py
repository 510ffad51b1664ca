"""Who has which device: a mixture of kinds, each with medians and how far its devices lie from them.

What a client's device can do depends on the seed and the client's number alone, so that it is the same in every round, in every
process and whoever else is asked for. Three draws make it: the kind, a factor of its speed, and a factor of its network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from fedsim.checks import did_you_mean, require_number, shown
from fedsim.fleet.draws import uniforms
from fedsim.fleet.hardware import Hardware
from fedsim.types import FedsimError

CARBON_INTENSITY = 473.0
"""g CO2 for a kWh: the world's electricity in 2024 (Ember, Global Electricity Review 2025)."""

MIN_BATTERY = 0.2
"""Of its charge, below which nobody would have a device train."""

MUST_HAVE = ("gflops", "memory_mb", "down_mbps", "up_mbps")
"""Figures that no device is without; each is above 0."""

MAY_HAVE: dict[str, float | None] = {
    "latency_ms": 0.0,
    "compute_watts": 0.0,
    "down_watts": 0.0,
    "up_watts": 0.0,
    "battery_wh": None,
    "charge_watts": 0.0,
    "failures_per_hour": 0.0,
}
"""What a device has where nothing is said: no delay, no power drawn, mains instead of a battery, no failures."""

ABOVE_ZERO = (*MUST_HAVE, "battery_wh")
"""Figures that cannot be 0; none can be less."""

SPREADS: dict[str, float | None] = {"spread": 0.0, "network_spread": 0.0}
"""Standard deviation of the logarithm of a device's speed, and of its rates, about the kind's median; 0: all alike."""

MAX_SPREAD = 5.0
"""Devices that differ by a factor of e^5 = 148 at one standard deviation are a typing mistake."""

BITS, MEGA, GIGA, HOUR = 8.0, 1e6, 1e9, 3600.0


class Fleet:
    """What the clients' devices can do.

    kinds: names of the kinds of device. modelled: whether anything takes time, energy or memory. carbon_intensity: g CO2
    for a kWh. min_battery: share of its charge below which a device is left alone.
    """

    kinds: tuple[str, ...] = ()
    modelled: bool = True
    carbon_intensity: float = CARBON_INTENSITY
    min_battery: float = MIN_BATTERY

    def check(self, num_clients: int) -> None:
        """Raise FedsimError where one of the clients 0 to num_clients - 1 has no device."""

    def hardware(self, clients: np.ndarray, seed: int) -> Hardware:
        """The devices of clients (n,), in their order."""
        raise NotImplementedError


class Ideal(Fleet):
    """Devices that take no time and no energy and have room for any model: nothing is modelled."""

    kinds = ("ideal",)
    modelled = False
    carbon_intensity = 0.0

    def hardware(self, clients: np.ndarray, seed: int) -> Hardware:
        """See Fleet."""
        none, without_end = np.zeros(len(clients)), np.full(len(clients), np.inf)
        numbers = {field.name: none for field in fields(Hardware)}
        numbers |= dict.fromkeys(("flops", "memory", "down", "up", "battery"), without_end)
        return Hardware(**{**numbers, "kind": np.zeros(len(clients), dtype=np.int64)})


class Mix(Fleet):
    """Kinds of device by their shares.

    name: what the mixture is called in tables and pictures. kinds: by name, each with the keys of MUST_HAVE and `share`, and any of
    MAY_HAVE and SPREADS. Shares are of their sum, so that one may be changed without the others; 0 leaves a kind out. Speed is
    lognormal about `gflops` with `spread`; down and up share one lognormal factor with `network_spread`, since a good connection is
    good both ways.
    """

    def __init__(
        self,
        name: str,
        kinds: Mapping[str, Mapping[str, Any]],
        carbon_intensity: float = CARBON_INTENSITY,
        min_battery: float = MIN_BATTERY,
    ) -> None:
        self.name = name
        checked = _checked_kinds(kinds)
        self.kinds = tuple(checked)
        self.carbon_intensity = require_number("fleet.carbon_intensity", carbon_intensity, low=0)
        self.min_battery = require_number("fleet.min_battery", min_battery, low=0, below=1)
        column = {name: np.array([kind[name] for kind in checked.values()]) for name in checked[self.kinds[0]]}
        self._medians = hardware_of(np.arange(len(checked)), column)
        self._spread, self._network_spread = column["spread"], column["network_spread"]
        borders = np.cumsum(column["share"])
        if borders[-1] == 0:
            raise FedsimError("every fleet.kinds.*.share is 0, so no client has a device; make one of them above 0")
        self._borders = borders[:-1] / borders[-1]

    def hardware(self, clients: np.ndarray, seed: int) -> Hardware:
        """See Fleet."""
        # a kind of share 0 is nobody's: nothing lies between its borders, and draws lie strictly between 0 and 1
        from scipy.special import ndtri

        kind = np.searchsorted(self._borders, uniforms(seed, "kind", clients))
        median = take(self._medians, kind)
        speed = np.exp(self._spread[kind] * ndtri(uniforms(seed, "speed", clients)))
        network = np.exp(self._network_spread[kind] * ndtri(uniforms(seed, "network", clients)))
        return replace(median, flops=median.flops * speed, down=median.down * network, up=median.up * network)


def hardware_of(kind: np.ndarray, figures: Mapping[str, np.ndarray]) -> Hardware:
    """Figures (n,) in the units of their names as Hardware; those left out are MAY_HAVE's. NaN in battery_wh: on mains."""
    rows = len(kind)

    def given(name: str) -> np.ndarray:
        default = np.nan if MAY_HAVE.get(name) is None else MAY_HAVE[name]
        return np.asarray(figures[name] if name in figures else np.full(rows, default), dtype=np.float64)

    battery = given("battery_wh") * HOUR
    return Hardware(
        kind=kind,
        flops=given("gflops") * GIGA,
        memory=given("memory_mb") * MEGA,
        down=given("down_mbps") * MEGA / BITS,
        up=given("up_mbps") * MEGA / BITS,
        latency=given("latency_ms") / 1000,
        compute_watts=given("compute_watts"),
        down_watts=given("down_watts"),
        up_watts=given("up_watts"),
        battery=np.where(np.isnan(battery), np.inf, battery),
        charge_watts=given("charge_watts"),
        failures=given("failures_per_hour") / HOUR,
    )


def take(hardware: Hardware, rows: np.ndarray) -> Hardware:
    """The devices (n,) of these rows."""
    return Hardware(**{field.name: getattr(hardware, field.name)[rows] for field in fields(Hardware)})


def _checked_kinds(kinds: object) -> dict[str, dict[str, float]]:
    """Every kind with every figure, NaN for a battery that is null. Raises FedsimError naming the key otherwise."""
    if not isinstance(kinds, Mapping) or not kinds:
        raise FedsimError(
            f"fleet.kinds={shown(kinds)} names no kind of device; give each its figures, "
            "as in fleet.kinds={phone:{share:1,gflops:10,memory_mb:1000,down_mbps:50,up_mbps:10}}"
        )
    return {str(name): _checked_kind(f"fleet.kinds.{name}", kind) for name, kind in kinds.items()}


def _checked_kind(key: str, kind: object) -> dict[str, float]:
    if not isinstance(kind, Mapping):
        raise FedsimError(
            f"{key}={shown(kind)} is no kind of device; set its figures one by one, as in {key}.gflops=10"
        )
    needed, default = ("share", *MUST_HAVE), MAY_HAVE | SPREADS
    if unknown := first_unknown(kind, (*needed, *default)):
        raise FedsimError(f"{key}.{unknown[0]} is not a figure of a device{unknown[1]}; leave it out")
    for name in needed:
        if name not in kind:
            raise FedsimError(f"{key} has no {name}; give +{key}.{name}=...")
    return {name: _checked(f"{key}.{name}", name, kind.get(name, default.get(name))) for name in (*needed, *default)}


def first_unknown(names: Iterable[Any], known: Sequence[str]) -> tuple[str, str] | None:
    """The first name that is not known, and ` (did you mean ...?)` or nothing."""
    unknown = [str(name) for name in names if name not in known]
    return (unknown[0], did_you_mean(unknown[0], known)) if unknown else None


def _checked(key: str, name: str, value: object) -> float:
    if value is None and name == "battery_wh":
        return np.nan
    if name in ABOVE_ZERO:
        return require_number(key, value, above=0)
    return require_number(key, value, low=0, high=MAX_SPREAD if name in SPREADS else np.inf)
