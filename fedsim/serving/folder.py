"""A folder that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.paths import sync_folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty temporary folder beside `folder`, which takes its place at the end of the block; removed if the block raises."""
    temporary, older = (folder.with_name(f".{folder.name}.{word}") for word in ("tmp", "old"))
    for left in (temporary, older):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        if folder.exists():
            folder.rename(older)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)
