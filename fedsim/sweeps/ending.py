"""The end of a sweep: its report, what tuning cost in privacy, and a line for each cell that failed."""

from __future__ import annotations

import os
from pathlib import Path

from fedsim.command import Command
from fedsim.errors import Failure, Interrupted, is_stop, sentence
from fedsim.sweeps.state import Sweep, read_state
from fedsim.types import FedsimError
from fedsim.undo import undo_sweep


def end_sweep(command: Command) -> None:
    """Make the report and say so; what went wrong is in the command's failures, each to be told in a line."""
    assert command.sweep_dir is not None
    sweep = read_state(command.sweep_dir)
    if sweep is not None:
        failures = [Failure(FedsimError(cell["reason"]), f"cell {sweep.words(cell)}") for cell in sweep.those("failed")]
        if any(is_stop(error) for error, _ in command.failures):
            failures.append(Failure(Interrupted(_how_to_go_on(sweep, command, "the sweep was stopped"))))
        elif command.failures and (sweep.those("finished") or not failures):  # the launcher's or the sweeper's
            failures += command.failures
            if sweep.done:
                failures.append(Failure(FedsimError(_how_to_go_on(sweep, command, "the sweep ended before its time"))))
        else:
            failures += [Failure(FedsimError(text)) for text in _over(sweep, command.sweep_dir)]
        command.failures[:] = failures
    command.held.close()
    undo_sweep(command.sweep_dir, up=not command.named)


def _how_to_go_on(sweep: Sweep, command: Command, why: str) -> str:
    kept = f"{_of(len(sweep.those('finished')), sweep)} finished"
    if begun := [cell for cell in sweep.those("stopped") if "go on with" in str(cell["reason"])]:
        kept += f" and {len(begun)} in the middle"
    return f"{why}; {kept}, all of which is kept; go on with the same command: {command.line}"


def _of(count: int, sweep: Sweep) -> str:
    """As in `3 of 12 cells are`. A tuner's trial that is the very same as an earlier one is no cell of its own."""
    number = sweep.expected if len(sweep.done) < len(sweep.cells) else len(sweep.cells)
    of = f" of {number}" if number is not None else ""
    return f"{count}{of} cell{'s are' if count != 1 or of else ' is'}"


def _over(sweep: Sweep, sweep_dir: Path) -> list[str]:
    """A sweep that came to its end: its report, what the choice of the best costs, and what there is to complain of."""
    finished, failed = sweep.those("finished"), sweep.those("failed")
    if not finished:
        return [
            "no cell is finished, so there is no report; mend what is wrong with them, and give the same command again"
        ]
    wrong = []
    if failed:
        wrong.append(
            f"{_of(len(failed), sweep).removesuffix(' are').removesuffix(' is')} failed; the same command runs them again"
        )
    wrong += _report(sweep, sweep_dir)
    return wrong + _selection(sweep, sweep_dir)


def _report(sweep: Sweep, sweep_dir: Path) -> list[str]:
    """Make it; what goes wrong with it costs no run."""
    shown = Path(os.path.relpath(sweep_dir)) if Path.cwd() in sweep_dir.parents else sweep_dir
    runs = [sweep_dir / cell["folder"] for cell in sweep.those("finished")]
    failed = [(sweep.words(cell), str(cell["reason"])) for cell in sweep.those("failed")]
    try:
        from fedsim.studies.report import write_study

        page = write_study(runs, sweep_dir, sweep.command, failed)
    except (Exception, KeyboardInterrupt) as error:
        why = "you stopped it" if isinstance(error, KeyboardInterrupt) else sentence(error)
        return [
            f"the sweep is whole, but its report could not be made ({why}); make it with python -m fedsim.report {shown}"
        ]
    print(f"{_of(len(runs), sweep)} finished; report: {shown / page.name}")
    return []


def _selection(sweep: Sweep, sweep_dir: Path) -> list[str]:
    """Say what choosing among private runs costs."""
    from fedsim.sweeps.selection import selection_words

    try:
        for text in selection_words(sweep, sweep_dir):
            print(text)
    except FedsimError as error:
        return [str(error)]
    return []
