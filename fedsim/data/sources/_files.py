"""What the sources share: finding a file, reading it only if it is the right one, and fetching it."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import lzma
import shutil
import zlib
from pathlib import Path

import numpy as np

from fedsim.paths import data_dir, whole
from fedsim.types import FedsimError


def package_file(package: str, *parts: str) -> Path | None:
    """Path of a file inside an installed Python package, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


def find_file(name: str, filename: str, root: str | None, *elsewhere: Path | None) -> Path | None:
    """root/filename alone where root is given, else the first of data_dir(name)/filename and `elsewhere` that is a file."""
    here = Path(root).expanduser() / filename if root else data_dir(name) / filename
    places = [here, *(place for place in elsewhere if place is not None and not root)]
    return next((place for place in places if place.is_file()), None)


def missing(name: str, filename: str, root: str | None, how: str) -> FedsimError:
    """The sentence for a dataset whose file is nowhere."""
    if root:
        return FedsimError(
            f"dataset {name} is not in dataset.root={root} ({filename} is not there): give the folder that holds it, "
            f"or leave dataset.root out and get it with `{how}`"
        )
    return FedsimError(
        f"dataset {name} is not on this machine ({filename} is not in the usual places): "
        f"get it with `{how}`, or set dataset.root to the folder that holds it"
    )


def read_bytes(path: Path, name: str, how: str, sha256: str | None = None) -> bytes:
    """All bytes of `path`, out of gzip or xz where it is packed; `sha256` is that of those bytes, None for no check.

    Hashing what is inside rather than the packed file accepts the same data packed by somebody else.
    """
    try:
        content = _unpack(path.read_bytes())
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise FedsimError(f"dataset {name}: {path} cannot be read ({error}); get it anew with `{how}`") from None
    check_sha256(content, sha256, path, name, how)
    return content


def _unpack(raw: bytes) -> bytes:
    if raw[:2] == b"\x1f\x8b":
        return gzip.decompress(raw)
    return lzma.decompress(raw) if raw[:6] == b"\xfd7zXZ\0" else raw


def check_sha256(content: bytes, sha256: str | None, path: Path, name: str, how: str) -> None:
    """Refuse bytes that are not the ones this source was written for."""
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise FedsimError(
            f"dataset {name}: {path} is corrupt or another version (SHA-256 {found[:12]}..., "
            f"expected {sha256[:12]}...); get it anew with `{how}`"
        )


def download(url: str, path: Path, name: str, sha256: str | None = None) -> Path:
    """Fetch `url` to `path` with a progress bar, whole or not at all; `sha256` is that of the unpacked bytes."""
    from urllib.error import URLError
    from urllib.request import urlopen

    from rich.progress import wrap_file

    try:
        with whole(path) as part:
            with urlopen(url, timeout=60) as reply, part.open("wb") as out:
                size = int(reply.headers.get("Content-Length") or 0)
                with wrap_file(reply, total=size, description=path.name) as stream:
                    shutil.copyfileobj(stream, out)
            read_bytes(part, name, f"python -m fedsim.data {name} --fetch", sha256)
    except (URLError, OSError, TimeoutError) as error:
        raise FedsimError(f"dataset {name}: {url} cannot be fetched to {path.parent} ({error})") from None
    return path


def user_index(names: np.ndarray, in_test: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Names (n,) to (int64 index (n,), names by index): users with training rows first, each part sorted.

    So the users 0..k-1 are exactly those who can train; later ones are met in the test alone.
    """
    training = np.unique(names[~in_test])
    order = np.concatenate([training, np.setdiff1d(names[in_test], training)])
    sorter = np.argsort(order)
    return sorter[np.searchsorted(order, names, sorter=sorter)].astype(np.int64), tuple(order.tolist())
