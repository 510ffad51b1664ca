"""CIFAR-10: 50,000 + 10,000 colour pictures of 32x32 in 10 classes, from the binary version of the archive."""

from __future__ import annotations

from pathlib import Path

from fedsim.data.dataset import Dataset
from fedsim.data.sources._cifar import Version, fetch_version, find_folder, load_version

ABOUT = "CIFAR-10, 50,000 + 10,000 colour images, 32x32, 10 classes"
HOW = "python -m fedsim.data cifar10 --fetch (170 MB), or dataset.root=DIR with the files of cifar-10-binary.tar.gz"
VERSION = Version(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    header=1,
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOMENTS = ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])  # of the 50,000 training pictures, red, green, blue


def find(root: str | None = None) -> Path | None:
    """The folder with data_batch_1.bin ... data_batch_5.bin and test_batch.bin."""
    return find_folder(VERSION, root)


def load(root: str | None = None) -> Dataset:
    """Pictures x (n, 3, 32, 32) uint8 and labels y (n,) int64 in the official split."""
    return load_version(VERSION, root, label_at=0, classes=CLASSES, moments=MOMENTS)


def fetch(root: Path | None = None) -> Path:
    """Download and unpack into `root`; returns the folder of the record files."""
    return fetch_version(VERSION, root)
