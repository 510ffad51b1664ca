"""`python -m fedsim.export RUN_DIR`: a finished run's model as files that run on a device, small, and measured."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.checks import did_you_mean
from fedsim.errors import Failure, exit_with_sentence
from fedsim.types import FedsimError

if TYPE_CHECKING:
    from fedsim.serving import Request

USAGE = """\
Write a finished run's model for devices, preprocessing included, into RUN_DIR/export: model.pt2 (torch.export), model.onnx,
model_fp16.onnx, model_int8.onnx, and what each weighs, knows and takes (export.json, export.md).

  python -m fedsim.export RUN_DIR
  python -m fedsim.export RUN_DIR distill=true prune=0.5

  distill=true            also a student that learns from the model, at half its widths; distill=mlp: of another kind
  distill.KEY=VALUE       temperature hard epochs batch_size lr
  prune=0.5               also the model with that share of its weights set to zero, the smallest ones
"""
WIDE = 120
SETTINGS = ("temperature", "hard", "epochs", "batch_size", "lr")
KEYS = ("distill", "prune", *(f"distill.{name}" for name in SETTINGS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status: 0, 1 for a mistake (one sentence), 130 when stopped; nothing is left behind then."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"-h", "--help"} & set(given):
        print(USAGE, end="")
        return
    try:
        request = parse(given)
        from fedsim.serving import export  # seconds, which a misspelt key need not wait for

        _print(export(request, say=lambda line: print(line, file=sys.stderr)), request.folder / "export")
    except KeyboardInterrupt:
        stopped = FedsimError("stopped; nothing was kept, and the run is as it was")
        stopped.exit_code = 130
        exit_with_sentence([Failure(stopped)])
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
            raise
        exit_with_sentence([Failure(error)])


def parse(arguments: Sequence[str]) -> Request:
    """The command line. Raises FedsimError where it cannot be meant."""
    keys = [one for one in arguments if one.split("=")[0] in KEYS or ("=" in one and not Path(one).exists())]
    folders = [one for one in arguments if one not in keys]
    values = {key: value for key, _, value in (one.partition("=") for one in keys)}
    for key in values:
        if key not in KEYS:
            close = did_you_mean(key, KEYS)
            raise FedsimError(f"{key} is not a key of fedsim.export{close}; see python -m fedsim.export --help")
        if values[key] == "":
            raise FedsimError(f"{key}= is empty; give a value, as in {key}={_example(key)}, or leave it out")
    if len(values) < len(keys):
        raise FedsimError("a key is given twice; give each once")
    if len(folders) != 1:
        named = ", ".join(folders) or "none"
        raise FedsimError(f"name one folder, as in python -m fedsim.export runs/quickstart/... (named: {named})")
    from fedsim.serving import Request

    return Request(
        folder=Path(folders[0]),
        distill=_distillation(values),
        prune=_prune(values["prune"]) if "prune" in values else None,
        command=shlex.join(["python", "-m", "fedsim.export", *arguments]),
    )


def _distillation(values: dict[str, str]) -> Any:
    from fedsim.serving.smaller import Distillation

    student = values.get("distill", "false")
    own = {name: values[f"distill.{name}"] for name in SETTINGS if f"distill.{name}" in values}
    if student == "false":
        if own:
            key = f"distill.{next(iter(own))}"
            raise FedsimError(f"{key} is of a student that is not asked for; add distill=true, or leave {key} out")
        return None
    named = "half" if student == "true" else student
    return Distillation(student=named, **{name: _number(f"distill.{name}", text) for name, text in own.items()})


def _prune(text: str) -> float:
    from fedsim.checks import require_number

    return require_number("prune", _number("prune", text), above=0, below=1)


def _number(key: str, text: str) -> Any:
    """Whole where it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise FedsimError(f"{key}={text} is not a number; give one, as in {key}={_example(key)}")


def _example(key: str) -> str:
    return {"distill": "true", "prune": "0.5", "distill.epochs": "20", "distill.lr": "0.001"}.get(key, "4")


def _print(told: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from fedsim.serving.report import estimate_words, measured, notes, tables

    console = Console()
    if not console.is_terminal:  # a file takes lines of any length
        console = Console(width=WIDE)
    for made in tables(told):
        console.print(made)
    for line in (measured(told), estimate_words(told), *notes(told)):
        print(line)
    print(f"{folder}: {', '.join(one['file'] for one in told['files'])}, export.json, export.md")


if __name__ == "__main__":
    main()
