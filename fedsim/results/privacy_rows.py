"""The table of a run's privacy: the keys of privacy.json by names in words, and those that are not known here as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedsim.results.formats import DASH, at_most, count_text, known, number_text, text

ALWAYS = ("mechanism", "unit", "adjacency", "noise_multiplier", "delta", "trust", "against")
"""Shown as a dash where they are missing: without them a promise is not one."""
ELSEWHERE = (
    "epsilon",
    "refuted_epsilon",
    "epsilon_by",
    "rounds_planned",
    "caveats",
    "warnings",
    "reason",
    "noise_removed",
)


def rows_of(ledger: dict[str, Any], claimed: Any, doubtful: bool) -> list[tuple[str, str]]:
    """(name, value) in the order of a reader's questions. doubtful: what was claimed does not hold."""
    rows: list[tuple[str, str]] = []
    for key, (name, show) in NAMED.items():
        if ledger.get(key) is not None or key in ALWAYS:
            rows.append((name, show(ledger.get(key), ledger)))
        elif key == "budget" and "budget" in ledger:
            rows.append((name, "none"))
        if key == "delta":
            rows += _epsilons(ledger, claimed, doubtful)
    unknown = {key: value for key, value in ledger.items() if key not in NAMED and key not in ELSEWHERE}
    return rows + [(_words(key), plain(value, key)) for key, value in unknown.items() if plain(value, key) != DASH]


def _epsilons(ledger: dict[str, Any], claimed: Any, doubtful: bool) -> list[tuple[str, str]]:
    """Epsilon by each accountant, the one that is claimed marked; the claim alone where there are none."""
    by = ledger.get("epsilon_by") or {}
    whose = str(ledger.get("accountant") or "").split(",")[0].strip().lower()
    if claimed is None:
        return []
    mark = " (was claimed)" if doubtful else " (claimed)"
    rows = [
        (f"ε by {name.upper()}{mark if name.lower() == whose else ''}", at_most(value)) for name, value in by.items()
    ]
    return rows if whose in {name.lower() for name in by} else [(f"ε{mark}", at_most(claimed)), *rows]


def plain(value: Any, key: str = "") -> str:
    """A value of any kind as it is: a number in four digits, yes or no, and a short list or map of such."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        inner = {name: plain(item, str(name)) for name, item in value.items()}
        between = "; " if any(isinstance(item, dict) for item in value.values()) else ", "
        return between.join(f"{_words(name).lower()} {shown}" for name, shown in inner.items()) or DASH
    if isinstance(value, list):
        return ", ".join(plain(item, key) for item in value[:12]) + (", …" if len(value) > 12 else "") or DASH
    if isinstance(value, float):
        return at_most(value) if key.startswith("epsilon") else number_text(value)
    return count_text(value) if known(value) else text(value)


def _words(key: Any) -> str:
    name = str(key).replace("_", " ")
    return name[:1].upper() + name[1:]


def _rounds(value: Any, ledger: dict[str, Any]) -> str:
    planned = ledger.get("rounds_planned")
    if not known(planned):
        return count_text(value)
    again = "; a round that was done again counts again" if known(value) and value > planned else ""
    return f"{count_text(value)} of {count_text(planned)} planned{again}"


def _participations(value: Any, ledger: dict[str, Any]) -> str:
    if not isinstance(value, dict):
        return plain(value)
    limit = value.get("limit")
    allowed = f"at most {count_text(limit)} allowed" if known(limit) else "no limit"
    return f"{count_text(value.get('most'))} by the client that took part most; {allowed}"


def _limits(value: Any, ledger: dict[str, Any]) -> str:
    if not isinstance(value, dict) or not (known(value.get("participations")) and known(value.get("separation"))):
        return plain(value)
    most, apart = value["participations"], value["separation"]
    return f"at most {count_text(most)} round{'' if most == 1 else 's'} a client, at least {count_text(apart)} apart"


def _any(value: Any, ledger: dict[str, Any]) -> str:
    return plain(value)


def _upper(value: Any, ledger: dict[str, Any]) -> str:
    return at_most(value)


NAMED: dict[str, tuple[str, Callable[[Any, dict[str, Any]], str]]] = {
    "mechanism": ("Mechanism", _any),
    "unit": ("Unit", _any),
    "adjacency": ("Adjacency", _any),
    "sampling": ("Sampling", _any),
    "noise_multiplier": ("Noise multiplier", _any),
    "clip_norm": ("Clipping norm", _any),
    "sensitivity": ("Sensitivity", _any),
    "denominator": ("Denominator", _any),
    "rounds": ("Rounds released", _rounds),
    "participations": ("Participations", _participations),
    "limits": ("Limits", _limits),
    "delta": ("δ", _upper),
    "accountant": ("Accountant", _any),
    "budget": ("Budget (ε)", _upper),
    "clients_spent": ("Clients whose budget is spent", _any),
    "generator": ("Noise generator", _any),
    "trust": ("Trusted", _any),
    "against": ("Against", _any),
}
