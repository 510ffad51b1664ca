"""Where results are kept (JSON beside pictures), and README.md, whose tables are made from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from experiments.benchmarks import machine, plots, tables, targets

FOLDER = Path(__file__).with_name("results")
README = Path(__file__).with_name("README.md")


def keep(name: str, found: dict[str, Any], device: str, out: Path) -> None:
    """Write NAME.json and NAME.png, and show the tables."""
    out.mkdir(parents=True, exist_ok=True)
    whole = {"name": name, "machine": machine.describe(device), **found}
    (out / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    if name in plots.PLOTS:
        plots.PLOTS[name](whole, out / f"{name}.png")
    for table in tables.TABLES[name](whole):
        table.show()


def read(out: Path) -> dict[str, dict[str, Any]]:
    """All results that are there, by name."""
    return {
        path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json")) if path.stem in tables.TABLES
    }


def write_readme(out: Path, readme: Path = README) -> None:
    """Put the tables of what is there between README's marks, and say what is not."""
    found = read(out)
    text = readme.read_text()
    for name in ("targets", *tables.TABLES):
        block = _targets(found) if name == "targets" else _block(name, found.get(name), out, readme)
        before, begin, rest = text.partition(f"<!-- begin {name} -->\n")
        _, end, after = rest.partition(f"<!-- end {name} -->")
        if not end:
            raise ValueError(f"{readme} has no place for {name}")
        text = f"{before}{begin}{block}\n{end}{after}"
    readme.write_text(text)


def _targets(found: dict[str, dict[str, Any]]) -> str:
    return targets.table(found).markdown() if found else "Not measured yet."


def _block(name: str, found: dict[str, Any] | None, out: Path, readme: Path) -> str:
    if found is None:
        return f"Not measured yet: `python -m experiments.benchmarks {name}`."
    parts = [machine.sentence(found["machine"]), *(table.markdown() for table in tables.TABLES[name](found))]
    if (picture := out / f"{name}.png").is_file():
        parts.append(f"![{name}]({os.path.relpath(picture, readme.parent)})")
    return "\n\n".join(parts)
