"""How things are measured: seconds of rounds, medians with their spread, and the memory of a process tree."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

KIBIBYTE = 1024e-6
"""In MB; Linux tells of memory in units of it."""


class Spread(NamedTuple):
    """A median with the least and the most that it was taken from."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def words(self, digits: int = 3) -> str:
        """As in `12.3 (11.9 to 13)`."""
        return f"{short(self.median, digits)} ({short(self.low, digits)} to {short(self.high, digits)})"


def short(value: float, digits: int = 3) -> str:
    """So many digits that say something, or all before the point, without an exponent."""
    first = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits - 1 - first)}f}"


def finished(device: torch.device) -> None:
    """Wait for what was given to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Laps:
    """Seconds between calls of `lap`; a GPU's work counts to the lap in which it was given."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.stamps: list[float] = []
        self._last = time.perf_counter()

    def lap(self) -> None:
        """A round is over."""
        finished(self.device)
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.stamps.append(time.time())
        self._last = time.perf_counter()


class TreeMemory:
    """Looks at the memory of a process and all its descendants, again and again, and keeps the most that it saw.

    What processes share is counted once (PSS), so this is of Linux alone; `peak_mb` is None elsewhere.
    """

    def __init__(self, pid: int, every: float = 0.05) -> None:
        self.pid, self.every = pid, every
        self.peak_mb: float | None = None

    @contextmanager
    def watched(self) -> Iterator[TreeMemory]:
        """Look on until the block is left."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(self.every):
                if (found := tree_mb(self.pid)) is not None:
                    self.peak_mb = max(found, self.peak_mb or 0.0)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            over.set()
            watcher.join()


def tree_mb(pid: int) -> float | None:
    """MB that the process and its descendants take now."""
    found = [kilobytes for one in descendants(pid) if (kilobytes := _field(one, "smaps_rollup", "Pss:")) is not None]
    return sum(found) * KIBIBYTE if found else None


def descendants(pid: int) -> list[int]:
    """The process itself first."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for path in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                waiting += [int(child) for child in path.read_text().split()]
            except OSError:  # it ended while we looked
                continue
    return found


def resident_mb() -> float:
    """Of this process, now."""
    return (_field("self", "status", "VmRSS:") or 0) * KIBIBYTE


def forget_peak() -> None:
    """From here on `peak_resident_mb` is of what comes. Linux alone."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident_mb() -> float:
    """The most that this process took since `forget_peak`."""
    return (_field("self", "status", "VmHWM:") or 0) * KIBIBYTE


def available_mb() -> float:
    """What this machine could still give without swapping; of Linux alone."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * KIBIBYTE


def _field(pid: int | str, file: str, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:  # ended, or not ours
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)
