"""How good a model is: predictions on examples, and the metrics that are read off them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.training.objectives import IGNORED_TARGET

CALIBRATION_BINS = 15


class Predictions(NamedTuple):
    """One element a target; a sequence has many. All on the CPU.

    row: (t,) the example that the target belongs to. loss: (t,). For classes, also target, predicted: (t,) int64 and
    confidence: (t,) the probability of the predicted class; for regression these three are None.
    """

    row: Tensor
    loss: Tensor
    target: Tensor | None
    predicted: Tensor | None
    confidence: Tensor | None


@torch.no_grad()
def predict(
    model: nn.Module, x: Tensor, y: Tensor, task: str, batch_size: int, preprocess: nn.Module | None = None
) -> Predictions:
    """Run `model` in evaluation mode over x (n, ...), y (n, ...), a batch at a time."""
    model.eval()
    parts = list(_predict_batches(model, x, y, task, batch_size, preprocess))
    row, loss, target, predicted, confidence = (
        None if column[0] is None else torch.cat(column).cpu() for column in zip(*parts, strict=True)
    )
    assert row is not None and loss is not None  # every task has these two
    return Predictions(row, loss, target, predicted, confidence)


def _predict_batches(
    model: nn.Module, x: Tensor, y: Tensor, task: str, batch_size: int, preprocess: nn.Module | None
) -> Iterator[tuple[Tensor | None, ...]]:
    device = next(model.parameters()).device
    for start in range(0, len(x), batch_size):
        batch, target = x[start : start + batch_size].to(device), y[start : start + batch_size].to(device)
        outputs = model(batch if preprocess is None else preprocess(batch))
        row = torch.arange(start, start + len(batch), device=outputs.device)
        if task == "regression":
            yield row, (outputs.squeeze(-1) - target).square(), None, None, None
            continue
        if task == "next_token":
            row = row[:, None].expand_as(target).flatten()
            outputs, target = outputs.flatten(0, 1), target.flatten()
            known = target != IGNORED_TARGET
            row, outputs, target = row[known], outputs[known], target[known]
        log_probabilities = F.log_softmax(outputs, dim=-1)  # (targets, classes)
        confidence, predicted = log_probabilities.max(dim=-1)
        loss = -log_probabilities.gather(-1, target[:, None]).squeeze(-1)
        yield row, loss, target, predicted, confidence.exp()


def metrics_of(predictions: Predictions, num_classes: int) -> dict[str, float | None]:
    """loss, accuracy, macro_f1 and ece of all targets; the last three are None for regression, all where there are none."""
    if len(predictions.loss) == 0:
        return {"loss": None, "accuracy": None, "macro_f1": None, "ece": None}
    loss = finite_or_none(float(predictions.loss.double().mean()))
    if predictions.target is None or predictions.predicted is None or predictions.confidence is None:
        return {"loss": loss, "accuracy": None, "macro_f1": None, "ece": None}
    correct = predictions.predicted == predictions.target
    return {
        "loss": loss,
        "accuracy": float(correct.double().mean()),
        "macro_f1": macro_f1(predictions.target, predictions.predicted, num_classes),
        "ece": expected_calibration_error(correct, predictions.confidence),
    }


def macro_f1(target: Tensor, predicted: Tensor, num_classes: int) -> float:
    """Mean of the classes' F1 over the classes that occur among targets or predictions, as scikit-learn has it."""
    confusion = torch.bincount(target * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, -1)
    hits, either = confusion.diagonal().double(), (confusion.sum(0) + confusion.sum(1)).double()
    occurs = either > 0
    return float((2 * hits[occurs] / either[occurs]).mean())


def expected_calibration_error(correct: Tensor, confidence: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size (arXiv 1706.04599, eq. 3)."""
    bin_of = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1  # intervals (a, b], as in the paper
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, correct.double() - confidence.double())
    return float(gap.abs().sum() / len(correct))


def across_clients(values: Sequence[float]) -> dict[str, float]:
    """How a metric spreads over clients: mean, std, and the means of the worst and best tenth (arXiv 1905.10497, table 1).

    values: one a client, each client counting alike; larger is better; at least one.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    tenth = max(1, math.ceil(len(ordered) / 10))
    return {
        "mean": float(ordered.mean()),
        "std": float(ordered.std()),
        "worst10": float(ordered[:tenth].mean()),
        "best10": float(ordered[-tenth:].mean()),
    }


def finite_or_none(value: float) -> float | None:
    """A number that JSON and Parquet can hold: a model that has diverged has no loss."""
    return value if math.isfinite(value) else None
