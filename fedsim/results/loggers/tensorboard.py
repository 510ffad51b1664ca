"""TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim.results.loggers.shared import flatten, import_tracker, numbers, scalars, without_credentials


class TensorBoardLogger:
    """Scalars and the configuration as event files in RUN_DIR/`folder`."""

    def __init__(self, folder: str = "tensorboard") -> None:
        self.folder = folder
        self._writer: Any = None
        self._config: dict[str, object] = {}
        self._path = Path()

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """See `Logger.start`."""
        import_tracker("tensorboard")
        self._config, self._path = config, run_dir / self.folder

    def _open(self, step: int) -> Any:
        """The writer, opened at the first round: rounds from `step` on that a killed run had written are purged."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            resumed = self._path.is_dir() and any(self._path.iterdir())
            self._writer = SummaryWriter(str(self._path), purge_step=step if resumed else None)
            if not resumed:
                lines = [
                    f"    {key}: {without_credentials(str(value))}" for key, value in flatten(self._config).items()
                ]
                self._writer.add_text("config", "\n".join(lines))
        return self._writer

    def round(self, row: dict[str, Any]) -> None:
        """See `Logger.round`."""
        step, values = scalars(row)
        writer = self._open(step)
        for name, value in values.items():
            writer.add_scalar(f"round/{name}", value, step)
        writer.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """See `Logger.finish`."""
        step = int(summary["rounds"])
        writer = self._open(step + 1)
        for name, value in numbers(summary).items():
            writer.add_scalar(f"summary/{name}", value, step)
        self._close()

    def abort(self, reason: str) -> None:
        """See `Logger.abort`."""
        if self._writer is not None:
            self._writer.add_text("aborted", reason)
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
