"""`python -m fedsim`: hydra.main, and one sentence where something is wrong."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import TYPE_CHECKING

from fedsim import __version__

if TYPE_CHECKING:
    from fedsim.command import Command


def main() -> None:
    """Run what the command line says. Exit status: 0, 1 for a mistake (one sentence), 130 when stopped."""
    if "--version" in sys.argv[1:]:
        print(f"fedsim {__version__}")
        return
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises, and this function words the sentence
    gc.disable()  # imports make 200,000 objects and no garbage, and a tenth of the start went into looking for it
    atexit.register(gc.freeze)  # what is left ends with the process, which would first spend a second on its garbage
    try:
        command = _run(wants_traceback)
    except BrokenPipeError:  # as in `fedsim --help | head`: whoever read it has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if wants_traceback:
            raise
        if isinstance(error, KeyboardInterrupt) and "fedsim.errors" not in sys.modules:
            print("fedsim: stopped while starting; nothing was kept", file=sys.stderr)
            sys.exit(130)
        from fedsim.errors import Failure, exit_with_sentence

        exit_with_sentence([Failure(error)])
    finally:
        gc.enable()
    if command.failures:
        from fedsim.errors import exit_with_sentence

        exit_with_sentence(command.failures)


def _run(wants_traceback: bool) -> Command:
    """Hand the command line to Hydra; what goes wrong from there on is in the command's `failures`."""
    import hydra

    from fedsim.arguments import for_hydra
    from fedsim.command import CURRENT, Command, Refused
    from fedsim.errors import Failure
    from fedsim.job import job
    from fedsim.paths import conf_dir

    sys.path.insert(0, os.getcwd())  # the console script, unlike `python -m`, would not find one's own modules here
    command = Command(sys.argv[1:], wants_traceback)
    sys.argv[1:] = for_hydra(sys.argv[1:])
    if {"-m", "--multirun"} & set(sys.argv):
        from fedsim.sweeps.packed import register

        register()
    token = CURRENT.set(command)
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except Refused as refused:
        command.failures.append(Failure(refused.error))
    except (Exception, KeyboardInterrupt) as error:
        if wants_traceback:
            raise
        if not command.failures:
            command.failures.append(Failure(error))
    finally:
        CURRENT.reset(token)
        if command.sweep_dir is not None:
            _end(command)
    return command


def _end(command: Command) -> None:
    """A sweep's end, however it came."""
    from fedsim.sweeps.ending import end_sweep

    end_sweep(command)


if __name__ == "__main__":
    main()
