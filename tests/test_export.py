"""What comes out of a run runs on a device: the files answer as the model does, raw rows in, and break no promise."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import config, run_into, tiny, tiny_dataset
from safetensors.torch import load_file
from torch import Tensor, nn

import fedsim
import fedsim.serving.session
from fedsim import export
from fedsim.data.dataset import Dataset, Examples, Standardize, Symbols
from fedsim.data.sources.digits import load as digits
from fedsim.models import CNN
from fedsim.serving import bench, onnx_files
from fedsim.serving.pipeline import Pipeline, trace
from fedsim.serving.rows import calibration_rows
from fedsim.serving.smaller import Distillation, distillation_loss, pruned
from fedsim.serving.source import open_run
from fedsim.types import FedsimError

pytest.importorskip("onnxruntime")

DIGITS = (
    *("dataset=digits", "model=cnn", "model.channels=[4,8]", "model.hidden=32", "partition=iid", "device=cpu"),
    *("population.num_clients=5", "sampler=all", "rounds=3", "client.epochs=3", "grid=inprocess"),
)


@pytest.fixture(autouse=True, scope="module")
def quickly() -> Any:
    """No pictures of runs, and latencies of a few batches: their numbers are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.results.plots.write_plots", lambda run_dir, summary: [])
        patch.setattr("fedsim.results.report.write_report", lambda run_dir, summary: None)
        patch.setattr(fedsim.serving.session, "SECONDS", 0.0)
        patch.setattr(fedsim.serving.session, "FEWEST", 3)
        yield


def answers(path: Path, x: Tensor | np.ndarray) -> list[np.ndarray]:
    """All outputs of a file, by onnxruntime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (first,) = session.get_inputs()
    return session.run(None, {first.name: np.asarray(x)})


def exported(folder: Path, *arguments: str) -> dict[str, Any]:
    """What the command tells of a run."""
    export.main([str(folder), *arguments])
    return json.loads((folder / "export" / "export.json").read_text())


def told_of(told: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in told["files"] if one["file"] == name]
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on real digits, bytes of 8x8 pixels, exported with everything."""
    folder = tmp_path_factory.mktemp("pictures")
    run_into(folder, config(*DIGITS))
    exported(folder, "distill=true", "distill.epochs=8", "prune=0.5")
    return folder


@pytest.fixture(scope="module")
def told(pictures: Path) -> dict[str, Any]:
    return json.loads((pictures / "export" / "export.json").read_text())


@pytest.fixture(scope="module")
def test_rows() -> tuple[Tensor, Tensor]:
    made = digits().test
    return made.x, made.y


FILES = (
    "model.onnx",
    "model_fp16.onnx",
    "model_int8.onnx",
    "model_pruned.onnx",
    "model_pruned_int8.onnx",
    "model_distilled.onnx",
    "model_distilled_int8.onnx",
)


def test_logits_are_those_of_the_model_on_rows_preprocessed_by_hand(pictures: Path, test_rows: Any) -> None:
    model = CNN((1, 8, 8), 10, [4, 8], 32)
    model.load_state_dict(load_file(pictures / "model.safetensors"))
    raw = digits().train.x.numpy() / 255
    x = torch.from_numpy(((test_rows[0].numpy() / 255 - raw.mean()) / raw.std()).astype(np.float32))
    with torch.no_grad():
        expected = model.eval()(x)
    logits, probabilities = answers(pictures / "export" / "model.onnx", test_rows[0])
    assert np.abs(logits - expected.numpy()).max() < 1e-4
    assert np.abs(probabilities - expected.softmax(-1).numpy()).max() < 1e-5
    loaded = torch.export.load(pictures / "export" / "model.pt2").module()
    assert torch.allclose(loaded(test_rows[0])[0], expected, atol=1e-4)


