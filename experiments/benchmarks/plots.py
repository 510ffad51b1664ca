"""What was found, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.benchmarks.measure import Spread


def of_engines(found: dict[str, Any], path: Path) -> None:
    """Bars of ratios to the first base, with their spread; a panel for each workload."""
    workloads = list(dict.fromkeys(row["workload"] for row in found["rows"]))
    figure, panels = _figure(len(workloads), 5.0, 0.4 * max(len(found["rows"]) / len(workloads), 4) + 1)
    for workload, panel in zip(workloads, panels, strict=True):
        rows = [row for row in found["rows"] if row["workload"] == workload and row.get("ratio_to")]
        base = next(iter(rows[0]["ratio_to"])) if rows else ""
        ratios = [Spread(*row["ratio_to"][base]) for row in rows]
        errors = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
        colours = ["C0" if row["engine"].startswith("fedsim") else "C7" for row in rows]
        panel.barh([row["engine"] for row in rows], [r.median for r in ratios], xerr=errors, color=colours)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.invert_yaxis()
        panel.set_title(f"{workload}{found['title']}")
        panel.set_xlabel(f"times the {base}")
    _save(figure, path)


def of_scaling(found: dict[str, Any], path: Path) -> None:
    """Client-rounds a second along each axis."""
    figure, panels = _figure(len(found["axes"]), 4.0, 3.5)
    for (axis, points), panel in zip(found["axes"].items(), panels, strict=True):
        lines: dict[str, list[dict[str, Any]]] = {}
        for point in points:
            if "refused" not in point:
                lines.setdefault("fedsim processes" if axis == "workers" else point["engine"], []).append(point)
        for engine, own in lines.items():
            speeds = [Spread(*point["client_rounds_per_second"]) for point in own]
            values = [point["value"] for point in own]
            panel.plot(values, [speed.median for speed in speeds], marker="o", label=engine)
            panel.fill_between(values, [s.low for s in speeds], [s.high for s in speeds], alpha=0.2)
        panel.set_xscale("log", base=2 if axis == "workers" else 10)
        panel.set_yscale("log")
        panel.set_xlabel(axis)
        panel.set_ylabel("client-rounds/s")
        panel.legend(fontsize="small")
    _save(figure, path)


def of_profile(found: dict[str, Any], path: Path) -> None:
    """A bar of each workload, cut into stages."""
    rows = found["rows"]
    figure, (panel,) = _figure(1, 7.0, 0.6 * len(rows) + 1.4)
    names = sorted({stage for row in rows for stage in row["stages"]})
    done = [0.0] * len(rows)
    for name in names:
        shares = [row["stages"].get(name, 0.0) / sum(row["stages"].values()) for row in rows]
        panel.barh([row["workload"] for row in rows], shares, left=done, label=name)
        done = [start + share for start, share in zip(done, shares, strict=True)]
    panel.set_xlabel("share of a round")
    panel.legend(ncols=len(names), fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1))
    _save(figure, path)


PLOTS = {"engines": of_engines, "private": of_engines, "scaling": of_scaling, "profile": of_profile}


def _figure(panels: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120)
