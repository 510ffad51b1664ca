"""Trackers, each against what it really wrote: event files, an MLflow store, W&B's offline files."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.results.loggers import Logger, MLflowLogger, NoLogger, TensorBoardLogger, WandbLogger, flatten, numbers
from fedsim.types import FedsimError, MissingPackageError

CONFIG: dict[str, object] = {
    "seed": 0,
    "client": {"lr": 0.1, "epochs": 1},
    "privacy": None,
    "logger": {"tracking_uri": "https://me:secret@host"},
    "many": {f"key{i}": i for i in range(150)},
    "long": "x" * 20_000,
}
SUMMARY: dict[str, Any] = {
    "experiment": "test",
    "rounds": 3,
    "accuracy": 0.75,
    "epsilon": None,
    "loss": math.inf,
    "federated": {"accuracy_mean": 0.5},
    "dataset": {"classes": ["a", "b"]},
}


def row(number: int) -> dict[str, Any]:
    """Round 2 has no evaluation; the loss of round 3 is not a number."""
    return {
        "round": number,
        "train_loss": 1.0 / number,
        "accuracy": None if number == 2 else 0.1 * number,
        "loss": math.nan if number == 3 else 2.0,
        "cohort_size": 10,
    }


def run(logger: Logger, folder: Path, rounds: range, end: str = "finish") -> None:
    folder.mkdir(exist_ok=True)
    logger.start(CONFIG, folder)
    for number in rounds:
        logger.round(row(number))
    if end == "finish":
        logger.finish(SUMMARY)
    elif end == "abort":
        logger.abort("RuntimeError: boom")


def test_numbers_leave_out_what_is_no_finite_number() -> None:
    assert numbers(SUMMARY) == {"rounds": 3.0, "accuracy": 0.75, "federated/accuracy_mean": 0.5}
    assert numbers({"flag": True, "text": "1", "nan": math.nan}) == {}


def test_flatten_gives_the_keys_of_the_command_line() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": {}, "e": [1]}) == {"a.b.c": 1, "d": {}, "e": [1]}


def test_no_logger_writes_nothing(tmp_path: Path) -> None:
    run(NoLogger(), tmp_path / "run", range(1, 4))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("logger", "module", "extra"),
    [
        (TensorBoardLogger(), "tensorboard", "tensorboard"),
        (MLflowLogger(), "mlflow", "mlflow"),
        (WandbLogger(), "wandb", "wandb"),
    ],
)
def test_a_missing_package_is_a_sentence_with_its_pip_install(
    logger: Logger, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError) as caught:
        logger.start(CONFIG, tmp_path)
    assert f"pip install 'fedsim-flower[{extra}]'" in str(caught.value) and f"logger={extra}" in str(caught.value)


# --- TensorBoard


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def points(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(tag)]


def test_tensorboard_holds_every_finite_number_and_the_configuration(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(TensorBoardLogger(), tmp_path, range(1, 4))
    found = events(tmp_path)
    assert points(found, "round/accuracy") == [(1, 0.1), (3, 0.3)]
    assert points(found, "round/loss") == [(1, 2.0), (2, 2.0)]
    assert points(found, "summary/accuracy") == [(3, 0.75)]
    assert "round/round" not in found.Tags()["scalars"] and "summary/epsilon" not in found.Tags()["scalars"]
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "client.lr: 0.1" in text and "secret" not in text


def test_tensorboard_drops_rounds_that_a_resumed_run_does_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(TensorBoardLogger(), tmp_path, range(1, 4), end="killed")
    run(TensorBoardLogger(), tmp_path, range(2, 4))
    found = events(tmp_path)
    assert [step for step, _ in points(found, "round/train_loss")] == [1, 2, 3]


# --- MLflow


@pytest.fixture(params=["folder", "file_uri", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A local MLflow store, in each of the ways that a user may name one."""
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        pytest.importorskip("sqlalchemy")
        return f"sqlite:///{tmp_path}/mlflow.db"
    return str(tmp_path / "store") if request.param == "folder" else (tmp_path / "store").as_uri()


def mlflow_runs(uri: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("study")
        assert experiment is not None
        return client, client.search_runs([experiment.experiment_id])


def history(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, pytest.approx(metric.value)) for metric in client.get_metric_history(run_id, key))


