"""Ctrl-C that never breaks a round in two: it takes effect where a round may be given up, and waits elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt inside `allowed()`, and remembers them outside of it.

    A second signal is not remembered but raised at once, for whoever will not wait.
    """

    def __init__(self) -> None:
        self._allowed = self.pending = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block; only the main thread may, elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A block that may be broken off."""
        self.check()
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False
        self.check()

    def check(self) -> None:
        """Raise what came while it was not allowed."""
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._allowed or self.pending:
            raise KeyboardInterrupt
        self.pending = True
