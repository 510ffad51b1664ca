"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their *binary version*: records of bytes, so nothing is unpickled."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.data.dataset import Dataset, Normalize
from fedsim.data.sources._columns import Columns, build
from fedsim.data.sources._files import download, missing
from fedsim.paths import data_dir
from fedsim.types import FedsimError

PIXELS = 3 * 32 * 32


class Version(NamedTuple):
    """One of the two sets. header: label bytes before the pixels of a record; sha256: of the packed archive."""

    name: str
    url: str
    sha256: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    header: int


def find_folder(version: Version, root: str | None) -> Path | None:
    """The folder that holds all record files: `root`, the archive's folder inside it, or among fetched data."""
    bases = [Path(root).expanduser() if root else data_dir(version.name)]
    places = [place for base in bases for place in (base, base / version.folder)]
    return next((place for place in places if all((place / f).is_file() for f in version.train + version.test)), None)


def read_records(path: Path, header: int, label_at: int) -> Columns:
    """Pictures x (n, 3, 32, 32) uint8 and labels (n,) from records of `header` label bytes and 3,072 pixel bytes."""
    raw = np.fromfile(path, dtype=np.uint8)
    record = header + PIXELS
    if len(raw) == 0 or len(raw) % record:
        raise FedsimError(
            f"{path} is cut short or no CIFAR binary file ({len(raw)} bytes, records have {record}); get it anew"
        )
    rows = raw.reshape(-1, record)
    return Columns(rows[:, header:].reshape(-1, 3, 32, 32), rows[:, label_at].astype(np.int64), None, None, str(path))


def load_version(
    version: Version,
    root: str | None,
    label_at: int,
    classes: tuple[str, ...],
    moments: tuple[list[float], list[float]],
) -> Dataset:
    """Both splits. label_at: which label byte counts; moments: mean and deviation of the training channels."""
    folder = find_folder(version, root)
    if folder is None:
        raise missing(version.name, version.train[0], root, f"python -m fedsim.data {version.name} --fetch")
    train, test = (
        _joined([read_records(folder / file, version.header, label_at) for file in files], str(folder))
        for files in (version.train, version.test)
    )
    return build(version.name, train, test, "classification", Normalize(*moments), str(folder), classes)


def _joined(parts: list[Columns], where: str) -> Columns:
    return Columns(np.concatenate([p.x for p in parts]), np.concatenate([p.label for p in parts]), None, None, where)


def class_names(folder: Path | None, file: str, count: int) -> tuple[str, ...]:
    """Names from the archive's text file, one a line; numbers where that file was not kept beside the records."""
    path = None if folder is None else folder / file
    lines = path.read_text("utf-8", "replace").split() if path is not None and path.is_file() else []
    return tuple(lines) if len(lines) == count else tuple(str(label) for label in range(count))


def fetch_version(version: Version, root: Path | None) -> Path:
    """Download the archive, check its SHA-256, unpack the files of records and names; returns their folder."""
    base = data_dir(version.name) if root is None else Path(root)
    archive = download(version.url, base / version.url.rsplit("/", 1)[1], version.name)
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != version.sha256:
            raise FedsimError(
                f"{version.url} gave another file than it should (SHA-256 {found[:12]}...); nothing of it was kept"
            )
        _unpack(archive, base / version.folder, version)
    finally:
        archive.unlink(missing_ok=True)
    return base / version.folder


def _unpack(archive: Path, folder: Path, version: Version) -> None:
    """Only the members that are read, under names of our own: a path inside an archive is never followed."""
    wanted = {*version.train, *version.test}
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            stream = tar.extractfile(member) if member.isfile() and (name in wanted or name.endswith(".txt")) else None
            if stream is not None:
                (folder / name).write_bytes(stream.read())
