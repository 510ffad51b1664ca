"""What a run shows while it runs: two live lines on standard error if that is a terminal, else nothing."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

RECENT = 20  # rounds of each kind that the time left is judged by


class Pace:
    """How long rounds take, judged by the wall clock between them, so that evaluation and checkpoints are counted.

    Rounds with and without an evaluation are averaged apart: with an evaluation every tenth round, the last few rounds
    say little about the next ten.
    """

    def __init__(self) -> None:
        self._plain: deque[tuple[float, int]] = deque(maxlen=RECENT)  # (seconds, clients)
        self._evaluated: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._rounds = self._evaluations = 0

    def add(self, seconds: float, clients: int, evaluated: bool) -> None:
        """A round took `seconds`, with `clients` trained."""
        if self._rounds == 1:  # the first round also warmed up; it counts only until there is another
            self._plain.clear()
            self._evaluated.clear()
        (self._evaluated if evaluated else self._plain).append((seconds, clients))
        self._rounds += 1
        self._evaluations += evaluated

    def seconds_per_round(self) -> float | None:
        """Expected seconds of a coming round, or None before the first."""
        kinds = [kind for kind in (self._plain, self._evaluated) if kind]
        if not kinds:
            return None
        means = [sum(seconds for seconds, _ in kind) / len(kind) for kind in kinds]
        if len(means) == 1:
            return means[0]
        share = self._evaluations / self._rounds
        return (1 - share) * means[0] + share * means[1]

    def clients_per_second(self) -> float | None:
        """Clients trained a second over the recent rounds, or None before the first."""
        recent = [*self._plain, *self._evaluated]
        seconds = sum(s for s, _ in recent)
        return sum(clients for _, clients in recent) / seconds if seconds > 0 else None


class Progress:
    """The live display of a run; use it as a context manager, which restores the terminal whatever happens.

    total_rounds, done_rounds: rounds of the whole run, and those done before it was resumed. console: where to draw, by
    default standard error. quiet: True draws nothing; None and False draw where the console is a terminal. Messages are
    printed in either case.
    """

    def __init__(
        self,
        total_rounds: int,
        done_rounds: int = 0,
        console: Console | None = None,
        quiet: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console

        # rich would take FORCE_COLOR for a terminal; a log file of a CI machine must stay free of bars
        self._console = console or Console(stderr=True, force_terminal=is_terminal(sys.stderr))
        self._drawn = not quiet and self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock, self._pace = clock, Pace()
        self._total, self._done = total_rounds, done_rounds
        self._in_round, self._size = 0, 0
        self._last: tuple[str, float] | None = None
        self._best: tuple[float, int] | None = None
        self._start = self._round_start = clock()
        self._live: Live | None = None
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __enter__(self) -> Progress:
        self._start = self._round_start = self._clock()
        if self._drawn:
            from rich.live import Live

            # prints go above the bar; but where standard output is a file, they must still land in that file
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=4,
                redirect_stdout=is_terminal(sys.stdout),
                redirect_stderr=is_terminal(sys.stderr),
            )
            outputs = (sys.stdout, sys.stderr)
            self._live.start(refresh=True)
            self._redirect_logging(dict(zip(map(id, outputs), (sys.stdout, sys.stderr), strict=True)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams.clear()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def cohort(self, done: int, size: int) -> None:
        """`done` of the `size` clients of the current round have finished."""
        self._in_round, self._size = done, size

    def round(self, row: dict[str, Any]) -> None:
        """A round is over; `row` as in rounds.parquet."""
        now = self._clock()
        name = next((name for name in ("accuracy", "loss") if _finite(row.get(name))), None)
        trained = int(row.get("cohort_size") or 0) - int(row.get("num_failed") or 0)
        self._pace.add(now - self._round_start, trained, name is not None)
        self._round_start = now
        self._done, self._in_round = int(row["round"]), 0
        if name is not None:
            value = float(row[name])
            better = self._best is None or (value > self._best[0] if name == "accuracy" else value < self._best[0])
            self._last, self._best = (name, value), (value, self._done) if better else self._best

    def message(self, text: str) -> None:
        """Print a line on the console, above the bar where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Expected seconds to the end of the last round, or None before the first round is over."""
        each = self._pace.seconds_per_round()
        if each is None:
            return None
        in_round = min(self._clock() - self._round_start, each)  # a slow round is not taken off the rounds after it
        return max((self._total - self._done) * each - in_round, 0.0)

    def _redirect_logging(self, outputs: dict[int, Any]) -> None:
        """Let log handlers that hold the terminal's own stream write above the bar, not through it."""
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler and id(handler.stream) in outputs:
                self._streams.append((handler, handler.stream))
                handler.setStream(outputs[id(handler.stream)])

    def _render(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        share = self._in_round / self._size if self._size else 0.0
        lines = Table.grid(padding=(0, 2))
        for _ in range(3):
            lines.add_column(no_wrap=True)
        current = min(self._done + 1, self._total)
        bars = (
            (f"round {current}/{self._total}", self._done + share, self._total, self._time_text()),
            (f"clients {self._in_round}/{self._size or '?'}", share, 1.0, self._quality_text()),
        )
        for label, completed, total, text in bars:
            bar = ProgressBar(total=max(total, 1), completed=completed, width=min(30, self._console.width // 4))
            lines.add_row(Text(label), bar, Text(text, overflow="ellipsis"))
        return lines

    def _time_text(self) -> str:
        left = self.seconds_left()
        left_text = "time left not known yet" if left is None else f"about {clock_text(left)} left"
        return f"{clock_text(self._clock() - self._start)} elapsed, {left_text}"

    def _quality_text(self) -> str:
        parts = []
        if self._last is not None and self._best is not None:
            show = "{:.1%}" if self._last[0] == "accuracy" else "{:.4g}"
            best = f"best {show.format(self._best[0])} in round {self._best[1]}"
            parts.append(f"{self._last[0]} {show.format(self._last[1])} ({best})")
        speed = self._pace.clients_per_second()
        if speed is not None:
            parts.append(f"{speed:.3g} client-rounds/s" if speed < 1000 else f"{speed:,.0f} client-rounds/s")
        return ", ".join(parts)


def clock_text(seconds: float) -> str:
    """3725 as `1:02:05`, 65 as `1:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def is_terminal(stream: Any) -> bool:
    """Whether somebody watches it; a stream that was closed before Python began is None."""
    return stream is not None and stream.isatty()
