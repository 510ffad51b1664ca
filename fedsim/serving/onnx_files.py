"""A traced pipeline as ONNX, and quantised to int8, where preprocessing stays as it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.export import ExportedProgram

from fedsim.make import first_line
from fedsim.serving.pipeline import INPUT, quiet
from fedsim.types import FedsimError, MissingPackageError

if TYPE_CHECKING:
    from onnx import ModelProto

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PREPROCESSING = "preprocessing/"
"""What the names of nodes begin with that come before the model."""

FOLDED = 262_144
"""Numbers of a constant that the exporter computes beforehand, whatever the weights."""

RECURRENT = ("LSTM", "GRU", "RNN")
ARITHMETIC = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators in which the time and the weights are."""

STATIC = (*ARITHMETIC, "Gather", "Relu", "Clip", "MaxPool", "AveragePool", "Reshape", "Flatten")
"""Operators that stay in int8 from one weight to the next; norms and sums are more exact in float32, and cheap."""

DYNAMIC = ("MatMul", "Gemm", "Conv", "LSTM", "Gather")


class Quantised(NamedTuple):
    """How a file came to int8. method: static or dynamic. why: the rule, in a sentence. operators: those with int8 weights."""

    method: str
    why: str
    operators: dict[str, int]


def require_packages() -> None:
    """Raises MissingPackageError where one is not installed."""
    import importlib

    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackageError(
                f"fedsim.export needs {package}; install it with pip install 'fedsim-flower[export]'"
            ) from error


def write_onnx(program: ExportedProgram, outputs: Sequence[str], path: Path) -> None:
    """ONNX of a traced pipeline. outputs: their names, in order. Raises FedsimError for what ONNX has no operator for."""
    import onnx

    try:
        with quiet(), torch.no_grad():
            made = torch.onnx.export(
                program, (), dynamo=True, input_names=[INPUT], output_names=list(outputs), verbose=False
            )
        assert made is not None  # it writes no file itself
        model = _folded(made.model_proto)
    except Exception as error:
        raise FedsimError(
            f"the model cannot be written as ONNX ({type(error).__name__}: {first_line(error)}); use operations that ONNX has, "
            "as torch.nn's layers do"
        ) from error
    _tidy(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _folded(model: ModelProto) -> ModelProto:
    """What is computed from weights alone, computed once and for all: the exporter itself leaves large ones, as an LSTM's.

    Nothing larger than the largest weight is written.
    """
    from onnxscript import optimizer

    largest = max((int(np.prod(array.dims)) for array in model.graph.initializer), default=0)
    with quiet():
        return optimizer.optimize(model, input_size_limit=sys.maxsize, output_size_limit=max(largest, FOLDED))


def _tidy(model: ModelProto) -> None:
    """Preprocessing nodes by their names, the batch's size by its own, and nothing of the machine that exported."""
    for node in model.graph.node:
        scopes = {one.key: one.value for one in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        if "'preprocess'" in scopes:
            node.name = f"{PREPROCESSING}{node.name}"
    (first,) = model.graph.input
    size = first.type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for one in value.type.tensor_type.shape.dim:
            if one.dim_param == size:
                one.dim_param = "batch"
        del value.metadata_props[:]
    for part in (*model.graph.node, *model.graph.initializer, model.graph, model):
        del part.metadata_props[:]
        part.doc_string = ""


def write_narrow(float32: Path, path: Path) -> None:
    """The same file with its model's weights kept in float16 and widened as it is loaded: half the size, arithmetic in float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(float32)
    spared = {name for node in model.graph.node if node.name.startswith(PREPROCESSING) for name in node.input}
    widen = []
    for array in model.graph.initializer:
        if array.data_type != TensorProto.FLOAT or array.name in spared:
            continue
        name, narrow = array.name, f"{array.name}/float16"
        array.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(array).astype(np.float16), narrow))
        widen.append(helper.make_node("Cast", [narrow], [name], name=f"widen/{name}", to=TensorProto.FLOAT))
    nodes = [*widen, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def is_recurrent(path: Path) -> bool:
    """Whether it has an LSTM or the like: onnxruntime has none in float16 on a CPU, and ends the process that asks for one."""
    import onnx

    return any(node.op_type in RECURRENT for node in onnx.load(path).graph.node)


def write_int8(float32: Path, path: Path, calibration: np.ndarray) -> Quantised:
    """Quantised by onnxruntime. Raises FedsimError where there is nothing to quantise, or it cannot.

    calibration: (n, ...) raw inputs; n = 0 where none may be looked at. Static quantisation, per channel, fixes the ranges of
    activations by them (arXiv 1712.05877); dynamic quantisation measures each batch's, on the device.
    """
    import onnx

    model = onnx.load(float32)
    kinds = {node.op_type for node in model.graph.node}
    method, why = choose_method(kinds, len(calibration))
    try:
        with quiet():
            (_static if method == "static" else _dynamic)(model, path, calibration)
    except Exception as error:  # onnxruntime's quantisers raise whatever they meet
        raise FedsimError(f"onnxruntime cannot quantise it ({type(error).__name__}: {first_line(error)})") from error
    found = _quantised_operators(onnx.load(path))
    if not found:
        raise FedsimError("it has no operator whose weights onnxruntime keeps in int8")
    return Quantised(method, why, found)


def choose_method(kinds: set[str], rows: int) -> tuple[str, str]:
    """The rule: by the layers of the model, and by what may be looked at."""
    if recurrent := [kind for kind in RECURRENT if kind in kinds]:
        return "dynamic", f"onnxruntime has no statically quantised {recurrent[0]}"
    if rows == 0:
        return "dynamic", "static quantisation needs rows to calibrate by, and none may be looked at"
    return (
        "static",
        "the arithmetic is in convolutions and dense layers, whose ranges of activations can be fixed beforehand",
    )


def _static(model: ModelProto, path: Path, calibration: np.ndarray) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        model,
        path,
        _Reader(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(STATIC),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_preprocessing(model),
        calibrate_method=CalibrationMethod.MinMax,
    )


def _dynamic(model: ModelProto, path: Path, calibration: np.ndarray) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # its convolutions take unsigned weights alone
    kind = QuantType.QUInt8 if any(node.op_type == "Conv" for node in model.graph.node) else QuantType.QInt8
    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=list(DYNAMIC),
        per_channel=True,
        weight_type=kind,
        nodes_to_exclude=_preprocessing(model),
    )


class _Reader:
    """Calibration rows, a batch at a time."""

    def __init__(self, rows: np.ndarray, batch_size: int = 64) -> None:
        self.batches = iter([rows[start : start + batch_size] for start in range(0, len(rows), batch_size)])

    def get_next(self) -> dict[str, Any] | None:
        """None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def _preprocessing(model: ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.name.startswith(PREPROCESSING)]


def _quantised_operators(model: ModelProto) -> dict[str, int]:
    """How many operators of each kind take weights in 8 bits."""
    small = {one.name for one in model.graph.initializer if one.data_type in (2, 3)}  # uint8, int8
    restored = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in small}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear") and {*node.input} & (small | restored):
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return found
