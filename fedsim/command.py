"""The command that the user gave, as far as the functions that Hydra calls must know of it."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from fedsim.errors import Failure


@dataclass
class Command:
    """What has come of it so far, in the process that the user started.

    arguments: as they were typed. wants_traceback: HYDRA_FULL_ERROR was set. failures: of a single run, or of the sweep as a
    whole. sweep_dir: where it sweeps, None where it does not. named: the user named that folder.
    """

    arguments: list[str] = field(default_factory=list)
    wants_traceback: bool = False
    failures: list[Failure] = field(default_factory=list)
    sweep_dir: Path | None = None
    named: bool = False
    held: ExitStack = field(default_factory=ExitStack)

    def enter(self, sweep_dir: Path) -> None:
        """Sweep there, and let no other command do so meanwhile. Raises FedsimError where one does."""
        from fedsim.sweeps.locks import locked

        self.held.enter_context(locked(sweep_dir, f"another command is sweeping into {sweep_dir}"))
        self.sweep_dir = sweep_dir

    @property
    def line(self) -> str:
        """What to type to give it again."""
        return shlex.join(["python", "-m", "fedsim", *self.arguments])


CURRENT: ContextVar[Command | None] = ContextVar("command", default=None)
"""Hydra makes and calls what needs it without handing it over; a launcher's worker process has none."""


class Refused(BaseException):
    """The sweep cannot begin. No Exception, since Hydra turns a callback's exceptions into warnings."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
