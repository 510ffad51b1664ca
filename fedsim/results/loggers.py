"""Optional experiment trackers beside the run's own files: TensorBoard, MLflow, Weights & Biases.

A tracker is told of the run's start, of each round, and of its end. Its package is imported in `start`. A number that
is missing or not finite is not sent, since trackers would draw it as zero. A resumed run goes on with the tracker's own
run, whose id lies in a small file of the run folder.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from fedsim.types import FedsimError, MissingPackageError

log = logging.getLogger(__name__)

MLFLOW_BATCH = 100  # parameters that MLflow takes in one call
MLFLOW_VALUE = 6000  # characters that MLflow takes in one parameter


class Logger(Protocol):
    """A tracker. `finish` or `abort` is the last call; after either a new `start` on the same folder goes on."""

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """config: the resolved configuration, nested. Raises MissingPackageError, or FedsimError if out of reach."""

    def round(self, row: dict[str, Any]) -> None:
        """row: a row of rounds.parquet."""

    def finish(self, summary: dict[str, Any]) -> None:
        """summary: what summary.json holds."""

    def abort(self, reason: str) -> None:
        """The run ended before its last round, because of `reason`."""


class NoLogger:
    """Tracks nothing."""

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """Nothing."""

    def round(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Nothing."""

    def abort(self, reason: str) -> None:
        """Nothing."""


