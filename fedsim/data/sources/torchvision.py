"""The picture sets that torchvision knows by name, from files that it has downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.checks import require_choice
from fedsim.data.dataset import Dataset
from fedsim.data.sources._columns import Columns, build
from fedsim.data.sources._images import fit_normalize
from fedsim.paths import data_dir
from fedsim.types import FedsimError, MissingPackageError

ABOUT = "MNIST, FashionMNIST, KMNIST, EMNIST, USPS, SVHN, STL10, CIFAR10, CIFAR100 through torchvision"
HOW = "dataset=torchvision dataset.name=MNIST dataset.root=DIR, where DIR is the root that torchvision downloaded to"
# CIFAR10 and CIFAR100 are pickles, which torchvision opens after checking each file's MD5; dataset=cifar10 needs none.
BY_TRAIN = ("MNIST", "FashionMNIST", "KMNIST", "USPS", "CIFAR10", "CIFAR100")  # classes with train=True | False
BY_SPLIT = ("SVHN", "STL10")  # classes with split="train" | "test"
NAMES = (*BY_TRAIN, *BY_SPLIT, "EMNIST")
EMNIST_PARTS = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")


def find(root: str | None = None) -> Path | None:
    """The folder that torchvision downloaded to: `root`, or that of fetched data."""
    places = [Path(root).expanduser() if root else data_dir("torchvision")]
    return next((place for place in places if place.is_dir()), None)


def load(name: str, root: str | None = None, emnist: str = "balanced") -> Dataset:
    """Pictures x (n, c, h, w) uint8 and labels y (n,) int64 in the official split. emnist: which part of EMNIST."""
    require_choice("dataset.name", name, NAMES)
    require_choice("dataset.emnist", emnist, EMNIST_PARTS)
    folder = find(root) or (Path(root).expanduser() if root else data_dir("torchvision"))
    try:
        train, test = (_open(name, folder, part, emnist, download=False) for part in ("train", "test"))
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FedsimError(
            f"dataset.name={name} is not whole in {folder or data_dir('torchvision')} ({reason}); fetch it with "
            f"torchvision.datasets.{name}(DIR, download=True) and set dataset.root=DIR"
        ) from None
    columns = [_columns(part, name, str(folder)) for part in (train, test)]
    used = np.unique(np.concatenate([part.label for part in columns]))  # EMNIST letters has a class 0 without a picture
    names = getattr(train, "classes", None)
    labels = [Columns(part.x, np.searchsorted(used, part.label), None, None, part.where) for part in columns]
    classes = tuple(str(names[label]) if names and label < len(names) else str(label) for label in used.tolist())
    return build(
        name,
        labels[0],
        labels[1],
        "classification",
        fit_normalize(torch.from_numpy(columns[0].x)),
        str(folder),
        classes,
    )


def fetch(root: Path | None = None, name: str = "MNIST", emnist: str = "balanced") -> Path:
    """Let torchvision download the set into `root`; returns that folder."""
    require_choice("dataset.name", name, NAMES)
    folder = data_dir("torchvision") if root is None else Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for part in ("train", "test"):
            _open(name, folder, part, emnist, download=True)
    except (RuntimeError, OSError) as error:
        raise FedsimError(f"torchvision could not download {name} to {folder} ({error})") from None
    return folder


def _open(name: str, folder: Path, part: str, emnist: str, download: bool) -> Any:
    datasets = _torchvision_datasets()
    if name == "EMNIST":
        return datasets.EMNIST(str(folder), split=emnist, train=part == "train", download=download)
    key: dict[str, Any] = {"split": part} if name in BY_SPLIT else {"train": part == "train"}
    return getattr(datasets, name)(str(folder), **key, download=download)


def _torchvision_datasets() -> Any:
    try:
        from torchvision import datasets
    except ImportError:
        raise MissingPackageError("dataset=torchvision needs torchvision; run `pip install torchvision`") from None
    except RuntimeError as error:  # built for another torch: its compiled operators do not load
        raise MissingPackageError(
            f"the installed torchvision does not fit the installed torch ({error}); install the pair together, as with "
            "`pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu`"
        ) from None
    return datasets


def _columns(part: Any, name: str, where: str) -> Columns:
    """torchvision keeps pictures in .data and labels in .targets or .labels, in four layouts."""
    x = np.asarray(part.data)
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[-1] == 3:
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    if name == "EMNIST":
        x = np.ascontiguousarray(x.swapaxes(2, 3))  # its files hold pictures with rows and columns exchanged
    labels = part.targets if hasattr(part, "targets") else part.labels
    return Columns(x, np.asarray(labels).astype(np.int64), None, None, where)