def test_the_runs_own_accuracy_comes_from_raw_rows(pictures: Path, told: dict[str, Any], test_rows: Any) -> None:
    judged = json.loads((pictures / "summary.json").read_text())["accuracy"]
    by_hand = (answers(pictures / "export" / "model.onnx", test_rows[0])[0].argmax(1) == test_rows[1].numpy()).mean()
    assert told["accuracy"] == judged == by_hand == told_of(told, "model.onnx")["accuracy"]
    assert told["input"] == {"name": "input", "type": "uint8", "shape": ["batch", 1, 8, 8]}


@pytest.mark.parametrize("name", FILES)
def test_one_row_at_a_time_gives_what_many_give(name: str, pictures: Path, test_rows: Any) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(pictures / "export" / name)
    assert [one.type for one in session.get_inputs()] == ["tensor(uint8)"]
    assert [one.type for one in session.get_outputs()] == ["tensor(float)"] * 2
    rows = test_rows[0][:7].numpy()
    many = session.run(["logits"], {"input": rows})[0]
    single = np.concatenate([session.run(["logits"], {"input": row[None]})[0] for row in rows])
    assert np.abs(many - single).max() <= (1e-4 if "int8" not in name else 1e-2) * np.abs(many).max()


@pytest.mark.parametrize("name", FILES)
def test_the_table_tells_what_the_file_does(name: str, pictures: Path, told: dict[str, Any], test_rows: Any) -> None:
    one, path = told_of(told, name), pictures / "export" / name
    given = answers(path, test_rows[0])[0]
    assert one["accuracy"] == pytest.approx((given.argmax(1) == test_rows[1].numpy()).mean(), abs=0.006)
    assert one["points_lost"] == pytest.approx(100 * (told["accuracy"] - one["accuracy"]))
    log = given - given.max(1, keepdims=True)
    log -= np.log(np.exp(log).sum(1, keepdims=True))
    assert one["loss"] == pytest.approx(-log[np.arange(len(log)), test_rows[1].numpy()].mean(), rel=0.01)
    assert one["bytes"] == path.stat().st_size > one["bytes_gzip"]
    assert 0 < one["online"]["median"] <= one["online"]["p95"] and one["batch"]["size"] == 64
    assert f"| {name} |" in (pictures / "export" / "export.md").read_text()


