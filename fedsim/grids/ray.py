"""Devices in Ray actors, on this machine or on a cluster (`grid=ray`).

The data are put into Ray's object store once, and a round's parameters once a round: a node holds one copy, which its actors
read without one of their own. A chunk's reply comes back the same way.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord

from fedsim import flower
from fedsim.checks import require_int, shown
from fedsim.client import Devices
from fedsim.grids.base import SimulationGrid
from fedsim.grids.forkserver import cores
from fedsim.grids.pool import Crew, Event, PoolGrid
from fedsim.grids.processes import not_taken
from fedsim.grids.ray_actor import Actor, how_it_died, pack_up
from fedsim.grids.ray_cluster import Cluster, require_ray
from fedsim.grids.settings import GridSettings, MakeDevices
from fedsim.grids.wire import UnexpectedObject, apart, together
from fedsim.grids.worker import Task
from fedsim.types import FedsimError

log = logging.getLogger(__name__)

POLL = 2.0
"""Seconds without a word from a worker after which the cluster is looked at."""

START = 180.0
"""Seconds that a worker has to start, if the cluster looks as if it had room for it."""


@dataclass(frozen=True)
class Ray(GridSettings):
    """The keys of `grid=ray`: those of GridSettings; workers: how many (None: as many as the cluster has CPUs, or GPUs on CUDA).

    address: of a cluster's head, host:port; auto: the cluster that runs on this machine, or else one of our own.
    """

    workers: int | None = None
    address: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None:
            require_int("grid.workers", self.workers, low=1)
        if not isinstance(self.address, str) or not re.fullmatch(r"auto|[^/\s]+:\d{1,5}", self.address):
            raise FedsimError(
                f"grid.address={shown(self.address)} is not the address of a cluster; give auto or host:port"
            )

    @property
    def cluster(self) -> Cluster:
        """As it is asked for; not joined yet."""
        return Cluster(self.address, max(self.workers or 1, cores()))

    def prepare(self, device: torch.device) -> None:
        """See GridSettings. Raises FedsimError where Ray or the cluster is not there."""
        require_ray()
        self.cluster.require()

    def open(self, devices: MakeDevices, chunk_size: int, device: torch.device) -> SimulationGrid:
        """See GridSettings."""
        require_ray()
        flower.enter_runtime()
        crew = RayCrew(lambda: devices(None), self.cluster, self.workers, "GPU" if device.type == "cuda" else "CPU")
        return RayGrid(crew, chunk_size)


@dataclass(eq=False)
class Hand:
    """An actor. ready: its answer to being set up, until it has given it. known: which of the placed arrays it has."""

    actor: Any
    ready: Any
    born: float
    known: set[int] = field(default_factory=set)


@dataclass
class Seat:
    """A worker as the pool counts them. Several share a hand where the cluster has become too small for one each."""

    hand: Hand
    answers: deque[Any] = field(default_factory=deque)


class RayCrew(Crew):
    """Actors of one CPU or GPU (`kind`) each. The cluster is joined at the first need, and left by `close`.

    workers: how many are wanted; None for what the cluster has.
    """

    name = "ray"

    def __init__(self, devices: Callable[[], Devices], cluster: Cluster, workers: int | None, kind: str) -> None:
        self.cluster, self.workers, self.kind = cluster, workers, kind
        self.size = 1
        self._make_devices = devices
        self._set_up: tuple[Any, ...] = ()
        self._seats: dict[int, Seat] = {}
        self._most: int | None = None  # hands, where no more could be had
        self._records: list[ArrayRecord] = []
        self._placed: dict[int, Any] = {}
        self._generation, self._checked = 0, 0.0

    def join(self) -> None:
        """Be connected, and know the size. Raises FedsimError where there is no cluster, or none with the devices asked for."""
        if self.cluster.joined:
            return
        self.cluster.join()
        self._measure()
        if self.workers and self.workers > self.size:
            log.warning(
                "grid.workers=%d is more than the %d %ss of the Ray cluster", self.workers, self.size, self.kind
            )

    def _measure(self) -> None:
        room = self.cluster.room(self.kind)
        if room == 0 and self.kind == "GPU":
            raise FedsimError("device=cuda, but the Ray cluster has no GPU; use device=cpu, or add a node that has one")
        self.size = min(self.workers or room, room) or 1
        if self._most is not None and self.cluster.room(self.kind, free=True):
            self._most = None

    def place(self, records: list[ArrayRecord]) -> None:
        """See Crew; each is put into the object store when the first task needs it. A cluster that has grown is made use of."""
        self.join()
        self._measure()
        self._records, self._placed = records, {}
        self._generation += 1
        hands = self._hands
        for hand in hands:
            hand.known = set()
        self._seats = {worker: Seat(hand) for worker, hand in enumerate(hands)}

    @property
    def _hands(self) -> list[Hand]:
        return list(dict.fromkeys(seat.hand for seat in self._seats.values()))

    def start(self, worker: int) -> None:
        """See Crew; where the cluster has no room for another actor, a worker shares one with others."""
        import ray

        if worker in self._seats:
            return
        hands = self._hands
        if self._most is not None and len(hands) >= self._most:
            shared = [seat.hand for seat in self._seats.values()]
            self._seats[worker] = Seat(min(hands, key=shared.count))
            return
        packed = () if self._set_up else pack_up(self._make_devices())
        with self.cluster.heard():
            self._set_up = self._set_up or tuple(ray.put(part) for part in packed)
            self._seats[worker] = Seat(self._new_hand())

    def _new_hand(self) -> Hand:
        import ray

        on_gpu = self.kind == "GPU"
        remote: Any = ray.remote  # its own types are those of a dozen overloads
        actor = remote(num_cpus=int(not on_gpu), num_gpus=int(on_gpu), max_restarts=0)(Actor).remote()
        device = "cuda" if on_gpu else "cpu"
        return Hand(actor, actor.set_up.remote(device, *self._set_up), time.monotonic())

    def give(self, worker: int, task: Task) -> None:
        """See Crew."""
        import ray

        seat = self._seats[worker]
        news = set(task.arrays.values()) - seat.hand.known
        with self.cluster.heard():
            for number in news - self._placed.keys():
                self._placed[number] = ray.put(apart(self._records[number]))
            refs = [(number, [self._placed[number]]) for number in sorted(news)]  # lists, into which Ray does not look
            seat.answers.append(seat.hand.actor.run.remote(apart(task), self._generation, refs))
        seat.hand.known |= news

    def wait(self) -> list[Event]:
        """See Crew. Raises FedsimError where the cluster is gone, or gives not one worker."""
        while True:
            with self.cluster.heard():
                if events := self._events():
                    return events

    def _events(self) -> list[Event]:
        """What has happened, after POLL seconds at most."""
        import ray

        oldest = {seat.answers[0]: worker for worker, seat in self._seats.items() if seat.answers}
        starting = {hand.ready: hand for hand in self._hands if hand.ready is not None}
        asked = [*oldest, *starting]
        ray.wait(asked, num_returns=1, timeout=POLL)
        if time.monotonic() - self._checked > POLL:
            self.cluster.check()
            self._checked = time.monotonic()
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        for ref in done:
            if ref in starting:
                self._started(starting[ref])
        events = [event for ref in done if ref in oldest for event in self._read(oldest[ref])]
        return events or self._without_room()

    def _started(self, hand: Hand) -> None:
        import ray

        ready, hand.ready = hand.ready, None
        try:
            error, there = ray.get(ready)
        except ray.exceptions.RayError as died:
            if not getattr(died, "actor_init_failed", False):
                return  # its first task will say so
            error, there = str(died).strip().splitlines()[-1], torch.__version__
        if error:
            raise FedsimError(
                f"a worker of the Ray cluster cannot be set up ({error}); install on its node what this machine has"
            )
        if there != torch.__version__:
            log.warning("a node of the Ray cluster has torch %s and not %s: bits may differ", there, torch.__version__)

    def _read(self, worker: int) -> list[Event]:
        import ray

        seat = self._seats.get(worker)
        if seat is None:  # it shared a hand with one that has just been found dead
            return []
        try:
            answer = together(ray.get(seat.answers[0]))
        except ray.exceptions.RayError as error:
            died = how_it_died(error)
            self.cluster.check()  # or Ray itself has ended here
            log.warning("a worker %s; its clients are trained by another", died)
            return self._leave(seat.hand, worker, died)
        except UnexpectedObject as error:
            raise not_taken(error) from None
        seat.answers.popleft()
        return [Event(worker, answer)]

    def _leave(self, hand: Hand, guilty: int | None, died: str) -> list[Event]:
        """A hand that is lost, with the seats that it had."""
        import ray

        ray.kill(hand.actor)
        lost = [worker for worker, seat in self._seats.items() if seat.hand is hand]
        for worker in lost:
            del self._seats[worker]
        return [Event(worker, None, died if worker == guilty else "") for worker in lost]

    def _without_room(self) -> list[Event]:
        """Give up actors that wait for a place while others work: a node that is lost takes its places with it."""
        starting = [hand for hand in self._hands if hand.ready is not None]
        if not starting:
            return []
        working = [hand for hand in self._hands if hand.ready is None]
        overdue = [hand for hand in starting if time.monotonic() - hand.born > START]
        if not working and overdue:
            raise FedsimError(
                f"the Ray cluster at {self.cluster.head} has given no worker in {START:.0f} seconds; see with `ray status` "
                f"what takes its {self.kind}s, or use grid=processes"
            )
        surplus = len(self._hands) - max(1, self.cluster.room(self.kind))
        given_up = overdue or (starting[:surplus] if working and surplus > 0 else [])
        if not given_up:
            return []
        self._most = len(self._hands) - len(given_up)
        return [event for hand in given_up for event in self._leave(hand, None, "")]

    def close(self) -> None:
        """See Crew. They keep nothing, so they are killed."""
        if not self.cluster.joined:
            return
        import ray

        for hand in self._hands:
            ray.kill(hand.actor)
        self._seats, self._records, self._placed, self._set_up, self._most = {}, [], {}, (), None
        self.cluster.leave()


class RayGrid(PoolGrid):
    """PoolGrid, whose size is known once the cluster is joined."""

    crew: RayCrew

    @property
    def shards(self) -> int:
        """See SimulationGrid."""
        self.crew.join()
        return super().shards
