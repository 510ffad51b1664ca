"""Forgets, compares, and writes down: the new run's folder with its lineage, unlearn.json, the table and the picture."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.forgetting.approximate import Erased, erase, final_arrays, forgotten_data
from fedsim.forgetting.exact import Retrained, retrain
from fedsim.forgetting.source import Source, open_run
from fedsim.results.files import read_arrays, read_json, write_arrays, write_json, write_table
from fedsim.results.formats import known, percent
from fedsim.results.run import RunFolder, versions
from fedsim.results.unlearning import Judged, draw, gap, judge
from fedsim.session import Stopped
from fedsim.training.ascent import Ascent
from fedsim.types import FedsimError

METHODS = ("exact", "approximate")
PAPER = "Halimi et al. 2022, arXiv 2207.05521: projected gradient ascent, then rounds without the clients"
OF_NOISE = (
    "The noise of this run comes from its seed, and the retrained run draws the same: whoever has both models can subtract one "
    "from the other, so the old one must be deleted, or never have been given away."
)
OF_BUDGETS = (
    "The other clients have paid for both runs: whoever saw both models is bound by the sum of the two epsilons and deltas, not "
    "by the epsilon in this folder's privacy.json alone."
)


class Request(NamedTuple):
    """What a user asks for. methods: of METHODS, or empty for all that the run allows. folder: of the new run."""

    source: Path
    clients: tuple[int, ...]
    methods: tuple[str, ...]
    folder: Path
    ascent: Ascent
    command: str


def forget(request: Request) -> dict[str, Any]:
    """Forget the clients; gives what unlearn.json says. The old run is left as it is.

    Raises FedsimError for anything a user can mend, and leaves nothing behind then.
    """
    if request.folder.exists():
        raise FedsimError(f"out={request.folder} is there already; give another folder, or delete that one")
    source = open_run(request.source, request.clients)
    methods = _methods(source, request.methods)
    with _new_folder(request.folder):
        return _forget(request, source, methods)


def _methods(source: Source, asked: tuple[str, ...]) -> tuple[str, ...]:
    if not source.private:
        return asked or METHODS
    if "approximate" in asked:
        raise FedsimError(
            f"method=approximate climbs on the clients' examples in clear, which breaks the privacy that {source.folder} "
            "promised them; use method=exact"
        )
    return ("exact",)


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in the block, neither the folder nor those made above it stay."""
    missing = [one for one in [folder, *folder.parents] if not one.exists()]
    folder.mkdir(parents=True)
    try:
        yield
    except BaseException as error:
        shutil.rmtree(missing[-1], ignore_errors=True)
        if isinstance(error, Stopped):
            raise Stopped("stopped; nothing was kept, and the old run is as it was") from None
        raise


def _forget(request: Request, source: Source, methods: tuple[str, ...]) -> dict[str, Any]:
    name = f"{source.summary['experiment']}/without_{_label(request.clients)}"
    exact = retrain(source, request.folder, name) if "exact" in methods else None
    beside = request.folder / "approximate" if exact else request.folder
    erased = erase(source, beside, f"{name}/approximate", request.ascent) if "approximate" in methods else None
    models = _compare(request, source, exact, erased, beside)
    about = _about(request, source)
    told = about | {
        "exact": _exact(source, exact) if exact else None,
        "approximate": _approximate(request, erased, beside) if erased else None,
        "models": models,
        "caveats": _caveats(source),
        "versions": versions(),
    }
    draw(request.folder / "plots" / "unlearning.png", models, _title(request.clients, models))
    if exact:
        _sign(request.folder, exact.summary, source, about | {"method": "exact"})
    if erased:
        _sign(beside, erased.summary, source, about | {"method": "approximate"})
    write_json(request.folder / "unlearn.json", told)
    return told


def _about(request: Request, source: Source) -> dict[str, Any]:
    """What was forgotten, and where from: in unlearn.json, and in each new run's summary."""
    privacy = read_json(source.folder / "privacy.json", str(source.folder))
    keys = ("mechanism", "unit", "adjacency", "delta", "epsilon", "accountant")
    dataset = {key: source.summary["dataset"][key] for key in ("name", "fingerprint")}
    return {
        "clients": list(request.clients),
        "from": {
            "run": str(source.folder.resolve()),
            "experiment": source.summary["experiment"],
            "command": source.summary.get("command"),
            "rounds": source.rounds,
            "dataset": dataset,
        },
        "command": request.command,
        "touched": source.touched,
        "privacy": {key: privacy.get(key) for key in keys},
    }


def _compare(
    request: Request, source: Source, exact: Retrained | None, erased: Erased | None, beside: Path
) -> dict[str, Judged]:
    """Each model by its name, and what it cost."""
    seconds = source.summary["seconds"]
    found = {"original": (source.folder, int(source.cohort_sizes.sum()), seconds)}
    if exact:
        found["exact"] = (request.folder, exact.client_rounds, exact.seconds)
    if erased:
        found["approximate"] = (beside, erased.client_rounds, erased.seconds)
    parts, held = source.parts, forgotten_data(source)
    arrays = {name: final_arrays(folder, parts.device) for name, (folder, _, _) in found.items()}
    return {
        name: {
            **judge(parts.model, arrays[name], parts.population, held, parts.server.judge.batch_size),
            "distance_from_exact": gap(arrays[name], arrays["exact"]) if exact else None,
            "client_rounds": client_rounds,
            "seconds": took,
        }
        for name, (_, client_rounds, took) in found.items()
    }


