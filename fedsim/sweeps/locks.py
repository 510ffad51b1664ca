"""Locks that end with their process, however that ends: nobody runs one cell twice at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.types import FedsimError


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder. Raises FedsimError where another process has it: `what` it then says is taken."""
    path = folder.with_name(f".{folder.name}.lock")
    descriptor = _take(path, wait=False)
    if descriptor is None:
        raise FedsimError(f"{what}; wait until it has ended, then give the same command again")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold the lock `path`, for the moment that it takes to read a file and write it; waits for others."""
    descriptor = _take(path, wait=True)
    assert descriptor is not None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock; None where it is taken and not waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks: better none than no sweep
            return descriptor
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # whoever had it has taken the file away since
