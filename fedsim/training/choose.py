"""The rule: from the model, the device and the cohort to how wide clients are trained and in which way.

Nothing here looks at a clock but `measure`, so a run's bits depend on its configuration alone. The numbers of the rule come from
`python -m experiments.benchmarks engines`.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedsim.checks import require_choice, require_int, shown
from fedsim.training.alone import Alone
from fedsim.training.arrays import model_arrays
from fedsim.training.client_half import ClientHalf
from fedsim.training.dpsgd import MAX_NUMBERS
from fedsim.training.execution import PRECISIONS, WAYS, Execution, is_out_of_memory
from fedsim.training.lockstep import Lockstep
from fedsim.training.per_example import choose as choose_per_example
from fedsim.training.stack import Copies, make_copies
from fedsim.training.stand_ins import NoStandIn
from fedsim.training.updates import ClientFailure, ClientUpdate
from fedsim.types import ClientData, FedsimError, Params

CACHE_BYTES = 8 * 2**20
"""On a CPU the copies that train together should not be larger: beyond it, batched products wait for memory."""

MOST_ON_CPU = 64
MOST_ON_GPU = 256
MEMORY_MB = {"cpu": 1024, "cuda": 16_384}
"""The same on every machine and card, since the width changes bits; a smaller card halves the width, and says so."""

SHARES = 4
"""The cohort is at least so many times the width, so that as many workers find work."""

ALONE_ON_CPU = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention)
"""Layers that keep a core busy with one client, which more of them at once would only slow down."""


@dataclass(frozen=True)
class Asked:
    """The keys of `grid.*` that say how devices are trained.

    way: one of WAYS, or auto. width: a number, auto (by the rule) or measure (by a stopwatch; bits may then differ from one
    start to the next). memory_mb: what the copies that train together may take; None: MEMORY_MB.
    """

    way: str = "auto"
    width: int | str = "auto"
    memory_mb: int | None = None
    compile: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        require_choice("grid.way", self.way, ("auto", *WAYS))
        require_choice("grid.precision", self.precision, PRECISIONS)
        if self.memory_mb is not None:
            require_int("grid.memory_mb", self.memory_mb, low=1)
        if isinstance(self.width, str) and self.width not in ("auto", "measure"):
            raise FedsimError(f"grid.width={self.width} is neither a number, auto nor measure; give one of them")
        if not isinstance(self.width, str):
            require_int("grid.width", self.width, low=1)
        if self.way == "one" and self.width not in ("auto", 1):
            raise FedsimError(
                f"grid.width={self.width} is of clients in lockstep, which grid.way=one is not; leave one of them out"
            )
        if not isinstance(self.compile, bool):
            raise FedsimError(f"grid.compile={shown(self.compile)} is neither true nor false; give one of them")

    def room(self, device: torch.device) -> int:
        """MB that the copies may take there."""
        return MEMORY_MB[device.type] if self.memory_mb is None else self.memory_mb


def choose_execution(
    asked: Asked, engine: Alone, x: Tensor, y: Tensor, cohort: float, examples: int = 100
) -> Execution:
    """How to train. engine: the run's own, one client at a time. x, y: made-up examples, at least six. cohort: clients a round.
    examples: of the largest client.

    The engine's model is left as it was. Raises FedsimError where the way that was asked for does not take the model.
    """
    arrays = model_arrays(engine.model)
    before, training = {name: array.clone() for name, array in arrays.items()}, engine.model.training
    try:
        return _chosen(asked, engine, x, y, cohort, examples)
    finally:
        for name, array in arrays.items():
            array.copy_(before[name])
        engine.model.train(training)


def _chosen(asked: Asked, engine: Alone, x: Tensor, y: Tensor, cohort: float, examples: int) -> Execution:
    device = next(engine.model.parameters()).device
    options = replace(Execution(), compile=asked.compile, precision=asked.precision)
    if asked.way == "one":
        return _one(options, "one client at a time, as asked")
    if engine.client_half.alone and asked.way == "auto":
        return _one(
            options, "one client at a time, since this strategy's client half makes no steps, or has a loss of its own"
        )
    if asked.way == "auto" and asked.width == "auto" and _better_alone(engine):
        return _one(
            options, "one client at a time, since its convolutions or recurrent layers keep a core busy with one"
        )
    words = []
    probe = engine if device.type == "cpu" else _on_cpu(engine)
    for way in WAYS[:2] if asked.way == "auto" else (asked.way,):
        reason = refusal(replace(options, way=way, width=2), probe, x.cpu(), y.cpu())
        if reason is None and way == "vmap" and asked.way == "auto" and device.type == "cpu" and _heavy(engine.model):
            reason = "on a CPU its convolutions or recurrent layers are quicker one client at a time"
        if reason is None:
            found = replace(options, way=way)
            if asked.width == "measure":
                return measure(found, asked.room(device), engine, x, y, cohort, examples)
            return with_width(found, asked, engine, x, cohort, examples)
        words.append(f"{way}: {reason}")
    if asked.way != "auto":
        raise FedsimError(f"grid.way={asked.way} cannot train this model ({words[0]}); use grid.way=auto")
    return _one(options, f"the model is trained one client at a time ({'; '.join(words)})")


def _one(options: Execution, why: str) -> Execution:
    """Refused where an option was asked for that only the other ways have."""
    for key, given in (("compile", options.compile), ("precision", options.precision == "bfloat16")):
        if given:
            raise FedsimError(
                f"grid.{key}={getattr(options, key)} is of clients in lockstep, and here {why}; leave it out"
            )
    return replace(options, why=why)


def choose_chunk_size(execution: Execution, cohort: float, device: torch.device) -> int:
    """Clients that one node trains before it replies, where the configuration does not say.

    On a CPU a round has at least four times SHARES chunks where the width allows, so that the last of them keeps few waiting.
    Never less than the width, which would then be another than the run says.
    """
    if device.type == "cuda":
        return execution.width
    fair = math.ceil(cohort / (4 * SHARES))
    return max(execution.width, min(MOST_ON_CPU, execution.width * math.ceil(fair / execution.width)))


def with_width(found: Execution, asked: Asked, engine: Alone, x: Tensor, cohort: float, examples: int) -> Execution:
    """The width by the rule, or the one that was asked for."""
    if not isinstance(asked.width, str):
        return replace(found, width=asked.width, why=f"{found.way} of {asked.width}, as asked")
    device = next(engine.model.parameters()).device
    size = sum(array.nbytes for array in model_arrays(engine.model).values())
    if device.type == "cuda":
        width, why = MOST_ON_GPU, "launches cost more than work on a GPU"
        width = min(width, max(1, math.ceil(cohort / max(1, torch.cuda.device_count()))))
    elif _heavy(engine.model):
        width, why = 1, "its convolutions or recurrent layers keep a core busy with one client"
    else:
        kept = lockstep_of(replace(found, width=1), engine).bytes_kept(examples)
        width, why = max(1, min(MOST_ON_CPU, CACHE_BYTES // kept)), f"{kept / 2**20:.2g} MiB each"
        width = min(width, max(1, math.ceil(cohort / SHARES)))
    fits = max(1, int(asked.room(device) * 1e6) // bytes_each(engine, size, x, examples))
    if fits < width:
        width, why = fits, f"as many as fit into grid.memory_mb={asked.room(device)}"
    words = f"{found.way} of {width}" if width > 1 else "one client at a time, on stacked layers"
    return replace(found, width=width, why=f"{words} ({why})")


def lockstep_of(execution: Execution, engine: Alone) -> Lockstep:
    """The engine's own training, in lockstep."""
    settings, half = engine.settings, engine.client_half
    parts = (engine.model, engine.objective, settings, half, engine.seed, engine.smallest_batch, engine.local_steps)
    return Lockstep(make_copies(engine.model, execution), *parts)