class TensorBoardLogger:
    """Scalars and the configuration as event files in RUN_DIR/`folder`."""

    def __init__(self, folder: str = "tensorboard") -> None:
        self.folder = folder
        self._writer: Any = None
        self._config: dict[str, object] = {}
        self._path = Path()

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """See `Logger.start`."""
        _import("tensorboard", "tensorboard", "tensorboard")
        self._config, self._path = config, run_dir / self.folder

    def _open(self, step: int) -> Any:
        """The writer, opened at the first round: rounds from `step` on that a killed run had written are purged."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            resumed = self._path.is_dir() and any(self._path.iterdir())
            self._writer = SummaryWriter(str(self._path), purge_step=step if resumed else None)
            if not resumed:
                lines = [
                    f"    {key}: {without_credentials(str(value))}" for key, value in flatten(self._config).items()
                ]
                self._writer.add_text("config", "\n".join(lines))
        return self._writer

    def round(self, row: dict[str, Any]) -> None:
        """See `Logger.round`."""
        step, values = scalars(row)
        writer = self._open(step)
        for name, value in values.items():
            writer.add_scalar(f"round/{name}", value, step)
        writer.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """See `Logger.finish`."""
        step = int(summary["rounds"])
        writer = self._open(step + 1)
        for name, value in numbers(summary).items():
            writer.add_scalar(f"summary/{name}", value, step)
        self._close()

    def abort(self, reason: str) -> None:
        """See `Logger.abort`."""
        if self._writer is not None:
            self._writer.add_text("aborted", reason)
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflowLogger:
    """A run of an MLflow experiment, on a server, in a database file or in a folder.

    tracking_uri: http(s)://..., sqlite:///FILE, a folder, or None for $MLFLOW_TRACKING_URI, else mlflow.db here.
    artifacts: files and folders of the run folder to upload at its end, where they exist by then.
    A server that stops answering does not stop the run: what it missed is sent again after the next round.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment_name: str = "fedsim",
        run_name: str | None = None,
        artifacts: Sequence[str] = ("summary.json", "report.html"),
    ) -> None:
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.artifacts = tuple(artifacts)
        self._client: Any = None
        self._run_id = ""
        self._run_dir = Path()
        self._seen = 0  # the last round that the tracker already had when a run was resumed
        self._waiting: list[Any] = []

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """See `Logger.start`."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read once, when mlflow is imported
        _import("mlflow", "mlflow", "mlflow")
        from mlflow.exceptions import MlflowException

        self._run_dir = run_dir
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
        try:
            with _folder_allowed(uri):
                self._connect(uri, config)
        except (MlflowException, ModuleNotFoundError, OSError) as error:
            raise FedsimError(
                f"MLflow cannot be used at logger.tracking_uri={without_credentials(uri)} ({_first_line(error)}); "
                "name a server or sqlite:///FILE there, or use logger=none"
            ) from error

    def _connect(self, uri: str, config: dict[str, object]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        self._client = MlflowClient(tracking_uri=uri)
        known = _saved_id(self._run_dir, "mlflow")
        if known is not None:
            self._run_id = known
            self._client.update_run(known, status="RUNNING")
            names = self._client.get_run(known).data.metrics
            self._seen = max(
                (m.step for name in names for m in self._client.get_metric_history(known, name)), default=0
            )
            return
        experiment = self._client.get_experiment_by_name(self.experiment_name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self.experiment_name)
        run = self._client.create_run(number, run_name=self.run_name or self._run_dir.name)
        self._run_id, self._seen = run.info.run_id, 0
        _save_id(self._run_dir, "mlflow", self._run_id)
        params = [
            Param(_mlflow_key(key), without_credentials(str(value))[:MLFLOW_VALUE])
            for key, value in flatten(config).items()
        ]
        for first in range(0, len(params), MLFLOW_BATCH):
            self._client.log_batch(self._run_id, params=params[first : first + MLFLOW_BATCH])
        self._client.log_batch(self._run_id, tags=[RunTag("fedsim.run_dir", str(self._run_dir))])

    def round(self, row: dict[str, Any]) -> None:
        """See `Logger.round`."""
        step, values = scalars(row)
        if step > self._seen:  # rounds done again after a kill are already there
            self._send(values, step)

    def _send(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        self._waiting += [Metric(_mlflow_key(name), value, now, step) for name, value in values.items()]
        try:
            while self._waiting:
                self._client.log_batch(self._run_id, metrics=self._waiting[:MLFLOW_BATCH])
                del self._waiting[:MLFLOW_BATCH]
        except MlflowException as error:
            log.warning("MLflow did not take %d numbers of round %d: %s", len(self._waiting), step, _first_line(error))

    def finish(self, summary: dict[str, Any]) -> None:
        """See `Logger.finish`."""
        self._send({f"summary/{name}": value for name, value in numbers(summary).items()}, int(summary["rounds"]))
        paths = [path for path in (self._run_dir / name for name in self.artifacts) if path.exists()]
        self._end("FINISHED", paths)

    def abort(self, reason: str) -> None:
        """See `Logger.abort`."""
        self._end("FAILED", [], reason)

    def _end(self, status: str, paths: list[Path], reason: str | None = None) -> None:
        from mlflow.exceptions import MlflowException

        if self._client is None:  # `start` itself failed
            return
        try:
            for path in paths:
                if path.is_dir():
                    self._client.log_artifacts(self._run_id, str(path), path.name)
                else:
                    self._client.log_artifact(self._run_id, str(path))
            if reason is not None:
                self._client.set_tag(self._run_id, "fedsim.aborted", reason)
            self._client.set_terminated(self._run_id, status)
        except (MlflowException, OSError) as error:
            log.warning("MLflow was not told that the run ended (%s): %s", status, _first_line(error))


class WandbLogger:
    """A Weights & Biases run, by default offline: files in RUN_DIR/wandb, sent only by `wandb sync --append` later.

    mode: offline, online (needs `wandb login`), or disabled. entity: the team, or None for one's own.
    """

    def __init__(
        self, project: str = "fedsim", mode: str = "offline", entity: str | None = None, run_name: str | None = None
    ) -> None:
        if mode not in ("offline", "online", "disabled"):
            raise FedsimError(f"logger.mode={mode} is not a mode of W&B; use offline, online or disabled")
        self.project, self.mode, self.entity, self.run_name = project, mode, entity, run_name
        self._run: Any = None

    def start(self, config: dict[str, object], run_dir: Path) -> None:
        """See `Logger.start`."""
        wandb = _import("wandb", "wandb", "wandb")
        known = _saved_id(run_dir, "wandb")
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.run_name or run_dir.name,
                mode=self.mode,
                dir=str(run_dir),
                id=known,
                resume="allow" if known and self.mode == "online" else None,  # offline files are joined by their id
                config=json.loads(without_credentials(json.dumps(config, default=str))),
            )
        except wandb.Error as error:
            raise FedsimError(
                f"W&B cannot be used ({_first_line(error)}); run `wandb login`, or set logger.mode=offline"
            ) from error
        if known is None:
            _save_id(run_dir, "wandb", self._run.id)

    def round(self, row: dict[str, Any]) -> None:
        """See `Logger.round`."""
        step, values = scalars(row)
        self._run.log({f"round/{name}": value for name, value in values.items()}, step=step)

    def finish(self, summary: dict[str, Any]) -> None:
        """See `Logger.finish`."""
        for name, value in numbers(summary).items():
            self._run.summary[name] = value
        self._run.finish(exit_code=0)
        self._run = None

    def abort(self, reason: str) -> None:
        """See `Logger.abort`."""
        if self._run is not None:
            self._run.summary["aborted"] = reason
            self._run.finish(exit_code=1)
            self._run = None


def scalars(row: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """The round of a row, and its other numbers that are there and finite."""
    return int(row["round"]), {name: value for name, value in numbers(row).items() if name != "round"}


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers of a nested mapping, by path (`federated/accuracy_mean`), without lists, texts and nulls."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """A nested configuration by dotted key, as on the command line: `{"client": {"lr": 1}}` -> `{"client.lr": 1}`."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _import(module: str, package: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"logger={extra} needs the package {package}, which is not installed: "
            f"pip install 'fedsim-flower[{extra}]', or use logger=none"
        ) from error


@contextmanager
def _folder_allowed(uri: str) -> Iterator[None]:
    """MLflow opens a folder of files only with this variable set; a user who names a folder has made that choice."""
    name = "MLFLOW_ALLOW_FILE_STORE"
    if ("://" in uri and not uri.startswith("file:")) or name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        del os.environ[name]


def without_credentials(text: str) -> str:
    """`text` with the user and password of every URL blotted out: a server's login is no part of a result."""
    return re.sub(r"://[^/@\s'\"]+@", "://***@", text)


def _first_line(error: BaseException) -> str:
    return without_credentials(str(error)).strip().split("\n")[0].split(". ")[0][:300] or type(error).__name__


def _mlflow_key(name: str) -> str:
    """MLflow takes letters, digits and a few signs in names."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _id_file(run_dir: Path, tracker: str) -> Path:
    return run_dir / f".{tracker}_run"


def _saved_id(run_dir: Path, tracker: str) -> str | None:
    path = _id_file(run_dir, tracker)
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def _save_id(run_dir: Path, tracker: str, run_id: str) -> None:
    part = _id_file(run_dir, tracker).with_suffix(".part")
    part.write_text(run_id + "\n", encoding="utf-8")
    os.replace(part, _id_file(run_dir, tracker))
