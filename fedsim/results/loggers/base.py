"""What a tracker is, and the tracker that tracks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """A tracker. `finish` or `abort` is the last call; after either a new `start` on the same folder goes on."""

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """config: the resolved configuration, nested. Raises MissingPackageError, or FedsimError if out of reach."""

    def round(self, row: dict[str, Any]) -> None:
        """row: a row of rounds.parquet."""

    def finish(self, summary: dict[str, Any]) -> None:
        """summary: what summary.json holds."""

    def abort(self, reason: str) -> None:
        """The run ended before its last round, because of `reason`."""


class NoLogger:
    """Tracks nothing."""

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """Nothing."""

    def round(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Nothing."""

    def abort(self, reason: str) -> None:
        """Nothing."""