def bytes_each(engine: Alone, size: int, x: Tensor, examples: int) -> int:
    """What a client takes while it trains in lockstep: arrays, gradients, momentum; its batch's activations, roughly.

    examples: of the largest client, which are a batch where client.batch_size is null.
    """
    batch = min(engine.settings.batch_size or examples, examples)
    written = 0 if engine.local_steps is None else min(batch * size, 4 * MAX_NUMBERS)  # gradients of single examples
    return 3 * size + written + 20 * batch * x[0].nbytes + 1


def refusal(trial: Execution, engine: Alone, x: Tensor, y: Tensor) -> str | None:
    """Why this way does not train the engine's model as it is trained alone; None where it does, tried on two clients."""
    if engine.local_steps is not None:
        if trial.way != "lockstep":
            return "DP-SGD needs the layers' own rules"
        if trial.precision == "bfloat16":
            return "DP-SGD computes in the weights' own numbers"
        try:
            if choose_per_example(engine.local_steps.way, engine.model, engine.objective, x, y) != "fast":
                return "its examples' gradients are not had by the layers' own rules"
        except FedsimError as error:
            return str(error)
    start = {name: array.clone() for name, array in model_arrays(engine.model).items()}
    try:
        copies = make_copies(engine.model, trial)
        if wrong := _difference(copies, engine, ClientHalf(), start, x, y):
            return wrong
        if type(engine.client_half) is ClientHalf:
            return None
        half = copy.deepcopy(engine.client_half)  # clients who do not exist leave no trace in a copy
        if wrong := _difference(copies, engine, half, start, x, y, may_fail=True):
            return f"with the client half of this strategy {wrong}"
    except NoStandIn as error:
        return str(error)
    except Exception as error:  # whatever torch.func or a module of somebody's own raises
        if is_out_of_memory(error):
            raise
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _difference(
    copies: Copies, engine: Alone, half: ClientHalf, start: Params, x: Tensor, y: Tensor, may_fail: bool = False
) -> str | None:
    """What two clients' updates have that one client at a time does not give; None for nothing.

    One makes more steps than the other, and larger ones: the other's batch is filled up, which must not matter. may_fail:
    nothing is wrong with clients that fail either way.
    """
    settings = replace(engine.settings, epochs=2, batch_size=3, max_steps=3)  # three steps and two
    quiet = None if engine.local_steps is None else replace(engine.local_steps, noise=_no_noise, chances=_every_second)
    parts = (engine.model, engine.objective, settings, half, 0, engine.smallest_batch, quiet)
    data = {0: ClientData(0, x[:6], y[:6]), 1: ClientData(1, x[4:6].flip(0), y[4:6])}
    before = _random_states(x.device)
    found = Lockstep(copies, *parts).train(start, [0, 1], data.__getitem__, lambda client: {}, 1)
    if not all(torch.equal(a, b) for a, b in zip(before, _random_states(x.device), strict=True)):
        return "it draws random numbers, which would be others than a client draws alone"
    reasons = []
    for update in found:
        (expected,) = Alone(*parts).train(start, [update.client], data.__getitem__, lambda client: {}, 1)
        if isinstance(expected, ClientFailure):
            reasons.append(expected.reason)
            if isinstance(update, ClientUpdate):
                return f"it gives an update where one client at a time gives none ({expected.reason})"
        elif not _alike(update, expected, start, 1e-3 if copies.exact else 0.05):
            return "its updates are not those that it gives one client at a time" + (
                "" if copies.exact else " in float32"
            )
    return f"it could not be tried ({reasons[0]})" if len(reasons) == len(found) and not may_fail else None


