"""One pipeline for training and serving: a raw example in, preprocessing, the model, an answer out; and its trace."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fedsim.make import first_line
from fedsim.types import FedsimError

INPUT = "input"
OUTPUTS = {
    "classification": ("logits", "probabilities"),
    "next_token": ("logits", "probabilities"),
    "regression": ("value",),
}
"""Names of what the pipeline gives, by task."""


class Pipeline(nn.Module):
    """Preprocessing and model as one, in evaluation mode, with copies of both.

    dtype: of the model's weights and arithmetic. Preprocessing stays in float32: raw features may be beyond float16's 65,504.
    """

    def __init__(self, preprocess: nn.Module, model: nn.Module, task: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.preprocess, self.model = copy.deepcopy(preprocess), copy.deepcopy(model).to(dtype)
        self.task, self.dtype = task, dtype
        self.eval().requires_grad_(False)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """input: (b, ...) raw -> logits and probabilities, each (b, classes) or (b, length, symbols); or value (b,). In float32."""
        x = self.preprocess(input)
        outputs = self.model(x.to(self.dtype) if x.is_floating_point() else x).float()
        return (outputs.squeeze(-1),) if self.task == "regression" else (outputs, outputs.softmax(-1))


def trace(pipeline: Pipeline, example: Tensor) -> ExportedProgram:
    """The pipeline as torch.export has it, for batches of any size. example: (2, ...) raw; it is kept in the program.

    Raises FedsimError for a model that cannot be traced: one that branches on values, or fixes the size of a batch.
    """
    try:
        program = _export(pipeline, example)
    except Exception as error:  # anything that a model's own code raises when it is traced
        what = f"model ({type(pipeline.model).__name__})"
        try:
            _export(pipeline.preprocess, example)
        except Exception:
            what = f"preprocessing of the dataset ({type(pipeline.preprocess).__name__})"
        raise FedsimError(
            f"the {what} cannot be traced by torch.export ({type(error).__name__}: {first_line(error).rstrip('.')}); write its "
            "forward in tensor operations that branch on no value and take batches of any size (x.shape[0], not a number)"
        ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names folders of the machine that exported
    return program


def _export(module: nn.Module, example: Tensor) -> ExportedProgram:
    """By running it, and where that fails by reading its code, which understands more of Python, as `len(x)`, and takes longer."""
    with quiet(), torch.no_grad():
        shapes = ({0: Dim("batch", min=1)},)
        try:
            return torch.export.export(module, (example,), dynamic_shapes=shapes)
        except Exception:
            return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch and onnxruntime say to their own developers while they trace and quantise."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
