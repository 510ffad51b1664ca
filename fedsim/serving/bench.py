"""One run's files: each is written, judged on the test rows, and timed, by the runtime that will run it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fedsim.serving.onnx_files import is_recurrent, write_int8, write_narrow, write_onnx
from fedsim.serving.pipeline import OUTPUTS, Pipeline, quiet, trace
from fedsim.serving.rows import all_test, calibration_rows
from fedsim.serving.session import Answers, Quality, latency, onnx_answers, quality, torch_answers
from fedsim.serving.source import Trained
from fedsim.types import FedsimError

ONLINE, BATCH = 1, 64
TOLERANCE = 1e-4
"""By which outputs of a file in float32 may differ from PyTorch's, where these are up to 1; in proportion for larger ones."""

NARROW = "weights in float16, arithmetic in float32"
File = dict[str, Any]
"""What is told of one file: see `Bench.judged`."""


class Bench:
    """Writes files of a run into a folder and judges them. say: hears what is being done."""

    def __init__(self, run: Trained, folder: Path, say: Callable[[str], None]) -> None:
        self.run, self.folder, self.say = run, folder, say
        self.calibration = calibration_rows(run)
        self.x, self.y = all_test(run)
        self.own = self.pipeline(run.model)
        self.reference: Quality = self.quality(torch_answers(self.own))
        self.files: list[File] = []
        self.left_out: dict[str, str] = {}

    def pipeline(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> Pipeline:
        """A model behind the run's preprocessing."""
        return Pipeline(self.run.population.preprocess, model, self.run.dataset.task, dtype)

    def trace(self, pipeline: Pipeline) -> ExportedProgram:
        """See `pipeline.trace`."""
        return trace(pipeline, self.run.raw(2))

    def quality(self, answers: Answers, reference: Answers | None = None) -> Quality:
        """On the whole test split."""
        return quality(answers, self.x, self.y, self.run.dataset.task, reference)

    def write_program(self, pipeline: Pipeline) -> ExportedProgram:
        """model.pt2, which is read back by torch.export and run by PyTorch; gives the trace, which ONNX begins with too."""
        self.say("writing model.pt2")
        path, program = self.folder / "model.pt2", self.trace(pipeline)
        with quiet():
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()
        self.judge(path, "float32", torch_answers(loaded), pipeline, runtime="PyTorch")
        return program

    def write_float32(self, pipeline: Pipeline, stem: str, program: ExportedProgram | None = None) -> Path:
        """STEM.onnx. program: the pipeline's trace, where there is one."""
        self.say(f"writing {stem}.onnx")
        path = self.folder / f"{stem}.onnx"
        write_onnx(self.trace(pipeline) if program is None else program, OUTPUTS[pipeline.task], path)
        self.judge(path, "float32", onnx_answers(path), pipeline)
        return path

    def write_float16(self, pipeline: Pipeline, float32: Path) -> None:
        """STEM_fp16.onnx, beside STEM.onnx."""
        path = float32.with_name(f"{float32.stem}_fp16.onnx")
        self.say(f"writing {path.name}")
        if is_recurrent(float32):
            write_narrow(float32, path)
            how, answers = f"{NARROW}: onnxruntime has no recurrent layer in float16 on a CPU", onnx_answers(path)
        else:
            try:
                write_onnx(self.trace(self.pipeline(pipeline.model, torch.float16)), OUTPUTS[pipeline.task], path)
                how, answers = "arithmetic in float16", onnx_answers(path)
            except FedsimError:
                write_narrow(float32, path)
                how, answers = f"{NARROW}: the model fixes the type of its numbers itself", onnx_answers(path)
        self.judge(path, "float16", answers, pipeline, how={"method": how})

    def write_int8(self, pipeline: Pipeline, float32: Path) -> None:
        """STEM_int8.onnx, beside STEM.onnx; left out, with the reason, where it cannot be had."""
        path = float32.with_name(f"{float32.stem}_int8.onnx")
        self.say(f"writing {path.name}")
        try:
            how = write_int8(float32, path, self.calibration.x.numpy())._asdict()
            self.judge(path, "int8", onnx_answers(path), pipeline, how=how)
        except FedsimError as error:
            path.unlink(missing_ok=True)
            self.left_out[path.name] = str(error)

    def judge(
        self,
        path: Path,
        precision: str,
        answers: Answers,
        network: Pipeline,
        runtime: str = "onnxruntime",
        how: dict[str, Any] | None = None,
    ) -> None:
        """Note a file's size, what it is worth, how far it is from the same network in PyTorch, and how long it takes.

        Raises FedsimError where a file in float32 gives other outputs than the network.
        """
        found, content = self.quality(answers, torch_answers(network)), path.read_bytes()
        if precision == "float32":
            refuse_other(path.name, found)
        self.files.append(
            {
                "file": path.name,
                "precision": precision,
                "runtime": runtime,
                "bytes": len(content),
                "bytes_gzip": len(gzip.compress(content, mtime=0)),
                "accuracy": found.accuracy,
                "loss": found.loss,
                "points_lost": self._points_lost(found),
                "largest_difference": found.gap,
                "online": latency(answers, self.x, ONLINE)._asdict(),
                "batch": {"size": BATCH, **latency(answers, self.x, BATCH)._asdict()},
                **(how or {}),
                **(self._others(found) if precision == "int8" else {}),
            }
        )

    def _points_lost(self, found: Quality) -> float | None:
        own = self.reference.accuracy
        return None if found.accuracy is None or own is None else 100 * (own - found.accuracy)

    def _others(self, found: Quality) -> dict[str, Any]:
        """The accuracy on test rows that did not calibrate, where some did."""
        if self.calibration.split != "test" or len(found.correct) == 0:
            return {}
        fresh = ~torch.isin(torch.from_numpy(found.row), torch.from_numpy(self.calibration.numbers)).numpy()
        return {"accuracy_of_other_rows": float(found.correct[fresh].mean()) if fresh.any() else None}


def refuse_other(name: str, found: Quality) -> None:
    """Raise FedsimError where outputs are apart by more than rounding."""
    gap = found.gap if found.gap is not None else 0.0
    if not gap <= TOLERANCE * max(1.0, found.scale):  # NaN is not
        raise FedsimError(
            f"{name} gives other outputs than the model (apart by {gap:.3g}); its forward does what a trace cannot hold, such as "
            "a branch on values or random numbers: write it without"
        )
