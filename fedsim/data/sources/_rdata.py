"""Tables that R packages carry, read without R (with the package rdata), and the split that tables share."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples, Standardize
from fedsim.data.sources._files import missing
from fedsim.data.splits import stratified_split
from fedsim.paths import data_dir
from fedsim.types import FedsimError, MissingPackageError

if TYPE_CHECKING:
    from pandas import DataFrame

R_LIBRARIES = ("usr/lib/R/site-library", "usr/lib/R/library", "usr/local/lib/R/site-library")


def find_r_file(name: str, package: str, filename: str, root: str | None) -> Path | None:
    """root/filename or a Debian package unpacked below root (`dpkg-deb -x`); without root fetched data or R's libraries."""
    base = Path(root).expanduser() if root else Path("/")
    inside = [base / library / package / "data" / filename for library in R_LIBRARIES]
    first = base / filename if root else data_dir(name) / filename
    return next((path for path in [first, *inside] if path.is_file()), None)


def read_r_table(name: str, path: Path | None, filename: str, root: str | None, item: str, how: str) -> DataFrame:
    """The data frame `item` of an .rda file; factors are pandas categories in R's order of levels."""
    if path is None:
        raise missing(name, filename, root, how)
    try:
        rdata = importlib.import_module("rdata")
    except ImportError:
        raise MissingPackageError(
            f"dataset {name} is at {path}, but reading R's files needs the package rdata: "
            "pip install 'fedsim-flower[rdata]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # it says of old files that their strings are taken as ASCII, which they are
            return rdata.read_rda(path)[item]
    except Exception as error:  # a broken file may raise nearly anything
        reason = str(error) or type(error).__name__
        raise FedsimError(
            f"dataset {name}: {path} holds no table {item} ({reason}); get it anew with `{how}`"
        ) from None


def check_table(name: str, x: np.ndarray, y: np.ndarray, sha256: str, path: Path, how: str) -> None:
    """Refuse other rows than this source was written for; packers differ, so the values are hashed, not the file."""
    digest = hashlib.sha256(np.ascontiguousarray(x, np.float64).tobytes())
    digest.update(np.ascontiguousarray(y, np.int64).tobytes())
    found = digest.hexdigest()
    if found != sha256:
        raise FedsimError(
            f"dataset {name}: the table in {path} is corrupt or another version (its values' SHA-256 {found[:12]}..., "
            f"expected {sha256[:12]}...); get it anew with `{how}`"
        )


def tabular(name: str, x: np.ndarray, y: np.ndarray, classes: tuple[str, ...], source: str) -> Dataset:
    """Features x (n, f), labels y (n,); a fixed stratified test of a fifth, standardised by the training rows."""
    train, test = (
        Examples(torch.from_numpy(x[rows]), torch.from_numpy(y[rows].astype(np.int64)))
        for rows in stratified_split(y, 0.2, name=name)
    )
    return Dataset(name, train, test, "classification", classes, Standardize.fit(train.x), source=source)