def _random_states(device: torch.device) -> list[Tensor]:
    """Of torch's own generators, which no client draws from in lockstep."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _alike(update: object, expected: ClientUpdate, start: Params, tolerance: float) -> bool:
    if not isinstance(update, ClientUpdate):
        return False
    gap = sum(float((update.arrays[n].double() - a.double()).square().sum()) for n, a in expected.arrays.items())
    moved = sum(float((a.double() - start[n].double()).square().sum()) for n, a in expected.arrays.items())
    return gap <= tolerance**2 * moved


def measure(
    found: Execution, memory_mb: int, engine: Alone, x: Tensor, y: Tensor, cohort: float, examples: int
) -> Execution:
    """The quickest of several widths, and of one client at a time, on made-up clients of two batches each."""
    size = sum(array.nbytes for array in model_arrays(engine.model).values())
    most = min(
        MOST_ON_GPU, max(1, math.ceil(cohort)), max(1, int(memory_mb * 1e6) // bytes_each(engine, size, x, examples))
    )
    alone = _seconds_a_client(replace(found, way="one", width=1), engine, x, y)
    speeds: dict[int, float] = {}
    for width in (width for width in (1, 2, 4, 8, 16, 32, 64, 128, 256) if width <= most):
        speeds[width] = _seconds_a_client(replace(found, width=width), engine, x, y)
        if speeds[width] > 1.3 * min(speeds.values()):  # wider is slower by now
            break
    width = min(speeds, key=speeds.__getitem__)
    if alone < speeds[width]:
        return replace(found, way="one", width=1, why=f"measured: {alone * 1e3:.3g} ms a client one at a time")
    words = ", ".join(f"{width}: {seconds * 1e3:.3g}" for width, seconds in speeds.items())
    return replace(found, width=width, why=f"measured, ms a client by width: {words}; one at a time: {alone * 1e3:.3g}")


def _seconds_a_client(trial: Execution, engine: Alone, x: Tensor, y: Tensor) -> float:
    """The best of three."""
    batch = engine.settings.batch_size or len(x)
    rows = torch.arange(2 * batch) % len(x)
    settings = replace(engine.settings, epochs=1, max_steps=2)
    quiet = None if engine.local_steps is None else replace(engine.local_steps, noise=_no_noise, chances=_every_second)
    parts = (engine.model, engine.objective, settings, ClientHalf(), 0, engine.smallest_batch, quiet)
    start = {name: array.clone() for name, array in model_arrays(engine.model).items()}
    made = Alone(*parts) if trial.way == "one" else Lockstep(make_copies(engine.model, trial), *parts)
    seconds = []
    for _ in range(4):  # the first warms up
        _finished(x.device)
        before = time.perf_counter()
        made.train(start, range(trial.width), lambda client: ClientData(client, x[rows], y[rows]), lambda client: {}, 1)
        _finished(x.device)
        seconds.append((time.perf_counter() - before) / trial.width)
    return min(seconds[1:])


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _heavy(model: nn.Module) -> bool:
    return any(isinstance(module, ALONE_ON_CPU) for module in model.modules())


def _better_alone(engine: Alone) -> bool:
    """On a CPU, a model of convolutions or recurrent layers that spends little on dense ones, whose steps could be fused."""
    if (
        next(engine.model.parameters()).device.type == "cuda"
        or not _heavy(engine.model)
        or engine.local_steps is not None
    ):
        return False
    dense = [layer.weight.numel() for layer in engine.model.modules() if isinstance(layer, nn.Linear)]
    return sum(dense) < sum(weight.numel() for weight in engine.model.parameters()) / 2


def _on_cpu(engine: Alone) -> Alone:
    """To be tried there: on a GPU a client that trains alone draws its dropout in another way, which is no fault of lockstep."""
    return replace(engine, model=copy.deepcopy(engine.model).cpu())


def _no_noise(size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
    return torch.zeros(size)


def _every_second(size: int, round: int, client: int, purpose: str) -> Tensor:
    """Chances such that about half of the rows are drawn."""
    return torch.arange(size, dtype=torch.float64) % 2 * 0.999
