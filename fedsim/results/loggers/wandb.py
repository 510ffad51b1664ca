"""Weights & Biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsim.checks import require_choice
from fedsim.results.loggers.shared import (
    first_line,
    import_tracker,
    numbers,
    save_id,
    saved_id,
    scalars,
    without_credentials,
)
from fedsim.types import FedsimError


class WandbLogger:
    """A Weights & Biases run, by default offline: files in RUN_DIR/wandb, sent only by `wandb sync --append` later.

    mode: offline, online (needs `wandb login`), or disabled. entity: the team, or None for one's own.
    """

    def __init__(
        self, project: str = "fedsim", mode: str = "offline", entity: str | None = None, run_name: str | None = None
    ) -> None:
        self.mode = require_choice("logger.mode", mode, ("offline", "online", "disabled"))
        self.project, self.entity, self.run_name = project, entity, run_name
        self._run: Any = None

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """See `Logger.start`."""
        wandb = import_tracker("wandb")
        known = saved_id(run_dir, "wandb")
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.run_name or run_dir.name,
                mode=self.mode,
                dir=str(run_dir),
                id=known,
                resume="allow" if known and self.mode == "online" else None,  # offline files are joined by their id
                config=json.loads(without_credentials(json.dumps(config, default=str))),
            )
        except wandb.Error as error:
            raise FedsimError(
                f"W&B cannot be used ({first_line(error)}); run `wandb login`, or set logger.mode=offline"
            ) from error
        if known is None:
            save_id(run_dir, "wandb", self._run.id)

    def round(self, row: dict[str, Any]) -> None:
        """See `Logger.round`."""
        step, values = scalars(row)
        self._run.log({f"round/{name}": value for name, value in values.items()}, step=step)

    def finish(self, summary: dict[str, Any]) -> None:
        """See `Logger.finish`."""
        for name, value in numbers(summary).items():
            self._run.summary[name] = value
        self._run.finish(exit_code=0)
        self._run = None

    def abort(self, reason: str) -> None:
        """See `Logger.abort`."""
        if self._run is not None:
            self._run.summary["aborted"] = reason
            self._run.finish(exit_code=1)
            self._run = None