def test_int8_is_small_per_channel_and_close(pictures: Path, told: dict[str, Any]) -> None:
    import onnx

    one = told_of(told, "model_int8.onnx")
    assert one["points_lost"] <= 1 and one["method"] == "static" and one["operators"] == {"Conv": 2, "Gemm": 2}
    assert told["calibration"] == {"split": "train", "rows": 512}
    model = onnx.load(pictures / "export" / "model_int8.onnx")
    weights = {array.name: array for array in model.graph.initializer if array.data_type == onnx.TensorProto.INT8}
    scales = {array.name: array for array in model.graph.initializer}
    of_kernels = [
        scales[node.input[1]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights and len(weights[node.input[0]].dims) == 4
    ]
    assert sorted(array.dims[0] for array in of_kernels) == [4, 8]  # one of each output channel


def test_preprocessing_stays_in_float32(pictures: Path) -> None:
    import onnx

    for name in ("model.onnx", "model_fp16.onnx", "model_int8.onnx"):
        model = onnx.load(pictures / "export" / name)
        arrays = {array.name: array for array in model.graph.initializer}
        nodes = [node for node in model.graph.node if node.name.startswith("preprocessing/")]
        kinds = [node.op_type for node in nodes]
        assert kinds == ["Cast", "Div", "Sub", "Div"], name
        used = [arrays[one] for node in nodes for one in node.input if one in arrays]
        assert {array.data_type for array in used} == {onnx.TensorProto.FLOAT}


def test_half_of_the_smallest_weights_is_zero(pictures: Path, told: dict[str, Any]) -> None:
    import onnx

    own = {name: array.numpy() for name, array in load_file(pictures / "model.safetensors").items()}
    weights = np.concatenate([np.abs(array).ravel() for array in own.values() if array.ndim > 1])
    threshold = np.sort(weights)[len(weights) // 2]
    for array in onnx.load(pictures / "export" / "model_pruned.onnx").graph.initializer:
        name = array.name.removeprefix("model.")
        if name in own:
            found, kept = onnx.numpy_helper.to_array(array), (own[name].ndim == 1) | (np.abs(own[name]) >= threshold)
            assert np.array_equal(found, np.where(kept, own[name], 0)), name
    assert told["pruning"] == {"amount": 0.5, "weights": len(weights), "zero": len(weights) // 2}
    assert told_of(told, "model_pruned.onnx")["bytes_gzip"] < 0.75 * told_of(told, "model.onnx")["bytes_gzip"]


def test_the_student_is_half_as_wide_and_has_learnt(told: dict[str, Any]) -> None:
    student = told["distillation"]
    assert student["student"]["channels"] == [2, 4] and student["student"]["hidden"] == 16
    assert student["parameters"] == sum(p.numel() for p in CNN((1, 8, 8), 10, [2, 4], 16).parameters())
    assert student["rows"] < 1797 and told_of(told, "model_distilled.onnx")["accuracy"] > 0.5  # a guess is right in 0.1
    assert told["flops_per_example"]["model_distilled"] < 0.5 * told["flops_per_example"]["model"]


def test_nothing_of_the_machine_and_no_row_is_in_the_files(pictures: Path) -> None:
    package = str(Path(fedsim.__file__).parent)
    for path in (pictures / "export").iterdir():
        content = path.read_bytes()
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        assert package.encode() not in content and b"site-packages" not in content, path.name
    (kept,), _ = torch.export.load(pictures / "export" / "model.pt2").example_inputs
    assert not kept.any()


# Other tasks, and models of one's own


def sentences_dataset() -> Dataset:
    """Symbols that come round and round, each line from another start."""
    x = (torch.arange(7)[None] + torch.arange(120)[:, None]) % 5
    y = (x + 1) % 5
    y[:, 5:] = torch.where(torch.arange(120)[:, None] % 2 == 0, -100, y[:, 5:])
    examples = Examples(x.to(torch.uint8), y)
    return Dataset("rounds", examples, examples, "next_token", tuple("abcde"), Symbols())


def distances_dataset() -> Dataset:
    """A number that follows from features far beyond float16."""
    draw = np.random.default_rng(3)
    x = torch.from_numpy(draw.normal(2e6, 5e5, (160, 4)).astype(np.float32))
    y = (x / 5e5 - 4) @ torch.tensor([1.0, -2.0, 0.5, 0.0])
    return Dataset("far", Examples(x[:120], y[:120]), Examples(x[120:], y[120:]), "regression", (), Standardize.fit(x))


def own_data(target: str, *more: str) -> tuple[str, ...]:
    return ("dataset=custom", f"dataset._target_=test_export.{target}", *more)


BASE = ("partition=iid", "population.num_clients=4", "sampler=all", "rounds=2", "device=cpu", "grid=inprocess")


def test_an_lstm_has_int8_by_dynamic_quantisation_and_float16_weights(tmp_path: Path) -> None:
    run_into(tmp_path, config(*own_data("sentences_dataset", "model=lstm", "model.hidden=64", *BASE), "client.lr=1"))
    told = exported(tmp_path)
    made = sentences_dataset().test
    known = (made.y != -100).numpy()
    for name in ("model.onnx", "model_fp16.onnx", "model_int8.onnx"):
        one, given = told_of(told, name), answers(tmp_path / "export" / name, made.x)[0]
        assert given.shape == (120, 7, 5)
        assert one["accuracy"] == pytest.approx((given.argmax(-1) == made.y.numpy())[known].mean(), abs=0.01)
        assert one["largest_difference"] < (1e-4 if name == "model.onnx" else 0.05)
    whole, half, small = (told_of(told, f"model{kind}.onnx") for kind in ("", "_fp16", "_int8"))
    assert half["bytes"] < 0.6 * whole["bytes"] and half["method"].startswith("weights in float16")
    assert small["method"] == "dynamic" and "LSTM" in small["why"] and small["operators"]["DynamicQuantizeLSTM"] == 2
    assert small["bytes"] < 0.45 * whole["bytes"]
    weights = 4 * 64 * (8 + 64 + 64 + 64) + 5 * 64
    assert told["flops_per_example"]["model"] == 7 * 2 * weights  # each once a symbol
    model = open_run(tmp_path).model
    sparse, pruning = pruned(model, 0.25)
    assert pruning == {"amount": 0.25, "weights": weights, "zero": weights // 4}  # no embedding
    x = made.x.long()
    assert not torch.allclose(sparse(x), model(x), atol=1e-3)
    assert torch.equal(model(x), open_run(tmp_path).model(x))


def test_a_regression_keeps_its_raw_features_in_float32(tmp_path: Path) -> None:
    run_into(
        tmp_path, config(*own_data("distances_dataset", "model=mlp", "model.hidden=[16]", *BASE), "client.lr=0.01")
    )
    told = exported(tmp_path)
    made = distances_dataset().test
    assert told["accuracy"] is None and [one["name"] for one in told["outputs"]] == ["value"]
    for name, tolerance in (("model.onnx", 1e-4), ("model_fp16.onnx", 0.01), ("model_int8.onnx", 0.1)):
        (given,) = answers(tmp_path / "export" / name, made.x)
        assert given.shape == (40,)
        squared = float(np.square(given - made.y.numpy()).mean())
        assert told_of(told, name)["loss"] == pytest.approx(squared, rel=1e-3)
        assert squared == pytest.approx(told["loss"], rel=tolerance)


class Gated(nn.Module):
    """Somebody's own: recurrent, and it makes float32 numbers itself."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_outputs, 4)
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.head = nn.Linear(8, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(1, len(x), 8)
        return self.head(self.gru(self.embedding(x), start)[0])


class Widening(nn.Module):
    """Somebody's own, which cannot be told to reckon in float16."""

    def __init__(self, input_shape: tuple[int], num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(*input_shape, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ self.head.weight.T + torch.ones(1, len(self.head.bias))


@pytest.mark.parametrize("model", ["Gated", "Widening"])
def test_own_models_that_fix_their_types_have_float16_weights(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(float32: Path, path: Path, calibration: Any) -> Any:
        path.write_bytes(b"half")
        raise FedsimError("it has no operator whose weights onnxruntime keeps in int8")

    monkeypatch.setattr(bench, "write_int8", fail)
    data = "sentences_dataset" if model == "Gated" else "widening_dataset"
    run_into(tmp_path, config(*own_data(data, *BASE), "model=custom", f"model._target_=test_export.{model}"))
    told = exported(tmp_path)
    assert list(told["left_out"]) == ["model_int8.onnx"] and not (tmp_path / "export" / "model_int8.onnx").exists()
    assert "model_int8.onnx is left out: it has no operator" in capsys.readouterr().out
    assert told_of(told, "model_fp16.onnx")["method"].startswith("weights in float16, arithmetic in float32")
    assert told_of(told, "model_fp16.onnx")["largest_difference"] < 0.01
    assert told_of(told, "model.onnx")["largest_difference"] < 1e-5


def widening_dataset() -> Dataset:
    return tiny_dataset()


# What a private run allows


def spiked_dataset(shared_users: bool = False) -> Dataset:
    """Training rows that reach 1,000 where test rows reach 5 or so: whichever calibrate, the ranges tell."""
    made = tiny_dataset()
    x = made.train.x.clone()
    x[:, 0] = torch.where(torch.arange(len(x)) % 2 == 0, 1000.0, -1000.0)
    users = np.arange(len(x)) % 8
    train, test = Examples(x, made.train.y, user=users), made.test
    if shared_users:
        test = Examples(test.x, test.y, user=np.arange(len(test)) % 8)
    return Dataset("spiked", train, test, "classification", made.classes, users=tuple(map(str, range(8))))


def input_range(path: Path) -> float:
    """The width of the input's range in a statically quantised file."""
    import onnx

    model = onnx.load(path)
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in model.graph.initializer}
    (scale,) = [arrays[n.input[1]] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "input"]
    return float(scale) * 255


PRIVATE = ("privacy=user", "privacy.noise_multiplier=0.5", "sampler=poisson", "sampler.cohort_size=4")


def spiked(*more: str) -> Any:
    return tiny("dataset._target_=test_export.spiked_dataset", "client.lr=1e-7", *more)


def test_a_private_run_is_calibrated_without_its_training_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_into(tmp_path, spiked(*PRIVATE))
    assert "promises privacy" in refused(capsys, str(tmp_path), "distill=mlp")
    assert not (tmp_path / "export").exists()
    told = exported(tmp_path)
    assert told["calibration"] == {"split": "test", "rows": 40}
    assert input_range(tmp_path / "export" / "model_int8.onnx") < 50
    page = (tmp_path / "export" / "export.md").read_text()
    assert "no training row was looked at" in page and "it promises of these files" in page


def test_other_runs_are_calibrated_by_rows_that_clients_trained_on(tmp_path: Path) -> None:
    run_into(tmp_path, spiked("population.holdout=0.25"))
    run = open_run(tmp_path)
    rows = calibration_rows(run, 20)
    trained = np.concatenate([run.population.rows(client)[0] for client in range(8)])
    assert len(rows.x) == 20 and rows.split == "train" and np.isin(rows.numbers, trained).all()
    assert (rows.x[:, 0].abs() == 1000).all()
    onnx_files.write_onnx(
        trace(Pipeline(nn.Identity(), run.model, "classification"), rows.x[:2]), ("a", "b"), tmp_path / "a"
    )
    onnx_files.write_int8(tmp_path / "a", tmp_path / "b", rows.x.numpy())
    assert input_range(tmp_path / "b") > 1900


def test_no_row_of_a_user_who_trained_is_looked_at(tmp_path: Path) -> None:
    run_into(tmp_path, spiked(*PRIVATE, "+dataset.shared_users=true"))
    rows = calibration_rows(open_run(tmp_path))
    assert rows.split == "none" and rows.x.shape == (0, 6)
    assert onnx_files.choose_method({"Gemm"}, len(rows.x))[0] == "dynamic"
    assert onnx_files.choose_method({"Gemm"}, 1)[0] == "static"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence of a command that is refused."""
    with pytest.raises(SystemExit) as stopped:
        export.main(list(arguments))
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and said[-1].startswith("fedsim: ")
    return said[-1]


def test_a_package_that_is_missing_is_named(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "needs onnxscript; install it with pip install 'fedsim-flower[export]'" in refused(capsys, str(pictures))


def test_the_loss_of_a_student_is_that_of_the_paper() -> None:
    outputs, taught = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 2.0, 0.0]])
    t, hard = 3.0, 0.25

    def soft(values: list[float]) -> np.ndarray:
        powers = np.exp(np.array(values) / t)
        return powers / powers.sum()

    p, q = soft([0.5, 2.0, 0.0]), soft([1.0, 0.0, -1.0])
    own = -math.log(math.exp(0) / (math.e + 1 + math.exp(-1)))
    expected = 0.75 * t**2 * float((p * np.log(p / q)).sum()) + 0.25 * own
    how = Distillation(temperature=t, hard=hard)
    found = distillation_loss(outputs, taught, torch.tensor([1]), "classification", how)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    twice = torch.stack([outputs, outputs], 1), torch.stack([taught, taught], 1), torch.tensor([[1, -100]])
    assert float(distillation_loss(*twice, "next_token", how)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_quickstarts_int8_loses_at_most_a_point(tmp_path: Path) -> None:
    run_into(tmp_path, config("+experiment=quickstart", "device=cpu"))
    told = exported(tmp_path)
    assert told["accuracy"] > 0.93 and told_of(told, "model_int8.onnx")["points_lost"] <= 1
    assert told_of(told, "model_int8.onnx")["bytes"] < 0.3 * told_of(told, "model.onnx")["bytes"]
