"""One's own numpy arrays in one .npz file, with a split of its own or without."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsim.data.dataset import Dataset, Normalize, Standardize
from fedsim.data.sources._columns import Columns, build, split_columns
from fedsim.data.sources._images import fit_normalize
from fedsim.types import FedsimError

ABOUT = "your own numpy arrays in a .npz file"
HOW = (
    "dataset=npz dataset.path=FILE.npz with arrays x_train, y_train, x_test, y_test (and user_train, time_train, ...), "
    "or x, y (and user, time)"
)
KEYS = ("x", "y", "user", "time")


def find(root: str | None = None) -> Path | None:
    """None: the file is named by dataset.path."""
    return None


def load(
    path: str,
    task: str = "classification",
    channels_last: bool = False,
    standardize: bool = True,
    split: str = "share",
    test_share: float = 0.2,
    split_seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Inputs x (n, ...): uint8 pictures (n, c, h, w) or (n, h, w) stay bytes, other numbers become float32.

    y: (n,) labels (numbers or texts), or numbers in regression. channels_last: pictures come as (n, h, w, c).
    standardize: mean 0 and variance 1 by the training rows; per feature of (n, f), else one mean for all numbers.
    """
    arrays = _read(Path(path).expanduser())
    if "x_train" in arrays:
        train, test = (_part(arrays, f"_{part}", path, channels_last) for part in ("train", "test"))
    else:
        train, test = split_columns(_part(arrays, "", path, channels_last), split, test_share, split_seed, task)
    if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
        raise FedsimError(
            f"{path} has training inputs of {train.x.dtype}{list(train.x.shape[1:])} and test inputs of "
            f"{test.x.dtype}{list(test.x.shape[1:])}; store both in one shape and type"
        )
    return build(name or Path(path).stem, train, test, task, _pipeline(train.x, standardize), str(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays with names of ours. Raises FedsimError for anything but plain arrays; nothing is ever unpickled."""
    if not path.is_file():
        raise FedsimError(f"there is no file {path}; set dataset.path to a .npz file")
    if not zipfile.is_zipfile(path):
        raise FedsimError(f"{path} is not a .npz file, or it is damaged; write it with numpy.savez(path, x=..., y=...)")
    wanted = {key + part for key in KEYS for part in ("", "_train", "_test")}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key in wanted}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FedsimError(f"{path} is damaged ({error}); write it anew") from None
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise FedsimError(
                f"{path} holds an array of Python objects, which is a pickle and is not opened; "
                "store plain numbers or fixed-length texts, as with array.astype(str)"
            ) from None
        raise FedsimError(f"{path} is damaged ({error}); write it anew") from None


def _part(arrays: dict[str, np.ndarray], part: str, path: str, channels_last: bool) -> Columns:
    missing = [key + part for key in ("x", "y") if key + part not in arrays]
    if missing:
        raise FedsimError(
            f"{path} has no array {missing[0]}; it needs x_train, y_train, x_test and y_test, or x and y "
            f"(of these it has {', '.join(sorted(arrays)) or 'none'})"
        )
    where = f"{path} ({part.removeprefix('_')})" if part else path
    x = _inputs(arrays["x" + part], "x" + part, path, channels_last)
    return Columns(x, arrays["y" + part], arrays.get("user" + part), arrays.get("time" + part), where)


def _inputs(x: np.ndarray, key: str, path: str, channels_last: bool) -> np.ndarray:
    """(n, c, h, w) uint8 for pictures of bytes, float32 for all other numbers."""
    if x.ndim < 2 or x.dtype.kind not in "biuf":
        raise FedsimError(f"{key} of {path} is {x.dtype}{list(x.shape)}; give numbers with a row for every example")
    if x.ndim == 4 and channels_last:
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        with np.errstate(over="ignore"):
            return x.astype(np.float32)
    if x.ndim == 4 and x.shape[1] not in (1, 3, 4):
        turn = "false" if channels_last else "true"
        raise FedsimError(
            f"{key} of {path} has the shape {list(x.shape)}, where channels should come second; "
            f"set dataset.channels_last={turn}"
        )
    return x[:, None] if x.ndim == 3 else x


def _pipeline(x: np.ndarray, standardize: bool) -> nn.Module:
    if x.dtype == np.uint8:
        return fit_normalize(torch.from_numpy(x)) if standardize else Normalize(0.0, 1.0)
    if not standardize:
        return nn.Identity()
    if x.ndim == 2:
        return Standardize.fit(torch.from_numpy(x))
    return Standardize(torch.tensor(x.mean(dtype=np.float64)), torch.tensor(x.std(dtype=np.float64)))
