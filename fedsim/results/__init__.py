"""What a run leaves and what is read of it; `read` gives many runs as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.results.store import Store, find_runs, read

__all__ = ["Store", "find_runs", "read"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # a run that only writes need not wait for the reader
        from fedsim.results import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
