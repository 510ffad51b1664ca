"""Which rows a device leaves out because their label looks wrong: the parts `cleaning=...`."""

from __future__ import annotations

import warnings

import numpy as np

from fedsim.checks import require_choice, require_int
from fedsim.types import MissingPackageError

RULES = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning")


class Cleaning:
    """Base class, and `cleaning=none`: every row is trained on. kind: the part's name; cleans: whether any is looked at."""

    kind = "none"
    cleans = False

    def prepare(self) -> None:
        """Before any work. Raises MissingPackageError where a package is missing."""

    def flag(self, labels: np.ndarray, answers: np.ndarray, round: int) -> np.ndarray:
        """(n,) bool: rows to leave out of this round. labels: (n,) int64; answers: (n, classes) of models that knew none."""
        return np.zeros(len(labels), bool)


class Uncleaned(Cleaning):
    """`cleaning=none`."""


class ConfidentLearning(Cleaning):
    """`cleaning=confident`: confident learning on each device by itself (Northcutt, Jiang and Chuang, arXiv 1911.00068).

    Of each row the device keeps what the model said of it when it came, before anybody could train on it: out-of-sample
    probabilities, without cross-validation. rule: which off-diagonal rows of the confident joint are left out, in cleanlab's
    words (section 3.2). after: rounds without cleaning, while the model knows little. least: rows that a device must hold.
    """

    kind = "confident"
    cleans = True

    def __init__(self, rule: str = "both", after: int = 10, least: int = 20) -> None:
        self.rule = require_choice("cleaning.rule", rule, RULES)
        self.after = require_int("cleaning.after", after, low=0)
        self.least = require_int("cleaning.least", least, low=1)

    def prepare(self) -> None:
        """See Cleaning."""
        try:
            import cleanlab.filter  # noqa: F401
        except ImportError as error:
            raise MissingPackageError(
                "cleaning=confident needs cleanlab; run `pip install 'fedsim-flower[cleaning]'`"
            ) from error

    def flag(self, labels: np.ndarray, answers: np.ndarray, round: int) -> np.ndarray:
        """See Cleaning. Nothing is left out of labels that are all alike, nor where every row would be."""
        none = np.zeros(len(labels), bool)
        if round <= self.after or len(labels) < self.least or len(np.unique(labels)) < 2:
            return none
        from cleanlab.filter import find_label_issues

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that a device has one row of
            flagged = find_label_issues(labels, np.asarray(answers, np.float64), filter_by=self.rule, n_jobs=1)
        return none if flagged.all() else np.asarray(flagged, bool)
