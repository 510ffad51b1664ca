"""`python -m fedsim.unlearn RUN_DIR client=17`: the right to be forgotten, for clients of a finished run."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.checks import did_you_mean, require_choice
from fedsim.errors import Failure, exit_with_sentence
from fedsim.types import FedsimError

if TYPE_CHECKING:
    from fedsim.forgetting import Request

USAGE = """\
Take clients out of a finished run, exactly and approximately, and compare the models.

  python -m fedsim.unlearn RUN_DIR client=17
  python -m fedsim.unlearn RUN_DIR clients=3,17 method=exact out=DIR

  client=N, clients=N,M   who is to be forgotten
  method=both             exact: train again without them, from the last checkpoint that knew nothing of them
                          approximate: gradient ascent on their examples, then a few rounds without them
  out=DIR                 folder of the new run; RUN_DIR-without-17 where it is left out
  ascent.KEY=VALUE        of the approximate method: rounds radius stop_loss
                          stop_accuracy max_steps batch_size lr momentum max_grad_norm
"""
KEYS = ("client", "clients", "method", "out")


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status: 0, 1 for a mistake (one sentence), 130 when stopped; nothing is left behind then."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"-h", "--help"} & set(given):
        print(USAGE, end="")
        return
    try:
        request = parse(given)
        from fedsim.forgetting import forget  # seconds, which a misspelt key need not wait for

        _print(forget(request), request.folder)
    except KeyboardInterrupt:
        exit_with_sentence([Failure(_stopped())])
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
            raise
        exit_with_sentence([Failure(error)])


def parse(arguments: Sequence[str]) -> Request:
    """The command line. Raises FedsimError where it cannot be meant."""
    folders = [one for one in arguments if "=" not in one]
    values = dict(one.split("=", 1) for one in arguments if "=" in one)
    if len(folders) != 1:
        named = ", ".join(folders) or "none"
        raise FedsimError(f"name one folder, as in python -m fedsim.unlearn RUN_DIR client=17 (named: {named})")
    if len(values) + 1 < len(arguments):
        raise FedsimError("a key is given twice; give each once, and several clients as clients=3,17")
    from fedsim.training.ascent import Ascent

    fields = {f"ascent.{field.name}": field.name for field in dataclasses.fields(Ascent)}
    for key in values:
        if key not in (*KEYS, *fields):
            close = did_you_mean(key, [*KEYS, *fields])
            raise FedsimError(f"{key} is not a key of fedsim.unlearn{close}; see python -m fedsim.unlearn --help")
    method = require_choice("method", values.get("method", "both"), ("both", "exact", "approximate"))
    clients, folder = _clients(values), Path(folders[0])
    if values.get("out") == "":
        raise FedsimError("out= is empty; give the folder that the new run is written to, or leave it out")
    from fedsim.forgetting import Request

    named = "-".join(map(str, clients)) if len(clients) <= 5 else f"{len(clients)}-clients"
    return Request(
        source=folder,
        clients=clients,
        methods=() if method == "both" else (method,),
        folder=Path(values.get("out", f"{folder}-without-{named}")),
        ascent=Ascent(**{fields[key]: _number(key, text) for key, text in values.items() if key in fields}),
        command=shlex.join(["python", "-m", "fedsim.unlearn", *arguments]),
    )


def _clients(values: dict[str, str]) -> tuple[int, ...]:
    texts = [text for key in ("client", "clients") if key in values for text in values[key].strip("[]").split(",")]
    if not texts:
        raise FedsimError("no client is named; give client=17, or several as clients=3,17")
    if wrong := [text for text in texts if not text.strip().isdecimal()]:
        raise FedsimError(f"client={wrong[0]} is not the number of a client; give numbers from 0, as in clients=3,17")
    return tuple(sorted({int(text) for text in texts}))


def _number(key: str, text: str) -> Any:
    """As YAML has it: whole where it is, null for None."""
    if text in ("null", "None"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise FedsimError(f"{key}={text} is not a number; give one, or leave it out")


def _stopped() -> FedsimError:
    error = FedsimError("stopped; nothing was kept, and the old run is as it was")
    error.exit_code = 130
    return error


def _print(told: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from fedsim.forgetting import sentences
    from fedsim.results.unlearning import table

    for line in sentences(told):
        print(line)
    Console().print(table(told["models"], sum(one["examples"] for one in told["touched"])))
    print(f"{folder / 'unlearn.json'}, {folder / 'plots' / 'unlearning.png'}")


if __name__ == "__main__":
    main()
