"""An export that cannot be had: one sentence, a folder as it was; and what is estimated without a device."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import config, run_into, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedsim import export
from fedsim.models import CNN, CharLSTM
from fedsim.paths import conf_dir
from fedsim.serving.estimate import estimate, flops_per_example, profiles
from fedsim.serving.folder import whole_folder

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True, scope="module")
def no_pictures_of_runs() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.results.plots.write_plots", lambda run_dir, summary: [])
        patch.setattr("fedsim.results.report.write_report", lambda run_dir, summary: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_into(folder, tiny())
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def sentence_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        export.main([str(one) for one in arguments])
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and said[-1].startswith("fedsim: ") and "Traceback" not in "".join(said)
    return said[-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prune=0"], "prune=0 is out of range; it must be above 0 and below 1"),
        (["prune=1"], "prune=1 is out of range"),
        (["prune=half"], "prune=half is not a number; give one, as in prune=0.5"),
        (["prune="], "prune= is empty"),
        (["prune=0.5", "prune=0.6"], "a key is given twice"),
        (["prun=0.5"], "prun is not a key of fedsim.export (did you mean prune?)"),
        (["distil=true"], "did you mean distill?"),
        (["distill.epochs=3"], "distill.epochs is of a student that is not asked for; add distill=true"),
        (["distill=true", "distill.epochs=0"], "distill.epochs=0 is out of range"),
        (["distill=true", "distill.temperature=0"], "distill.temperature=0 is out of range"),
        (["distill=cnnn"], "distill=cnnn is not known"),
        (["distill=true"], "has none of hidden, channels, widths to halve"),
        (["elsewhere"], "name one folder"),
    ],
)
def test_a_command_that_cannot_be_meant(
    arguments: list[str], expected: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in sentence_of(capsys, finished, *arguments)
    assert not (finished / "export").exists()


def test_no_arguments_say_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    export.main([])
    assert "python -m fedsim.export RUN_DIR" in capsys.readouterr().out


def without_summary(run: Path) -> None:
    (run / "summary.json").unlink()


def nothing(run: Path) -> None:
    shutil.rmtree(run)


def empty(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


def of_a_sweep(run: Path) -> None:
    shutil.move(run, run.with_name("moved"))
    shutil.move(run.with_name("moved"), run / "cell")


def no_model(run: Path) -> None:
    (run / "model.safetensors").unlink()


def cut_model(run: Path) -> None:
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:50])


def changed_model(run: Path, change: Any) -> None:
    arrays = load_file(run / "model.safetensors")
    save_file(change(arrays), run / "model.safetensors")


def of_other_shapes(run: Path) -> None:
    changed_model(run, lambda arrays: {name: array[:1].clone() for name, array in arrays.items()})


def of_other_names(run: Path) -> None:
    changed_model(run, lambda arrays: {f"other.{name}": array for name, array in arrays.items()})


def not_finite(run: Path) -> None:
    changed_model(run, lambda arrays: {name: array * float("nan") for name, array in arrays.items()})


def no_promise(run: Path) -> None:
    (run / "privacy.json").unlink()


def cut_summary(run: Path) -> None:
    (run / "summary.json").write_text('{"accuracy": ')


def summary_of_something_else(run: Path) -> None:
    (run / "summary.json").write_text("[1, 2]")


def no_configuration(run: Path) -> None:
    (run / ".hydra" / "config.yaml").unlink()


def cut_configuration(run: Path) -> None:
    (run / ".hydra" / "config.yaml").write_text("dataset: {")


def configuration_of_something_else(run: Path) -> None:
    (run / ".hydra" / "config.yaml").write_text("model: 3\n")


def other_data(run: Path) -> None:
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("helpers.tiny_dataset", "helpers.tiny_dataset\n  noise: 0.5"))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (nothing, "is not there; give the folder of a finished run"),
        (empty, "has no summary.json, so it is not a finished run"),
        (without_summary, "holds a run that was stopped; finish it first, with: python -m fedsim resume="),
        (of_a_sweep, "is the folder of a sweep; name one of its runs, as in"),
        (no_model, "model.safetensors is not there"),
        (cut_model, "model.safetensors is corrupt"),
        (of_other_shapes, "does not fit model=fedsim.models.Linear of the run's configuration at 1.bias, 1.weight"),
        (of_other_names, "does not fit model=fedsim.models.Linear"),
        (not_finite, "holds NaN or Inf"),
        (no_promise, "privacy.json is not there"),
        (cut_summary, "summary.json is corrupt"),
        (summary_of_something_else, "summary.json is not the summary of a run"),
        (no_configuration, "has no .hydra/config.yaml"),
        (cut_configuration, "config.yaml is corrupt"),
        (configuration_of_something_else, "is not the configuration of a run of fedsim"),
        (other_data, "the data of dataset tiny have changed since"),
    ],
)
def test_a_folder_that_is_no_whole_run(
    spoil: Any, expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run)
    assert expected in sentence_of(capsys, run)
    assert not (run / "export").exists()


def test_a_run_without_a_shared_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_into(tmp_path, tiny("strategy=local_only"))
    assert "has no model that its clients share" in sentence_of(capsys, tmp_path)


class Branches(nn.Module):
    """Goes another way where the values are large."""

    def __init__(self, input_shape: tuple[int], num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(*input_shape, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) if x.max() < 3 else self.head(-x)


class Counts(Branches):
    """Reads the size of the batch as a number."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * (1 if len(x) < 5 else 2)


