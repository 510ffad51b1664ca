"""The worker as a Ray actor: what it is sent, what it does, and how it is spoken of when it has died."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch

from fedsim.client import Devices
from fedsim.grids.allocator import keep_freed_memory
from fedsim.grids.carried import Carried, Source, own_modules
from fedsim.grids.processes import pack_devices
from fedsim.grids.wire import Apart, apart, together
from fedsim.grids.worker import Answer, Worker, move


def pack_up(devices: Devices) -> tuple[Apart, Apart, dict[str, Source]]:
    """All but the population; the population, since its arrays are never written; and the user's own modules.

    Raises FedsimError where they cannot be pickled.
    """
    try:
        rest = apart(replace(devices, population=None))  # type: ignore[arg-type]
        return rest, apart(devices.population), own_modules()
    except Exception:  # pickle raises what the objects raise
        pack_devices(devices).close()  # says which part it is
        raise


def how_it_died(error: Exception) -> str:
    """Ray's pages about a worker that is lost, in words."""
    text = str(error).lower()
    if type(error).__name__ == "OutOfMemoryError" or "low on memory" in text or "memory monitor" in text:
        return "was ended by Ray, since its node ran out of memory"
    if "node has died" in text or "node was terminated" in text or "node died" in text:
        return "was lost with its node"
    if "unavailable" in text:
        return "could not be reached any more"
    return "ended unexpectedly, which often means that memory ran out"


class Actor:
    """A worker, as Ray runs it. One thread."""

    def set_up(self, device: str, rest: Apart, population: Apart, modules: dict[str, Source]) -> tuple[str, str]:
        """Gives what went wrong, empty for nothing, and torch's version here."""
        torch.set_num_threads(1)
        keep_freed_memory()
        sys.meta_path.append(Carried(modules))
        try:
            devices: Devices = together(rest, anything=True)
            devices.population = together(population, shared=True, anything=True)
            self._worker = Worker(move(devices, torch.device(device)))
        except Exception as error:  # whatever is raised by what is imported
            return f"{type(error).__name__}: {error}", torch.__version__
        self._generation = 0
        return "", torch.__version__

    def run(self, task: Apart, generation: int, news: list[tuple[int, list[Any]]]) -> Apart:
        """Do a chunk. news: arrays that it needs and that are not here yet, as they were placed."""
        import ray

        if generation != self._generation:
            self._worker.forget()
            self._generation = generation
        for number, (ref,) in news:
            self._worker.place(number, together(ray.get(ref), shared=True))
        answer = self._worker.run(together(task, anything=True))
        try:
            return apart(answer)
        except Exception as error:  # a state or a metric of a user's own kind
            return apart(Answer(None, f"its reply cannot be pickled ({type(error).__name__}: {error})", {}, {}))
