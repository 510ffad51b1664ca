"""What the C library does with memory that training lets go of between two steps."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt(3)."""
LARGEST = 32 * 2**20
"""Bytes; the most that glibc takes for M_MMAP_THRESHOLD."""
KEPT = 2**30


def keep_freed_memory() -> None:
    """Keep what is freed for the next step instead of giving it back to the system.

    A step's activations are freed and asked for again; given back, each page has to be cleared and mapped anew, which cost a
    quarter of the time of a small convolutional network. Where the C library is another, nothing changes.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)
