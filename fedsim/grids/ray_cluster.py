"""Joining a Ray cluster and leaving it, in seconds and in silence. The one module that holds Ray's private names (ray 2.55)."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsim.types import FedsimError, MissingPackageError

PATIENCE = 5.0
"""Seconds that the head of a cluster has to answer."""

TRIES = 3
"""How often in a row, a second apart, it may fail to."""

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How HTTP/2 begins, which Ray speaks: the preface and an empty frame of settings."""


def require_ray() -> None:
    """Raises MissingPackageError where Ray is not installed."""
    if find_spec("ray") is None:
        raise MissingPackageError("grid=ray needs Ray; run `pip install 'fedsim-flower[ray]'`")


def answers(address: str) -> bool:
    """Whether a server like the head of a Ray cluster answers at host:port. Ray itself would ask for minutes, and aloud."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in (
                "1",
                "true",
            ):  # then it speaks first to those with a certificate
                return True
            connection.settimeout(PATIENCE)
            connection.sendall(HELLO)
            return connection.recv(9)[3:4] == b"\x04"
    except (OSError, OverflowError):
        return False


def _answers_here() -> bool:
    """Whether this machine's part of the cluster that we have joined lives."""
    import ray

    node: Any = ray._private.worker._global_node
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(node.raylet_socket_name)
    except OSError:
        return False
    return True


class Cluster:
    """A connection to a cluster: one that runs already, or one of our own on this machine.

    address: of its head, host:port; auto: RAY_ADDRESS, else what `ray start` started here, else our own. cpus: of our own.
    """

    def __init__(self, address: str, cpus: int) -> None:
        self.address, self.cpus = address, cpus
        self.head = ""
        self._ours = False
        self._folder = ""

    def require(self) -> None:
        """Raises FedsimError where a cluster that is named does not answer, before anything else is done."""
        if (address := self._running()) and not answers(address):
            raise self._not_there(address)

    @property
    def joined(self) -> bool:
        """Whether we are connected."""
        return bool(self.head)

    def join(self) -> None:
        """Connect, or start our own cluster. Raises FedsimError where that cannot be done."""
        import ray

        if not ray.is_initialized():  # else this process has joined one by itself: it is for it to leave it too
            self._ours = True
            _report_losses(False)
            try:
                address = self._running() or self._started_here()
                self._connect(address) if address else self._start()
            except BaseException:
                self.leave()
                raise
        self.head = ray.get_runtime_context().gcs_address

    def leave(self) -> None:
        """Disconnect, and end a cluster of our own. What it had on disk goes too."""
        import ray

        if self._ours:
            with _quietly():
                ray.shutdown()
            _report_losses(True)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self.head, self._ours, self._folder = "", False, ""

    def check(self) -> None:
        """Raises FedsimError where the head has gone, or Ray on this machine: Ray would end this process soon, without a word."""
        for left in reversed(range(TRIES)):
            if answers(self.head) and _answers_here():
                return
            if left:
                time.sleep(1)
        raise self._lost("its head does not answer any more")

    @contextmanager
    def heard(self) -> Iterator[None]:
        """What Ray raises inside, in words. Raises FedsimError."""
        import ray

        try:
            yield
        except (OSError, ray.exceptions.RayError) as error:
            raise self._lost(_first_line(error)) from error

    def _lost(self, why: str) -> FedsimError:
        return FedsimError(
            f"the Ray cluster at {self.head} is lost ({why}); start it again, and go on from the run's last checkpoint with "
            "resume=..., which is kept"
        )

    def room(self, kind: str, *, free: bool = False) -> int:
        """How many CPUs or GPUs (`kind`) the nodes have that live, taken or not; `free`: that are not taken."""
        import ray

        self.check()  # Ray would wait for a head that has gone
        resources = ray.available_resources() if free else ray.cluster_resources()
        return int(resources.get(kind, 0))

    def _running(self) -> str:
        """The address of a cluster that somebody named; empty for none."""
        named = os.environ.get("RAY_ADDRESS", "") if self.address == "auto" else self.address
        return named if re.fullmatch(r".+:\d+", named) else ""

    def _started_here(self) -> str:
        """The address that `ray start` left on this machine; empty where there is none, or where it is a dead one's."""
        from ray._private.utils import read_ray_address

        address = (
            "" if os.environ.get("RAY_ADDRESS") else read_ray_address() or ""
        )  # RAY_ADDRESS=local asks for one of our own
        return address if address and answers(address) else ""

    def _not_there(self, address: str, why: str = "nothing answers there") -> FedsimError:
        key = f"grid.address={address}" if self.address != "auto" else f"grid.address=auto with RAY_ADDRESS={address}"
        return FedsimError(
            f"{key} is not a Ray cluster that can be joined from here ({why}); start one with `ray start --head`, "
            "or have this machine join it with `ray start --address=HOST:PORT`, or leave grid.address out"
        )

    def _connect(self, address: str) -> None:
        import ray

        if not answers(address):
            raise self._not_there(address)
        os.environ.setdefault(
            "RAY_py_gcs_connect_timeout_s", str(int(PATIENCE))
        )  # half a minute otherwise, several times over
        try:
            with _quietly():
                ray.init(address=address, job_config=_job(), log_to_driver=False, logging_level=logging.CRITICAL)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise self._not_there(address, _first_line(error.__cause__ or error)) from error

    def _start(self) -> None:
        """In a folder of our own: other programs of this machine do not find this cluster, which ends with this run."""
        import ray

        parent = tempfile.gettempdir()
        self._folder = tempfile.mkdtemp(
            prefix="fedsim_ray_", dir=parent if len(parent) < 30 else "/tmp"
        )  # sockets have short paths
        try:
            with _quietly():
                ray.init(
                    address="local",
                    job_config=_job(),
                    num_cpus=self.cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    _temp_dir=self._folder,
                )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise FedsimError(
                f"Ray cannot be started on this machine ({_first_line(error)}); use grid=processes, "
                "or join a cluster with grid.address"
            ) from error


def _job() -> Any:
    """Workers look for modules where we do, so far as they have those folders: in a checkout of fedsim, in the working folder."""
    from ray.job_config import JobConfig

    installed = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]
    folders = [Path(folder).resolve() for folder in sys.path]
    own = [folder for folder in folders if not any(folder.is_relative_to(prefix) for prefix in installed)]
    return JobConfig(_py_driver_sys_path=[str(folder) for folder in reversed(own)])  # the last is looked at first


def _report_losses(wanted: bool) -> None:
    """Whether Ray prints pages about workers and nodes that are lost; we say it in a line."""
    from ray._private.ray_logging import stdout_deduplicator

    printer: Any = stdout_deduplicator
    printer.skip_re = None if wanted else re.compile("")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Ray's tips, and with our own answer to SIGTERM, which it replaces."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