class Noisy(Branches):
    """Draws in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + torch.rand_like(x))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Branches", "the model (Branches) cannot be traced by torch.export"),
        ("Counts", "the model (Counts) cannot be traced by torch.export"),
        ("Noisy", "gives other outputs than the model"),
    ],
)
def test_an_own_model_that_cannot_be_exported(
    model: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_into(tmp_path, tiny("model=custom", f"model._target_=test_export_errors.{model}"))
    assert expected in sentence_of(capsys, tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir() if "export" in one.name) == []


def test_a_batchnorm_without_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_into(tmp_path, tiny("model=custom", "model._target_=test_export_errors.mixing"))
    assert "answers one example by the others of its batch" in sentence_of(capsys, tmp_path)


def mixing(input_shape: tuple[int], num_outputs: int) -> nn.Module:
    halves = nn.Unflatten(1, (input_shape[0] // 2, 2))  # so that one example is enough to try it on
    norm = nn.BatchNorm1d(input_shape[0] // 2, track_running_stats=False)
    return nn.Sequential(halves, norm, nn.Flatten(), nn.Linear(*input_shape, num_outputs))


def test_a_folder_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    with whole_folder(folder) as temporary:
        (temporary / "first").write_text("1")
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as temporary:
        (temporary / "second").write_text("2")
        raise KeyboardInterrupt
    assert [one.name for one in tmp_path.iterdir()] == ["export"] and (folder / "first").exists()
    (tmp_path / ".export.tmp").mkdir()  # by a process that was killed
    (tmp_path / ".export.tmp" / "rest").write_text("3")
    with whole_folder(folder) as temporary:
        (temporary / "second").write_text("2")
    assert [one.name for one in folder.iterdir()] == ["second"]
    assert [one.name for one in tmp_path.iterdir()] == ["export"]


def test_operations_are_those_of_the_closed_form() -> None:
    convolutions = 28 * 28 * 16 * 25 + 14 * 14 * 32 * 16 * 25
    dense = 7 * 7 * 32 * 128 + 128 * 10
    model = CNN((1, 28, 28), 10, [16, 32], 128).eval()
    assert flops_per_example(model, torch.zeros(1, 1, 28, 28)) == 2 * (convolutions + dense)
    gates, head = 4 * 32 * (8 + 32) + 4 * 32 * (32 + 32), 32 * 30
    assert flops_per_example(CharLSTM((20,), 30, 8, 32, 2).eval(), torch.zeros(1, 20).long()) == 20 * 2 * (gates + head)


def test_profiles_are_those_of_the_fleets() -> None:
    found = profiles()
    assert [one.flops for one in found] == sorted(one.flops for one in found) and len(found) > 3
    named = {(one.kind, fleet): one.flops for one in found for fleet in one.fleets}
    for fleet in ("phones", "iot", "silos"):
        kinds = yaml.safe_load((conf_dir() / "fleet" / f"{fleet}.yaml").read_text())["kinds"]
        assert {(kind, fleet): 1e9 * own["gflops"] for kind, own in kinds.items()}.items() <= named.items()
    assert estimate(6e9, 2e9) == 3


def test_every_model_of_the_configuration_can_be_traced() -> None:
    """By a picture, or a series."""
    from fedsim.build import make_model
    from fedsim.data.dataset import Dataset, Examples
    from fedsim.serving.pipeline import Pipeline, trace

    y = torch.zeros(2, dtype=torch.int64)
    shapes = {"cnn1d": (3, 32)}
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        if path.stem in ("custom", "lstm"):  # the lstm is exported whole in test_export.py
            continue
        x = torch.zeros((2, *shapes.get(path.stem, (1, 16, 16))))
        dataset = Dataset("made", Examples(x, y), Examples(x, y), "classification", ("a", "b"))
        model = make_model(config(f"model={path.stem}"), dataset)
        program = trace(Pipeline(nn.Identity(), model, "classification"), x).module()
        assert [len(program(x[:1].expand(size, *x.shape[1:]))[0]) for size in (1, 5)] == [1, 5], path.stem
