"""`python -m fedsim`: hydra.main, and one sentence where something is wrong."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

from fedsim import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fedsim.errors import Failure


def main() -> None:
    """Run what the command line says. Exit status: 0, 1 for a mistake (one sentence), 130 when stopped."""
    if "--version" in sys.argv[1:]:
        print(f"fedsim {__version__}")
        return
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises, and this function words the sentence
    failures: list[Failure] = []
    gc.disable()  # imports make 200,000 objects and no garbage, and a tenth of the start went into looking for it
    try:
        _run(failures, wants_traceback)
    except BrokenPipeError:  # as in `fedsim --help | head`: whoever read it has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if wants_traceback:
            raise
        if isinstance(error, KeyboardInterrupt) and "fedsim.errors" not in sys.modules:
            print("fedsim: stopped while starting; nothing was kept", file=sys.stderr)
            sys.exit(130)
        from fedsim.errors import Failure

        failures.append(Failure(error))
    finally:
        gc.enable()
    if failures:
        from fedsim.errors import exit_with_sentence

        exit_with_sentence(failures)


def _run(failures: list[Failure], wants_traceback: bool) -> None:
    """Hand the command line to Hydra; what goes wrong in a run, or in a cell of a sweep, goes to `failures`."""
    import hydra

    from fedsim.arguments import for_hydra
    from fedsim.errors import Failure, interrupted, is_stop
    from fedsim.grids.forkserver import start_early
    from fedsim.paths import conf_dir
    from fedsim.undo import Place, undo_folder, undo_sweep

    sys.path.insert(0, os.getcwd())  # the console script, unlike `python -m`, would not find one's own modules here
    sys.argv[1:] = for_hydra(sys.argv[1:])
    places: list[Place] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg: DictConfig) -> object:
        places.append(place := Place.current(resumed=bool(cfg.get("resume"))))
        try:
            with undo_folder(place):
                if not cfg.get("dry_run"):
                    start_early(str(cfg.grid.get("_target_")), cfg.grid.get("workers"), str(cfg.get("device")))
                from fedsim.experiment import command_from, run  # a second or two, in which Ctrl-C must leave nothing

                _collect_again()
                return run(cfg, place.run_dir, command_from(place.overrides))
        except (Exception, KeyboardInterrupt) as error:  # kept from Hydra, which would print a paragraph of its own
            if wants_traceback:
                raise
            failures.append(Failure(interrupted(error, place.run_dir), place.cell))
            if is_stop(error):
                raise KeyboardInterrupt from None  # else the next cell of a sweep would start
            return None

    try:
        job()
    finally:
        undo_sweep(places)


def _collect_again() -> None:
    """From here on as usual, except that what the imports made stays and need not be looked through."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    main()
