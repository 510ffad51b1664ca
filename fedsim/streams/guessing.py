"""What stands in for a label that a client has not: the parts `unlabelled=...`.

A row is guessed once, when it comes and its label is not there, before anybody trains on it: were it guessed again by a model that
was trained on the first guess, the guess would confirm itself. A label that comes later takes the place of the guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import require_number
from fedsim.types import FedsimError

ABSTAINS = -1
"""The guess of a row that stays without one."""

LabellingFunction = Callable[[Tensor], Tensor]
"""Preprocessed inputs (n, ...) to labels (n,), ABSTAINS where it has none to give."""


class Unlabelled:
    """Base class, and `unlabelled=none`: rows without a label are not trained on. kind: the part's name.

    guesses: whether anything is. looks: whether guesses follow from the model's answers.
    """

    kind = "none"
    guesses = False
    looks = False

    def guess(self, x: Tensor, answers: np.ndarray, num_classes: int) -> np.ndarray:
        """(n,) int64 labels, ABSTAINS where there is none. x: (n, ...) preprocessed; answers: (n, classes), as in Labels.ask."""
        return np.full(len(x), ABSTAINS)


class Dropped(Unlabelled):
    """`unlabelled=none`."""


class PseudoLabels(Unlabelled):
    """`unlabelled=pseudo_labels`: the model's own answer, where its probability is at least `confidence`.

    Lee 2013 ("Pseudo-Label", ICML workshop on challenges in representation learning), with the bound of FixMatch (arXiv
    2001.07685, equation 4); on clients with few labels as in FedMatch (arXiv 2006.12097), without its helpers.
    """

    kind = "pseudo_labels"
    guesses = True
    looks = True

    def __init__(self, confidence: float = 0.95) -> None:
        self.confidence = require_number("unlabelled.confidence", confidence, low=0, high=1)

    def guess(self, x: Tensor, answers: np.ndarray, num_classes: int) -> np.ndarray:
        """See Unlabelled."""
        return np.where(answers.max(1, initial=0) >= self.confidence, answers.argmax(1), ABSTAINS)


class LabellingFunctions(Unlabelled):
    """`unlabelled=labelling_functions`: what most of the user's functions say, nothing where they are tied or all abstain.

    functions: each maps preprocessed inputs (n, ...) to labels (n,), -1 where it abstains; on devices whose rows are few, to which
    no model of the functions' accuracies could be fitted, all count alike (the majority vote of Snorkel, arXiv 1711.10160).
    """

    kind = "labelling_functions"
    guesses = True

    def __init__(self, functions: Sequence[LabellingFunction] = ()) -> None:
        if isinstance(functions, str) or not functions or not all(callable(function) for function in functions):
            raise FedsimError(
                "unlabelled.functions holds no functions to ask; give a list, as in "
                "'unlabelled.functions=[{_target_: my_module.my_function, _partial_: true}]'"
            )
        self.functions = list(functions)

    def guess(self, x: Tensor, answers: np.ndarray, num_classes: int) -> np.ndarray:
        """See Unlabelled. Raises FedsimError where a function gives something else than labels."""
        votes = np.stack([self._said(function, x, num_classes) for function in self.functions])  # (functions, n)
        counts = (votes[..., None] == np.arange(num_classes)).sum(0)  # (n, classes)
        most = counts.max(1, keepdims=True)
        decided = (most[:, 0] > 0) & ((counts == most).sum(1) == 1)
        return np.where(decided, counts.argmax(1), ABSTAINS)

    def _said(self, function: LabellingFunction, x: Tensor, num_classes: int) -> np.ndarray:
        said = torch.as_tensor(function(x)).cpu().numpy()
        labels = said.shape == (len(x),) and said.dtype.kind in "iu"
        if not labels or said.min(initial=0) < ABSTAINS or said.max(initial=0) >= num_classes:
            named = getattr(function, "func", function)
            raise FedsimError(
                f"the labelling function {getattr(named, '__name__', named)} of unlabelled.functions must give a whole number for "
                f"each row, from 0 to {num_classes - 1}, or -1 where it abstains"
            )
        return said.astype(np.int64)
