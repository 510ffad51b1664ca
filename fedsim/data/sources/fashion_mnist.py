"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 60,000 + 10,000 images of clothes in four IDX files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples, Normalize
from fedsim.data.sources._files import download, missing, read_bytes
from fedsim.paths import data_dir
from fedsim.types import FedsimError

ABOUT = "Fashion-MNIST, 60,000 + 10,000 images, 28x28, 10 classes"
HOW = "python -m fedsim.data fashion_mnist --fetch, or apt-get install dataset-fashion-mnist"
URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
SHA256 = {  # of the unpacked files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def find(root: str | None = None) -> Path | None:
    """The folder that holds all four files, packed or not; torchvision's layout below `root` counts as well."""
    places = [data_dir("fashion_mnist"), Path("/usr/share/datasets/fashion-mnist")]
    if root:
        places = [Path(root).expanduser(), Path(root).expanduser() / "FashionMNIST" / "raw"]
    return next((place for place in places if all(_file(place, name) for name in SHA256)), None)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def load(root: str | None = None, verify: bool = True) -> Dataset:
    """Images x (n, 1, 28, 28) uint8 and labels y (n,) int64 in the official split.

    verify=False reads IDX files of the same format whose content is another (a part of the set, MNIST itself).
    """
    folder = find(root)
    if folder is None:
        raise missing("fashion_mnist", "train-images-idx3-ubyte.gz", root, HOW)
    train, test = (_read_split(folder, split, verify) for split in ("train", "t10k"))
    # Mean and standard deviation of the 60,000 training images.
    return Dataset(
        "fashion_mnist", train, test, "classification", CLASSES, Normalize(0.2860, 0.3530), source=str(folder)
    )


def _read_split(folder: Path, split: str, verify: bool) -> Examples:
    images, labels = (
        read_idx(_file(folder, name) or folder / name, SHA256[name] if verify else None)
        for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte")
    )
    return Examples(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path, sha256: str | None = None) -> np.ndarray:
    """An IDX file of bytes, packed or not: 0, 0, the type 8, the number of axes, the sizes (big-endian), the data."""
    content = read_bytes(path, "fashion_mnist", HOW, sha256)
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    if content[:3] != b"\0\0\x08" or len(content) < start:
        raise FedsimError(
            f"dataset fashion_mnist: {path} is no IDX file of bytes (it begins with {content[:4].hex() or 'nothing'}); "
            f"get it anew with `{HOW}`"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, 4))
    if len(content) - start != math.prod(shape):
        raise FedsimError(
            f"dataset fashion_mnist: {path} holds {len(content) - start:,} bytes, not the {math.prod(shape):,} "
            f"of its shape {shape}; get it anew with `{HOW}`"
        )
    return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(
        shape
    )  # a bytearray, so that torch may write


def fetch(root: Path) -> Path:
    """Download the four packed files from the authors' repository (30 MB)."""
    for name, sha256 in SHA256.items():
        download(f"{URL}{name}.gz", root / f"{name}.gz", "fashion_mnist", sha256)
    return root
