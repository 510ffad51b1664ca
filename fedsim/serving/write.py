"""From a finished run to a folder of files for devices, and what there is to tell of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedsim.results.files import write_json
from fedsim.results.run import host, versions
from fedsim.serving.bench import Bench
from fedsim.serving.estimate import estimate, flops_per_example, profiles
from fedsim.serving.folder import whole_folder
from fedsim.serving.onnx_files import PACKAGES, require_packages
from fedsim.serving.pipeline import INPUT, OUTPUTS, Pipeline
from fedsim.serving.promise import sentences
from fedsim.serving.report import markdown
from fedsim.serving.rows import training_rows
from fedsim.serving.smaller import Distillation, count, distil, pruned, student_config
from fedsim.serving.source import open_run

FOLDER = "export"


@dataclass(frozen=True)
class Request:
    """What the user asked for. prune: share of weights set to zero, None for none. command: as typed."""

    folder: Path
    distill: Distillation | None = None
    prune: float | None = None
    command: str = ""


def export(request: Request, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Write RUN/export, whole or not at all, and give what its export.json tells. say: hears what is being done.

    Raises FedsimError where the folder is no finished run, or its model cannot be exported.
    """
    require_packages()
    run = open_run(request.folder)
    if request.distill:  # refused before any work: private rows, and a model that has no student
        training_rows(run, 1)
        student_config(run, request.distill.student)
    with whole_folder(request.folder / FOLDER) as folder:
        bench = Bench(run, folder, say)
        networks, about = _write(bench, request)
        told = {
            "run": str(request.folder),
            "command": request.command,
            **_told(bench),
            **about,
            **_estimates(bench, networks),
        }
        write_json(folder / "export.json", told)
        (folder / "export.md").write_text(markdown(told), encoding="utf-8")
    return told


def _write(bench: Bench, request: Request) -> tuple[dict[str, Pipeline], dict[str, Any]]:
    """Write every file; the networks that differ in what they compute, and what is to be told of the smaller ones."""
    networks: dict[str, Pipeline] = {"model": bench.own}
    about: dict[str, Any] = {"pruning": None, "distillation": None}
    float32 = bench.write_float32(bench.own, "model", bench.write_program(bench.own))
    bench.write_float16(bench.own, float32)
    bench.write_int8(bench.own, float32)
    if request.prune is not None:
        model, about["pruning"] = pruned(bench.run.model, request.prune)
        sparse = bench.pipeline(model)
        bench.write_int8(sparse, bench.write_float32(sparse, "model_pruned"))
    if request.distill:
        bench.say(f"a student learns from the model, in {request.distill.epochs} passes over training rows")
        student, about["distillation"] = distil(bench.run, request.distill)
        networks["model_distilled"] = bench.pipeline(student)
        bench.write_int8(
            networks["model_distilled"], bench.write_float32(networks["model_distilled"], "model_distilled")
        )
    return networks, about


def _told(bench: Bench) -> dict[str, Any]:
    run = bench.run
    return {
        "experiment": run.summary.get("experiment"),
        "task": run.dataset.task,
        "accuracy": bench.reference.accuracy,
        "loss": bench.reference.loss,
        "test_rows": len(bench.x),
        "model": type(run.model).__name__,
        "parameters": count(run.model),
        "preprocessing": type(run.population.preprocess).__name__,
        **_signature(bench),
        "privacy": sentences(run, bench.calibration),
        "calibration": {"split": bench.calibration.split, "rows": len(bench.calibration.x)},
        "files": bench.files,
        "left_out": bench.left_out,
        "machine": host(),
        "versions": {**versions(), **{package: version(package) for package in PACKAGES}},
    }


def _signature(bench: Bench) -> dict[str, Any]:
    """What goes in and what comes out, for who writes the app."""
    dataset, row = bench.run.dataset, bench.run.raw(1)
    with torch.no_grad():
        outputs = bench.own(row)
    return {
        "input": {"name": INPUT, "type": str(row.numpy().dtype), "shape": ["batch", *row.shape[1:]]},
        "outputs": [
            {"name": name, "type": "float32", "shape": ["batch", *one.shape[1:]]}
            for name, one in zip(OUTPUTS[dataset.task], outputs, strict=True)
        ],
        "classes": list(dataset.classes),
    }


def _estimates(bench: Bench, networks: dict[str, Pipeline]) -> dict[str, Any]:
    """Counted operations of each network, and the seconds that they take on each kind of device of conf/fleet."""
    flops = {name: flops_per_example(network, bench.run.raw(1)) for name, network in networks.items()}
    return {
        "flops_per_example": flops,
        "estimates": [
            {
                "fleets": one.fleets,
                "kind": one.kind,
                "flops_per_second": one.flops,
                "seconds": {name: estimate(operations, one.flops) for name, operations in flops.items()},
            }
            for one in profiles()
        ],
    }
