"""`python -m experiments.studies tables`: what the sweeps of the ready studies found, into their READMEs.

Reads the finished runs below sweeps/NAME/ of each study that was swept at the size asked for, and writes into
experiments/STUDY/: the table and the machine of that size between their marks in README.md, a line a run in results.csv, and
the pictures of its report into figures/. A study of which nothing was run at this size is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.drift_recovery import SHARED
from experiments.privacy_accuracy.results import renewed
from experiments.study_list import SIZES, STUDIES, Study
from experiments.study_tables import costs_of, grid_of, markdown, runs_of
from fedsim.paths import whole
from fedsim.studies.names import label_of
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).resolve().parent


def machine(runs: pd.DataFrame) -> str:
    """Where and when these runs were made, in a sentence for each machine."""
    lines = []
    for names, own in runs.groupby(["host.cpu", "host.cores", "host.memory_gb", "host.system"]):
        cpu, cores, memory, system = names
        torch = ", ".join(sorted(set(own["versions.torch"])))
        lines.append(
            f"{len(own)} runs on {cores} cores of {cpu}, {memory:g} GB, {system}, Python "
            f"{', '.join(sorted(set(own['versions.python'])))}, torch {torch}; {busy_minutes(own):.1f} minutes in all."
        )
    return "\n".join(lines) + "\n"


def busy_minutes(runs: pd.DataFrame) -> float:
    """How long these runs were on their way: several at a time count once, pauses of more than a minute not at all."""
    ends = [(Path(run) / "summary.json").stat().st_mtime for run in runs["run"]]
    total, until = 0.0, 0.0
    for end, seconds in sorted(zip(ends, runs["seconds"], strict=True), key=lambda one: one[0] - one[1]):
        start = (
            until if end - seconds - until < 60 else end - seconds
        )  # what is between two runs is writing and starting
        total += max(0.0, end - start)
        until = max(until, end)
    return total / 60


FIRST = ("size", "experiment", "seed", "num_clients")
KEPT = (
    *("rounds", "cohort_size", "accuracy", "best_accuracy", "loss", "macro_f1", "federated.accuracy_mean"),
    *(
        "federated.accuracy_worst10",
        "epsilon",
        "noise_multiplier",
        "bytes_up",
        "simulated_seconds",
        "joules",
        "grams_co2",
    ),
    *(
        "cumulative_accuracy",
        SHARED,
        "streams.recovery_rounds",
        "streams.drifts_unrecovered",
        "streams.detection_delay",
        "streams.false_alarms",
        "streams.forgetting",
        "streams.regret_fixed_each",
        "streams.regret_offline_each",
        "streams.offline_accuracy",
        "rounds_to_target",
        "simulated_seconds_to_target",
        "joules_to_target",
        "bytes_up_to_target",
        "seconds",
        "command",
    ),
)
"""Columns of results.csv, beside the keys that the study varies."""


def results(study: Study, runs: pd.DataFrame, size: str, path: Path) -> pd.DataFrame:
    """results.csv anew: these runs, and those of the other size that stand there."""
    import pandas as pd

    asked = (study.rows, *study.within, *study.columns, *study.also)
    keys = [key for key in asked if key not in ("name", "population.num_clients")]
    own = runs.assign(size=size)
    told = [measure.name for measure in (*study.measures, *study.once) if measure.name not in KEPT]
    names = [*FIRST, *(f"config.{key}" for key in keys), *told, *KEPT]
    own = own[[name for name in names if name in own]].rename(columns=lambda name: name.removeprefix("config."))
    own = own.sort_values([name for name in ("experiment", "num_clients", *keys, "seed") if name in own], kind="stable")
    if path.is_file():
        before = pd.read_csv(path)
        own = pd.concat([before[before["size"] != size], own])
    return own.sort_values("size", key=lambda column: column.map(SIZES.index), kind="stable")


def write(name: str, size: str, sweeps: Path, folder: Path) -> bool:
    """All that a study leaves in its folder; whether anything was run at this size."""
    study = STUDIES[name]
    runs = runs_of(study, size, sweeps)
    if runs is None:
        return False
    table = results(study, runs, size, folder / "results.csv")
    with whole(folder / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    readme = folder / "README.md"
    text = renewed(readme.read_text(encoding="utf-8"), f"table {size}", markdown(study, grid_of(study, runs)))
    text = renewed(text, f"cost {size}", markdown(study, costs_of(study, runs)))
    readme.write_text(renewed(text, f"machine {size}", machine(runs)), encoding="utf-8")
    keep_figures(study, runs, size, folder / "figures")
    return True


def keep_figures(study: Study, runs: pd.DataFrame, size: str, folder: Path) -> None:
    """Pictures of the study's report, as PNG; one that the report does not draw of these runs is taken away."""
    from fedsim.studies.report import write_study

    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        write_study(list(runs["run"]), Path(temporary))
        for name in study.figures:
            drawn, kept = Path(temporary) / "figures" / f"{name}.png", folder / f"{size}_{name}.png"
            kept.unlink(missing_ok=True)
            if name == "table":
                draw(study, runs, drawn)
            if drawn.is_file():
                shutil.copy(drawn, kept)


def draw(study: Study, runs: pd.DataFrame, path: Path) -> None:
    """The study's table as a picture."""
    from experiments.study_figure import figure, scatter

    grid, names = grid_of(study, runs), study.rows.endswith("_target_")
    across = study.measures[1].heading if names else label_of(study.rows)
    told = study.measures[0].heading
    title = f"{told[0].upper()}{told[1:]} against {across}; bars are 95% intervals over seeds"
    if names:
        drawn = scatter(grid, title, across, told)
    else:
        once = {measure.heading for measure in study.once}
        accuracy = {row: {head: mean for head, mean in of.items() if head not in once} for row, of in grid.items()}
        drawn = figure(accuracy, title, across, told)
    drawn.savefig(path, format="png", dpi=130)


def main() -> None:
    """Exit status 1 where a study could not be read."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tables"], help="what to write")
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)} (default: all)")
    parser.add_argument("--size", choices=SIZES, help="default: both")
    parser.add_argument("--sweeps", type=Path, default=Path("sweeps"), help="folder of the sweeps")
    given = parser.parse_args()
    if unknown := [name for name in given.studies if name not in STUDIES]:
        parser.error(f"{unknown[0]} is not a study; choose from {', '.join(STUDIES)}")
    failed = False
    for name in given.studies or STUDIES:
        for size in [given.size] if given.size else SIZES:
            try:
                done = write(name, size, given.sweeps, FOLDER / name)
                print(f"{name}, size={size}: {FOLDER / name}/" if done else f"{name}, size={size}: nothing was run")
            except FedsimError as error:
                failed = True
                print(f"{name}, size={size}: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
