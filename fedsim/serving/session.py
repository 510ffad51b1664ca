"""What a file does when it is run: how right it is on the test rows, how near to the run's own model, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.make import first_line
from fedsim.serving.pipeline import INPUT
from fedsim.training.evaluation import finite_or_none
from fedsim.training.objectives import IGNORED_TARGET, OBJECTIVES, row_losses
from fedsim.types import FedsimError

Answers = Callable[[np.ndarray], np.ndarray]
"""(b, ...) raw inputs -> the first output: (b, classes), (b, length, symbols) or (b,)."""

JUDGED_AT_ONCE = 256
WARM_UP = 10
FEWEST, MOST, SECONDS = 30, 2000, 1.0
"""Repeats of a latency: at least and at most so many, and as many as fit into so many seconds."""


class Quality(NamedTuple):
    """On the test rows. accuracy: None for regression. gap: the largest difference to the reference's outputs, None without one.

    scale: the largest absolute output. correct: (t,) bool, a target each; empty for regression. row: (t,) the row it is of.
    """

    loss: float | None
    accuracy: float | None
    gap: float | None
    scale: float
    correct: np.ndarray
    row: np.ndarray


class Latency(NamedTuple):
    """Milliseconds an example. repeats: how many batches were timed."""

    median: float
    p95: float
    repeats: int


def onnx_answers(path: Path) -> Answers:
    """The file in onnxruntime, on one thread of this CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise FedsimError(
            f"onnxruntime cannot run {path.name} ({type(error).__name__}: {first_line(error)}); use operations that it has, as "
            "torch.nn's layers do"
        ) from error
    first = session.get_outputs()[0].name
    return lambda x: session.run([first], {INPUT: x})[0]


def torch_answers(module: Callable[[Tensor], Any]) -> Answers:
    """A pipeline in PyTorch, on as many threads as this process has."""

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x))[0].numpy()

    return run


def quality(answers: Answers, x: Tensor, y: Tensor, task: str, reference: Answers | None = None) -> Quality:
    """Judge `answers` on raw rows x (n, ...) with targets y (n, ...)."""
    losses, correct, rows, gap, scale = [], [], [], 0.0, 0.0
    for start in range(0, len(x), JUDGED_AT_ONCE):
        batch, target = x[start : start + JUDGED_AT_ONCE].numpy(), y[start : start + JUDGED_AT_ONCE]
        given = answers(batch)
        scale = max(scale, float(np.abs(given).max()))
        if reference is not None:
            gap = float(np.maximum(gap, np.abs(given - reference(batch)).max()))  # NaN stays
        outputs = torch.from_numpy(given)
        known = torch.ones_like(target, dtype=torch.bool) if task == "regression" else target != IGNORED_TARGET
        outputs_of = outputs[:, None] if task == "regression" else outputs
        losses.append(row_losses(OBJECTIVES[task], outputs_of, target)[known].double())
        if task != "regression":
            correct.append((outputs.argmax(-1) == target)[known])
            rows.append(start + known.nonzero()[:, 0])
    hits = torch.cat(correct).numpy() if correct else np.zeros(0, dtype=bool)
    return Quality(
        finite_or_none(float(torch.cat(losses).mean())),
        float(hits.mean()) if correct else None,
        gap if reference is not None else None,
        scale,
        hits,
        torch.cat(rows).numpy() if rows else np.zeros(0, dtype=np.int64),
    )


def latency(answers: Answers, x: Tensor, batch_size: int) -> Latency:
    """How long batches of raw rows x (n, ...) take, one after another; rows come again where there are fewer."""
    rows = np.resize(np.arange(len(x)), max(len(x), batch_size))
    batches = [
        x[rows[start : start + batch_size]].numpy() for start in range(0, len(rows) - batch_size + 1, batch_size)
    ]
    for place in range(WARM_UP):
        answers(batches[place % len(batches)])
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < FEWEST or (len(taken) < MOST and time.perf_counter() < end):
        batch = batches[len(taken) % len(batches)]
        start = time.perf_counter()
        answers(batch)
        taken.append(time.perf_counter() - start)
    each = np.array(taken) * 1e3 / batch_size
    return Latency(float(np.median(each)), float(np.quantile(each, 0.95)), len(taken))
