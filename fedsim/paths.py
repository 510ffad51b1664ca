"""Where things lie on a machine, and how they get there: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.types import FedsimError


def conf_dir() -> Path:
    """The Hydra configuration: `fedsim/conf` in an installed wheel, `conf` beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "dataset").is_dir():
            return folder
    raise FedsimError(
        f"no configuration folder at {package / 'conf'} or {package.parent / 'conf'}; "
        "install fedsim anew with `pip install --force-reinstall fedsim-flower`"
    )


def data_dir(name: str) -> Path:
    """Folder of the files fetched for dataset `name`: $FEDSIM_DATA/NAME, else ~/.cache/fedsim/NAME; may not exist."""
    base = os.environ.get("FEDSIM_DATA")
    return (Path(base) if base else Path.home() / ".cache" / "fedsim") / name


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it at the end of the block, removed if the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's list of names: a new file's name is not in the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
