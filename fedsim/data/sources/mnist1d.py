"""MNIST-1D (Greydanus and Kobak 2020, arXiv:2011.14439): 5,000 signals of 40 points, 10 classes.

Made with the code of the package mnist1d and its seed rather than downloaded: the published file is a pickle.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples
from fedsim.data.sources._files import missing, package_file
from fedsim.types import FedsimError

ABOUT = "MNIST-1D, generated: 4,000 + 1,000 signals of 40 points, 10 classes"
HOW = "pip install mnist1d"


def find(root: str | None = None) -> Path | None:
    """The generator inside the package mnist1d; `root` is not looked at, there is no file."""
    path = package_file("mnist1d", "data.py")
    return path if path is not None and path.is_file() else None


def load(root: str | None = None, rows: int = 5000) -> Dataset:
    """Signals x (n, 1, 40) float32 and labels y (n,) int64; the package's own split, the last fifth for the test.

    rows: how many to make, a multiple of 10, since every class gets as many.
    """
    if rows < 50 or rows % 10:
        raise FedsimError(f"dataset.rows={rows} must be a multiple of 10 and at least 50")
    path = find(root)
    if path is None:
        raise missing("mnist1d", "the generator", root, HOW)
    made = _make(rows)
    train, test = (
        Examples(torch.from_numpy(x.astype(np.float32)).unsqueeze(1), torch.from_numpy(y.astype(np.int64)))
        for x, y in ((made["x"], made["y"]), (made["x_test"], made["y_test"]))
    )
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("mnist1d", train, test, "classification", classes, source=f"{path} (generated)")


def _make(rows: int) -> dict[str, np.ndarray]:
    generate = importlib.import_module("mnist1d.data")
    settings = generate.get_dataset_args()
    settings.num_samples = rows
    with _global_draws_kept():
        return generate.make_dataset(settings)


@contextmanager
def _global_draws_kept() -> Iterator[None]:
    """The package seeds the global generators of Python and numpy; put them back as they were."""
    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002
