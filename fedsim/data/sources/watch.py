"""Shoulder exercises seen by a smartwatch (Burns et al. 2018, arXiv:1802.01489), as carried by the package seglearn.

Ten subjects did seven exercises with each arm: 140 series of acceleration and turn rate, 50 samples a second. The test
is three subjects whom no device of the training has seen, which is what a new user of a shipped model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples, Standardize
from fedsim.data.sources._files import find_file, missing, package_file, read_bytes
from fedsim.data.sources._unpickle import unpickle
from fedsim.types import FedsimError

ABOUT = "smartwatch exercises, 3,605 windows of 6 x 128, 7 classes, 10 subjects"
HOW = "pip install 'fedsim-flower[watch]'"
FILE = "watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
HEADER = 128  # bytes before the pickle in this .npy file


def find(root: str | None = None) -> Path | None:
    """The .npy file: in `root`, among fetched data, or inside seglearn."""
    return find_file("watch", FILE, root, package_file("seglearn", "data", FILE))


def load(
    root: str | None = None, window: int = 128, step: int = 64, test_subjects: Sequence[int] = (8, 9, 10)
) -> Dataset:
    """Windows x (n, 6, window) float32 and exercises y (n,) int64; users are the subjects, training ones first.

    test_subjects: the default is the last three by number, chosen before any model was trained.
    window, step: in samples (50 a second).
    """
    path = find(root)
    if path is None:
        raise missing("watch", FILE, root, HOW)
    series = unpickle(read_bytes(path, "watch", HOW, SHA256)[HEADER:])
    series = series.item() if isinstance(series, np.ndarray) else series
    subjects = _subject_order(series["subject"], test_subjects)
    x, y, user = _windows(series, subjects, window, step)
    in_test = user >= len(subjects) - len(test_subjects)
    train, test = (
        Examples(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]), user[rows]) for rows in (~in_test, in_test)
    )
    per_channel = train.x.double().transpose(0, 1).flatten(1)  # (6, windows * samples)
    mean, std = per_channel.mean(1, keepdim=True), per_channel.std(1, unbiased=False, keepdim=True)  # (6, 1)
    return Dataset(
        "watch",
        train,
        test,
        "classification",
        tuple(series["y_labels"]),
        Standardize(mean, std),
        users=tuple(f"subject {subject}" for subject in subjects),
        source=str(path),
    )


def _subject_order(present: np.ndarray, test_subjects: Sequence[int]) -> list[int]:
    """Subject numbers in user order: those to train on, then those of the test, so that no training user is empty."""
    everyone, held = np.unique(present).tolist(), list(test_subjects)
    if not 0 < len(set(held)) == len(held) < len(everyone) or not set(held) <= set(everyone):
        raise FedsimError(
            f"dataset.test_subjects={held} must name some, not all, of the subjects {everyone}, each once"
        )
    return [subject for subject in everyone if subject not in held] + held


def _windows(series: dict, subjects: list[int], window: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All windows x (n, 6, window) of all series, with y (n,) and user (n,), in the order of the file."""
    shortest = min(len(values) for values in series["X"])
    if not (1 <= window <= shortest and step >= 1):
        raise FedsimError(f"dataset.window={window} must lie in 1..{shortest} and dataset.step={step} be at least 1")
    # values (samples, 6) -> (windows, 6, window)
    cut = [np.lib.stride_tricks.sliding_window_view(values, window, axis=0)[::step] for values in series["X"]]
    counts = [len(windows) for windows in cut]
    user = [subjects.index(subject) for subject in series["subject"]]
    return (
        np.concatenate(cut, dtype=np.float32, casting="same_kind"),
        np.repeat(np.asarray(series["y"], np.int64), counts),
        np.repeat(np.asarray(user, np.int64), counts),
    )