def test_mlflow_holds_parameters_numbers_and_files(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run 1"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    run(MLflowLogger(store, "study"), folder, range(1, 4))
    client, (found,) = mlflow_runs(store, monkeypatch)
    assert found.info.status == "FINISHED" and found.info.run_name == "run 1"
    params = found.data.params
    assert params["client.lr"] == "0.1" and params["many.key149"] == "149" and params["privacy"] == "None"
    assert params["logger.tracking_uri"] == "https://***@host" and set(params["long"]) == {"x"}
    assert history(client, found.info.run_id, "accuracy") == [(1, 0.1), (3, 0.3)]
    assert history(client, found.info.run_id, "loss") == [(1, 2.0), (2, 2.0)]
    assert found.data.metrics["summary/federated/accuracy_mean"] == 0.5
    assert "summary/epsilon" not in found.data.metrics and "summary/loss" not in found.data.metrics
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["summary.json"]
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ


def test_mlflow_goes_on_with_the_same_run(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(MLflowLogger(store, "study"), tmp_path / "run", range(1, 3), end="abort")
    client, (found,) = mlflow_runs(store, monkeypatch)
    assert found.info.status == "FAILED" and found.data.tags["fedsim.aborted"] == "RuntimeError: boom"
    run(MLflowLogger(store, "study"), tmp_path / "run", range(2, 4))
    client, (again,) = mlflow_runs(store, monkeypatch)
    assert again.info.run_id == found.info.run_id and again.info.status == "FINISHED"
    assert [step for step, _ in history(client, again.info.run_id, "train_loss")] == [1, 2, 3]


def test_two_folders_are_two_mlflow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    uri = str(tmp_path / "store")
    run(MLflowLogger(uri, "study"), tmp_path / "a", range(1, 2))
    run(MLflowLogger(uri, "study"), tmp_path / "b", range(1, 2))
    assert {found.info.run_name for found in mlflow_runs(uri, monkeypatch)[1]} == {"a", "b"}


def test_an_unusable_mlflow_store_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(FedsimError) as caught:
        MLflowLogger("gopher://me:secret@host").start(CONFIG, tmp_path)
    assert "logger.tracking_uri=gopher://***@host" in str(caught.value) and "\n" not in str(caught.value)
    MLflowLogger().abort("start failed")  # must not raise


def test_numbers_that_mlflow_did_not_take_are_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.exceptions import MlflowException

    def refuse(*args: object, **kwargs: object) -> None:
        raise MlflowException("the server is away")

    logger = MLflowLogger(str(tmp_path / "store"), "study")
    logger.start(CONFIG, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(logger._client, "log_batch", refuse)
        logger.round(row(1))
    logger.round(row(2))
    logger.finish(SUMMARY)
    client, (found,) = mlflow_runs(str(tmp_path / "store"), monkeypatch)
    assert [step for step, _ in history(client, found.info.run_id, "train_loss")] == [1, 2]


# --- W&B


def test_wandb_refuses_an_unknown_mode() -> None:
    with pytest.raises(FedsimError, match=r"logger\.mode=later"):
        WandbLogger(mode="later")


def test_wandb_offline_writes_files_and_goes_on_with_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(WandbLogger(project="study"), tmp_path, range(1, 3), end="abort")
    first = (tmp_path / ".wandb_run").read_text()
    run(WandbLogger(project="study"), tmp_path, range(2, 4))
    assert (tmp_path / ".wandb_run").read_text() == first
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files and {file.stem for file in files} == {f"run-{first.strip()}"}
    assert all(file.stat().st_size > 0 for file in files)


def test_wandb_is_given_finite_numbers_and_its_own_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class FakeRun:
        id = "abc"
        summary: dict[str, Any] = {}  # noqa: RUF012 - as wide as the test

        def log(self, values: dict[str, float], step: int) -> None:
            calls.append(("log", (step, values)))

        def finish(self, exit_code: int) -> None:
            calls.append(("finish", exit_code))

    class FakeWandb:
        Error = RuntimeError

        @staticmethod
        def init(**kwargs: Any) -> FakeRun:
            calls.append(("init", kwargs))
            return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)  # type: ignore[arg-type]
    run(WandbLogger(), tmp_path, range(3, 4), end="abort")
    run(WandbLogger(), tmp_path, range(0), end="finish")
    starts = [kwargs for name, kwargs in calls if name == "init"]
    assert [start["id"] for start in starts] == [None, "abc"] and starts[0]["mode"] == "offline"
    assert "secret" not in str(starts[0]["config"])
    assert (
        "log",
        (3, {"round/train_loss": 1 / 3, "round/accuracy": pytest.approx(0.3), "round/cohort_size": 10}),
    ) in calls
    assert [code for name, code in calls if name == "finish"] == [1, 0]
    assert FakeRun.summary["accuracy"] == 0.75 and "epsilon" not in FakeRun.summary
