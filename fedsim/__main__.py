"""`python -m fedsim`: hydra.main, and one sentence where something is wrong."""

from __future__ import annotations

import os
import sys

from fedsim.errors import exit_with_sentence, undo_folder
from fedsim.paths import conf_dir
from fedsim.resume import with_resume


def main() -> None:
    """Run what the command line says. Exit status: 0, 1 for a mistake (one sentence), 130 when stopped."""
    import hydra
    from omegaconf import DictConfig

    sys.path.insert(0, os.getcwd())  # the console script, unlike `python -m`, would not find one's own modules here
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises, and this function words the sentence

    failures: list[BaseException] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg: DictConfig) -> object:
        from pathlib import Path

        from hydra.core.hydra_config import HydraConfig

        from fedsim.experiment import command_from, run

        hydra_config = HydraConfig.get()
        run_dir = Path(hydra_config.runtime.output_dir)
        try:
            with undo_folder(run_dir):
                return run(cfg, run_dir, command_from(list(hydra_config.overrides.task)))
        except (Exception, KeyboardInterrupt) as error:  # kept from Hydra, which would print a paragraph of its own
            if wants_traceback:
                raise
            failures.append(error)
            return None

    try:
        sys.argv[1:] = with_resume(sys.argv[1:])
        job()
    except (Exception, KeyboardInterrupt) as error:
        if wants_traceback:
            raise
        failures.append(error)
    if failures:
        exit_with_sentence(failures[0])


if __name__ == "__main__":
    main()
