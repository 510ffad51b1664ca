"""What `resume=RUN_DIR` on the command line means to Hydra: work in that folder, and leave its configuration alone."""

from __future__ import annotations

from pathlib import Path

from fedsim.types import FedsimError


def with_resume(arguments: list[str]) -> list[str]:
    """The command line for Hydra. Refuses other keys beside `resume`, and a run's folder that holds one already."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument and not argument.startswith("-"))
    resume = given.get("resume", "null").strip("'\"")
    if resume in ("null", ""):
        _refuse_taken(given.get("hydra.run.dir", "").strip("'\""))
        return arguments
    path = Path(resume)
    if not path.is_dir():
        raise FedsimError(f"resume={resume} is not there; give the folder of a run, as in resume=runs/quickstart/...")
    extra = [a for a in arguments if a.split("=", 1)[0] not in ("resume", "rounds")]
    if extra:
        raise FedsimError(f"resume={resume} takes nothing beside it but rounds=N; leave {extra[0]} out, the run keeps its own configuration")
    rounds = [f"resume_rounds={given['rounds']}"] if "rounds" in given else []
    folder = str(path.resolve()).replace("'", "\\'")
    return [f"resume='{folder}'", f"hydra.run.dir='{folder}'", "hydra.output_subdir=null", *rounds]


def _refuse_taken(run_dir: str) -> None:
    """Hydra writes its folder before any of our code runs, so this must be known before."""
    if not run_dir or "${" in run_dir:
        return
    if (Path(run_dir) / "summary.json").exists():
        raise FedsimError(f"hydra.run.dir={run_dir} holds a finished run; give another folder, or resume={run_dir} rounds=N to let it grow")
    if any((Path(run_dir) / "checkpoints").glob("round_*")):
        raise FedsimError(f"hydra.run.dir={run_dir} holds a run that was stopped; go on with resume={run_dir}, or give another folder")
