"""What `resume=RUN_DIR` on the command line means to Hydra, and which folders a new run may not have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.types import Override

from fedsim.types import FedsimError


def with_resume(overrides: list[Override], *, sweep: bool) -> list[str] | None:
    """The overrides for Hydra that resume a run: work in its folder, leave its configuration alone. None where none is asked.

    Raises FedsimError where other keys, or a sweep, stand beside `resume`.
    """
    given = {override.key_or_group: override for override in overrides}
    if "resume" not in given or not (resume := _text(given["resume"])):
        return None
    if sweep:
        raise FedsimError(f"resume={resume} goes on with one run and cannot be swept; leave -m out")
    if not Path(resume).is_dir():
        raise FedsimError(f"resume={resume} is not there; give the folder of a run, as in resume=runs/quickstart/...")
    if extra := [override.input_line for override in overrides if override.key_or_group not in ("resume", "rounds")]:
        raise FedsimError(
            f"resume={resume} takes nothing beside it but rounds=N; leave {extra[0]} out, the run keeps its own configuration"
        )
    rounds = [f"resume_rounds={_text(given['rounds'])}"] if "rounds" in given else []
    folder = quoted(str(Path(resume).resolve()))
    return [f"resume={folder}", f"hydra.run.dir={folder}", "hydra.output_subdir=null", *rounds]


def refuse_taken(overrides: Iterable[Override]) -> None:
    """Refuse a folder that holds a run already; Hydra writes into it before any of our code runs."""
    for override in overrides:
        key = override.key_or_group
        if key not in ("hydra.run.dir", "hydra.sweep.dir") or override.is_delete():
            continue
        folder = _text(override)
        if not folder:
            raise FedsimError(f"{key} is empty; give the folder that the run is written to, or leave it out")
        if "${" not in folder:  # else it is known only once Hydra has resolved it, see `refuse_run`
            refuse_run(Path(folder), key)


def refuse_run(folder: Path, key: str) -> None:
    """Refuse a folder that holds a run, finished or not; `key` is what named it."""
    if (folder / "summary.json").exists():
        raise FedsimError(
            f"{key}: {folder} holds a finished run; give another folder, or resume={folder} rounds=N to let it grow"
        )
    if any((folder / "checkpoints").glob("round_*")):
        raise FedsimError(
            f"{key}: {folder} holds a run that was stopped; go on with resume={folder}, or give another folder"
        )


def _text(override: Override) -> str:
    """The value as a user means it, without quotes; empty for null."""
    if override.is_delete() or override.is_sweep_override():
        return str(override.input_line).partition("=")[2]
    value = override.value()
    return "" if value is None else str(value)


def quoted(text: str) -> str:
    """For Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