def _exact(source: Source, made: Retrained) -> dict[str, Any]:
    rounds = len(made.cohort_sizes)
    every = int(source.cfg.checkpoint.every)
    return {
        "folder": ".",
        "checkpoint": str(made.checkpoint) if made.checkpoint else None,
        "first_round_of_the_clients": source.first_round,
        "from_round": made.from_round,
        "rounds_trained": rounds - made.from_round,
        "client_rounds": made.client_rounds,
        "client_rounds_from_the_start": int(made.cohort_sizes.sum()),
        "client_rounds_spared_with_all_checkpoints": made.spared(source, every),
        "client_rounds_spared_with_one_each_round": made.spared(source, 1),
        "checkpoint_every": every,
    }


def _approximate(request: Request, made: Erased, beside: Path) -> dict[str, Any]:
    return {
        "folder": str(beside.relative_to(request.folder)),
        "method": PAPER,
        "settings": request.ascent.__dict__,
        "radius": made.radius,
        "steps": made.climbed.steps,
        "stopped_early": made.climbed.stopped,
        "distance_from_reference": made.climbed.from_reference,
        "rounds": made.rounds,
    }


def _caveats(source: Source) -> list[str]:
    kept = f"{source.folder} still holds the model that learnt from what was to be forgotten, and its checkpoints; delete it."
    if not source.private:
        return [kept]
    return [kept, OF_BUDGETS, *([] if source.cfg.privacy.get("secure_rng", False) else [OF_NOISE])]


def _sign(folder: Path, summary: dict[str, Any], source: Source, about: dict[str, Any]) -> None:
    """The new run's lineage: in its summary, in its model's metadata, and no row of the clients in lineage.parquet."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    lineage = pq.read_table(folder / "lineage.parquet")
    kept = lineage.filter(pc.invert(pc.is_in(lineage["client"], pc.cast(about["clients"], "int32"))))
    metadata = {key.decode(): value.decode() for key, value in (lineage.schema.metadata or {}).items()}
    write_table(folder / "lineage.parquet", {name: kept[name] for name in kept.column_names}, metadata)
    words = {
        "dataset": about["from"]["dataset"]["fingerprint"],
        "forgotten_clients": ",".join(map(str, about["clients"])),
        "forgotten_by": about["method"],
        "from_run": about["from"]["run"],
    }
    arrays = read_arrays(folder / "model.safetensors", str(folder))
    write_arrays(folder / "model.safetensors", arrays, words)
    left = source.summary["num_clients"] - len(about["clients"])
    changed = {"num_clients": left, "partition": source.summary["partition"]}
    own = {key: about[key] for key in ("clients", "from", "method", "command")}
    RunFolder(folder).describe(summary | changed | {"command": about["command"], "forgotten": own})


def _label(clients: tuple[int, ...]) -> str:
    return "_".join(map(str, clients)) if len(clients) <= 5 else f"{len(clients)}_clients"


def _title(clients: tuple[int, ...], models: dict[str, Judged]) -> str:
    who = f"client {clients[0]}" if len(clients) == 1 else f"{len(clients)} clients"
    spoken = [
        f"{name} {percent(model['forgotten_accuracy'])}"
        for name, model in models.items()
        if known(model["forgotten_accuracy"])
    ]
    tail = f": accuracy on what is forgotten, {', '.join(spoken)}" if spoken else ""
    return f"Forgetting {who}{tail}"


def sentences(told: dict[str, Any]) -> list[str]:
    """What was done, for people."""
    lines = []
    for one in told["touched"]:
        rounds = ", ".join(map(str, one["rounds"][:10])) + (" ..." if len(one["rounds"]) > 10 else "")
        spent = f", epsilon {one['epsilon']:.3g}" if known(one["epsilon"]) else ""
        took = f"{len(one['rounds'])} of {told['from']['rounds']} rounds" + (f" ({rounds})" if rounds else "")
        lines.append(f"client {one['client']} took part in {took} with {one['examples']} examples{spent}")
    if made := told["exact"]:
        start = f"from the checkpoint of round {made['from_round']}" if made["checkpoint"] else "from the start"
        line = f"exact: trained {made['client_rounds']:,} client-rounds {start}"
        if spared := made["client_rounds_spared_with_all_checkpoints"]:
            line += f"; checkpoint.keep=1000 in the old run would have spared {spared:,} of them"
        elif spared := made["client_rounds_spared_with_one_each_round"]:
            line += f"; checkpoint.keep=1000 checkpoint.every=1 in the old run would have spared {spared:,} of them"
        lines.append(line)
    return lines + told["caveats"]
