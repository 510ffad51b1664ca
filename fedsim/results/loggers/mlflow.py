"""MLflow."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.results.loggers.shared import (
    first_line,
    flatten,
    import_tracker,
    numbers,
    save_id,
    saved_id,
    scalars,
    without_credentials,
)
from fedsim.types import FedsimError

log = logging.getLogger(__name__)

MLFLOW_BATCH = 100  # parameters that MLflow takes in one call
MLFLOW_VALUE = 6000  # characters that MLflow takes in one parameter


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
        import_tracker("mlflow")
        from mlflow.exceptions import MlflowException

        self._run_dir = run_dir
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
        try:
            with _folder_allowed(uri):
                self._connect(uri, config)
        except (MlflowException, ModuleNotFoundError, OSError) as error:
            raise FedsimError(
                f"MLflow cannot be used at logger.tracking_uri={without_credentials(uri)} ({first_line(error)}); "
                "name a server or sqlite:///FILE there, or use logger=none"
            ) from error

    def _connect(self, uri: str, config: dict[str, object]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        self._client = MlflowClient(tracking_uri=uri)
        known = saved_id(self._run_dir, "mlflow")
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
        save_id(self._run_dir, "mlflow", self._run_id)
        params = [
            Param(_name(key), without_credentials(str(value))[:MLFLOW_VALUE]) for key, value in flatten(config).items()
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
        self._waiting += [Metric(_name(name), value, now, step) for name, value in values.items()]
        try:
            while self._waiting:
                self._client.log_batch(self._run_id, metrics=self._waiting[:MLFLOW_BATCH])
                del self._waiting[:MLFLOW_BATCH]
        except MlflowException as error:
            log.warning("MLflow did not take %d numbers of round %d: %s", len(self._waiting), step, first_line(error))

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
            log.warning("MLflow was not told that the run ended (%s): %s", status, first_line(error))


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


def _name(name: str) -> str:
    """MLflow takes letters, digits and a few signs in names."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
