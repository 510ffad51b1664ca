"""Which rows an export may look at: training rows where the run promised nobody anything, and otherwise never one of them.

Whatever is worked out from the model alone keeps its promise (post-processing, Dwork and Roth 2014, proposition 2.1). To look
at training rows again, to calibrate, to distil, would be a release of its own that no ledger holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.serving.source import Trained
from fedsim.types import FedsimError

CALIBRATION_ROWS = 512
MOST_ROWS = 20_000
"""That a student learns from."""


class Rows(NamedTuple):
    """x: (n, ...) raw inputs; y: (n, ...) targets. split: train, test, or none, with n = 0. why: that split, in a sentence."""

    x: Tensor
    y: Tensor
    split: str
    why: str
    numbers: np.ndarray


def calibration_rows(run: Trained, count: int = CALIBRATION_ROWS) -> Rows:
    """Up to `count` raw rows by which ranges of activations may be measured."""
    if not run.private:
        return training_rows(run, count)
    test, train, nobody = run.dataset.test, run.dataset.train, np.zeros(0, dtype=np.int64)
    if (
        test.user is not None
        and train.owner is not None
        and np.isin(test.user, np.unique(np.asarray(train.owner))).any()
    ):
        why = (
            "the run promises privacy and its test rows are of users who trained too, so no row was looked at: "
            "ranges of activations are measured anew for each batch on the device"
        )
        return Rows(*test.take(nobody), "none", why, nobody)
    draw = rng.numpy_generator(run.seed, 0, rng.SERVER, "export calibration")
    rows = np.sort(draw.permutation(len(test))[:count])
    why = (
        f"the run promises privacy, so no training row was looked at: {len(rows)} test rows were, without their labels"
    )
    return Rows(*test.take(rows), "test", why, rows)


def training_rows(run: Trained, count: int) -> Rows:
    """Up to `count` raw rows that clients trained on, of clients drawn by the seed; what they held out stays unseen.

    Raises FedsimError for a run that promised privacy.
    """
    if run.private:
        raise FedsimError(
            f"{run.folder} promises privacy (privacy.json), which another look at its training rows would break; "
            "leave distill out, or name a run with privacy=none"
        )
    population = run.population
    draw = rng.numpy_generator(run.seed, 0, rng.SERVER, "export rows")
    found, size = [np.zeros(0, dtype=np.int64)], 0
    for client in draw.permutation(population.num_holders).tolist():
        found.append(population.rows(client)[0])
        size += len(found[-1])
        if size >= 4 * count:  # of several clients, so that one of them does not speak for all
            break
    rows = np.concatenate(found)
    rows = np.sort(draw.permutation(rows)[:count])
    why = (
        f"the run promises no privacy: {len(rows):,} of the rows that its clients trained on were looked at to calibrate, which "
        "only a simulation has in one place; on devices, take rows of your own"
    )
    return Rows(*run.dataset.train.take(rows), "train", why, rows)


def all_test(run: Trained) -> tuple[Tensor, Tensor]:
    """x (n, ...) and y (n, ...) of the whole test split, raw."""
    return run.dataset.test.take(np.arange(len(run.dataset.test)))


def others(run: Trained, rows: Rows) -> Tensor:
    """(n,) bool: the test rows that did not calibrate."""
    found = torch.ones(len(run.dataset.test), dtype=torch.bool)
    if rows.split == "test":
        found[torch.from_numpy(rows.numbers)] = False
    return found
