"""1,797 handwritten digits of 8x8 pixels, as carried by scikit-learn (UCI optdigits, its test part)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples, Normalize
from fedsim.data.sources._files import find_file, missing, package_file, read_bytes
from fedsim.data.splits import stratified_split

ABOUT = "1,797 digits, 8x8, 10 classes; for smoke tests"
HOW = "pip install scikit-learn"
FILE = "digits.csv.gz"
SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"


def find(root: str | None = None) -> Path | None:
    """The packed CSV file: in `root`, among fetched data, or inside scikit-learn."""
    return find_file("digits", FILE, root, package_file("sklearn", "datasets", "data", FILE))


def load(root: str | None = None) -> Dataset:
    """Images x (n, 1, 8, 8) uint8 (values 0..16), labels y (n,) int64; the test is a fixed fifth of each class."""
    path = find(root)
    if path is None:
        raise missing("digits", FILE, root, HOW)
    text = read_bytes(path, "digits", HOW, SHA256)
    rows = np.fromstring(text.replace(b"\n", b","), dtype=np.int16, sep=",").reshape(1797, 65)  # 64 pixels, the label
    x = torch.from_numpy(rows[:, :64].astype(np.uint8).reshape(-1, 1, 8, 8))
    y = rows[:, 64].astype(np.int64)
    train, test = (Examples(x[split], torch.from_numpy(y[split])) for split in stratified_split(y, 0.2, name="digits"))
    raw = train.x.double() / 255  # Normalize counts in 255ths, whatever the largest value is
    pipeline = Normalize(raw.mean().item(), raw.std(unbiased=False).item())
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("digits", train, test, "classification", classes, pipeline, source=str(path))
