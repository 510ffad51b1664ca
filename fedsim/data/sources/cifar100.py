"""CIFAR-100: 50,000 + 10,000 colour pictures of 32x32 in 100 fine or 20 coarse classes, from the binary version."""

from __future__ import annotations

from pathlib import Path

from fedsim.checks import require_choice
from fedsim.data.dataset import Dataset
from fedsim.data.sources._cifar import Version, class_names, fetch_version, find_folder, load_version

ABOUT = "CIFAR-100, 50,000 + 10,000 colour images, 32x32, 100 classes (or 20 coarse ones)"
HOW = "python -m fedsim.data cifar100 --fetch (169 MB), or dataset.root=DIR with the files of cifar-100-binary.tar.gz"
VERSION = Version(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    header=2,
)
LABELS = {"coarse": 20, "fine": 100}  # in the order of a record's two label bytes
MOMENTS = ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])  # of the 50,000 training pictures, red, green, blue


def find(root: str | None = None) -> Path | None:
    """The folder with train.bin and test.bin."""
    return find_folder(VERSION, root)


def load(root: str | None = None, label: str = "fine") -> Dataset:
    """Pictures x (n, 3, 32, 32) uint8 and labels y (n,) int64 of the chosen kind in the official split."""
    label = require_choice("dataset.label", label, LABELS)
    classes = class_names(find(root), f"{label}_label_names.txt", LABELS[label])
    return load_version(VERSION, root, label_at=list(LABELS).index(label), classes=classes, moments=MOMENTS)


def fetch(root: Path | None = None) -> Path:
    """Download and unpack into `root`; returns the folder of the record files."""
    return fetch_version(VERSION, root)
