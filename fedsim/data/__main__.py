"""`python -m fedsim.data`: which datasets are here, how to get the others, and what is in one."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsim.data.dataset import IGNORED_TARGET, Dataset, Examples
from fedsim.data.made import MOST_AT_ONCE, MadeExamples
from fedsim.paths import conf_dir, data_dir
from fedsim.types import FedsimError

CLASSES_SHOWN = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 (a mistake in data or options) or 2 (no such dataset)."""
    parser = argparse.ArgumentParser(prog="python -m fedsim.data", description="List, show and fetch datasets.")
    parser.add_argument("name", nargs="?", help="a dataset of conf/dataset; without it, all are listed")
    parser.add_argument("options", nargs="*", metavar="key=value", help="its options, such as dataset.path=FILE")
    parser.add_argument("--root", help="the folder that holds its files, or that --fetch puts them in")
    parser.add_argument(
        "--fetch", action="store_true", help="download it where that can be done, else say how to get it"
    )
    chosen = parser.parse_args(arguments)
    names = sorted(path.stem for path in (conf_dir() / "dataset").glob("*.yaml"))
    if chosen.name is not None and chosen.name not in names:
        close = get_close_matches(chosen.name, names, n=3, cutoff=0.4) or names
        print(f"there is no dataset {chosen.name}; did you mean {', '.join(close)}?", file=sys.stderr)
        return 2
    console = Console()
    try:
        if chosen.name is None:
            console.print(overview(names))
        elif chosen.fetch:
            _fetch(chosen.name, _settings(chosen.name, chosen.options, chosen.root), chosen.root, console)
        else:
            _show(_settings(chosen.name, chosen.options, chosen.root), console)
    except FedsimError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def overview(names: Sequence[str]) -> Table:
    """A row a dataset: whether it is here, what it is, where it lies or how to get it."""
    table = Table("dataset", "here", "what it is", "where, or how to get it")
    table.columns[-1].overflow = "fold"  # a path is of use only whole
    for name in names:
        settings = _settings(name, [], None)
        if keys := OmegaConf.missing_keys(settings):
            table.add_row(name, "-", escape(_about(name, settings)), escape(f"needs {_needed(keys)}"))
            continue
        source = _source(settings)
        place = _matching_call(source.find, settings)
        table.add_row(name, "yes" if place else "no", escape(source.ABOUT), escape(str(place or source.HOW)))
    return table


def _about(name: str, settings: DictConfig) -> str:
    """The source's own line, or the configuration's where the source is still to be named."""
    if not OmegaConf.is_missing(settings, "_target_"):
        return _source(settings).ABOUT
    return (conf_dir() / "dataset" / f"{name}.yaml").read_text().partition("\n")[0].removeprefix("# ")


def _settings(name: str, options: Sequence[str], root: str | None) -> DictConfig:
    """The dataset's YAML with the command line's options: key=value, dataset.key=value, +key=value for a new key."""
    settings = OmegaConf.load(conf_dir() / "dataset" / f"{name}.yaml")
    assert isinstance(settings, DictConfig)
    added = [option.removeprefix("+") for option in options if option.startswith("+")]
    given = [option for option in options if not option.startswith("+")] + ([f"root={root}"] if root else [])
    given, added = ([text.removeprefix("dataset.") for text in texts] for texts in (given, added))
    keys = {str(key) for key in settings.keys()}  # noqa: SIM118 -- `in settings` denies a key whose value is ???
    unknown = [text.partition("=")[0] for text in given if text.partition("=")[0].split(".")[0] not in keys]
    if unknown:
        known = ", ".join(str(key) for key in settings if key != "_target_")
        raise FedsimError(f"dataset {name} has no option {', '.join(unknown)}; it has {known}")
    try:
        merged = OmegaConf.merge(settings, OmegaConf.from_dotlist(given + added))
    except Exception as error:  # OmegaConf's errors and YAML's have no base in common
        raise FedsimError(
            f"the options {given} of dataset {name} cannot be read ({str(error).splitlines()[0]})"
        ) from None
    assert isinstance(merged, DictConfig)
    return merged


def _needed(keys: set[str]) -> str:
    return " ".join(f"dataset.{key}=..." for key in sorted(keys))


def _source(settings: DictConfig) -> ModuleType:
    return importlib.import_module(settings["_target_"].rpartition(".")[0])


def _matching_call(function: Callable[..., Any], settings: DictConfig, **fixed: Any) -> Any:
    """`function` with those settings that it takes: `find` wants the root, and some a name as well."""
    taken = inspect.signature(function).parameters
    values = {str(key): value for key, value in _values(settings).items() if key in taken}
    return function(**{**values, **fixed})


def _values(settings: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(settings)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "_target_" and value != "???"}


def _fetch(name: str, settings: DictConfig, root: str | None, console: Console) -> None:
    source = _source(settings)
    if not hasattr(source, "fetch"):
        console.print(f"{name} cannot be fetched from here; get it with: {source.HOW}", markup=False, highlight=False)
        return
    place = _matching_call(source.fetch, settings, root=Path(root).expanduser() if root else data_dir(name))
    console.print(f"{name} is in {place}", markup=False, highlight=False, soft_wrap=True)


def _show(settings: DictConfig, console: Console) -> None:
    if keys := OmegaConf.missing_keys(settings):
        raise FedsimError(f"this dataset needs {_needed(keys)}; add them to the command")
    load = _loader(settings)
    start = time.perf_counter()
    dataset = load(**_values(settings))
    seconds = time.perf_counter() - start
    countable = not _made(dataset) or len(dataset.train) <= MOST_AT_ONCE
    console.print(_facts(dataset, seconds), _classes(dataset) if dataset.classes and countable else "")


def _loader(settings: DictConfig) -> Callable[..., Dataset]:
    try:
        return getattr(_source(settings), settings["_target_"].rpartition(".")[2])
    except (ImportError, AttributeError, ValueError) as error:
        raise FedsimError(f"dataset._target_={settings['_target_']} cannot be imported ({error})") from None


def _facts(dataset: Dataset, seconds: float) -> Table:
    """Splits, shapes, users, fingerprint, source."""
    table = Table("", "train", "test", title=f"{dataset.name} ({dataset.task}), loaded in {seconds:.2f} s")
    splits = (dataset.train, dataset.test)
    table.add_row("rows", *(f"{len(split):,}" for split in splits))
    rows = [split.take(np.arange(1))[0] for split in splits]
    stored = [f"{tuple(x.shape[1:])} {x.dtype}".replace("torch.", "") for x in rows]
    table.add_row("made when asked for" if _made(dataset) else "stored", *stored)
    table.add_row("model input", str(dataset.input_shape), "the same")
    if dataset.users:
        table.add_row("users", *(_users(split) for split in splits))
        table.add_row("rows a user", *(_sizes(split) for split in splits))
    if dataset.train.time is not None and dataset.test.time is not None:
        table.add_row(
            "time", *(f"{split.time.min()} to {split.time.max()}" for split in splits if split.time is not None)
        )
    table.add_row("fingerprint", dataset.fingerprint, "of both")
    table.add_row("source", escape(dataset.source), "")
    for column in table.columns:
        column.overflow = "fold"
    return table


def _made(dataset: Dataset) -> bool:
    return isinstance(dataset.train, MadeExamples)


def _rows_a_user(split: Examples) -> np.ndarray:
    return np.unique(split.user, return_counts=True)[1] if split.user is not None else np.zeros(1, np.int64)


def _users(split: Examples) -> str:
    return f"{len(_rows_a_user(split)):,}"


def _sizes(split: Examples) -> str:
    sizes = _rows_a_user(split)
    return f"smallest {sizes.min():,}, median {np.median(sizes):,.0f}, largest {sizes.max():,}"


def _classes(dataset: Dataset) -> Table:
    """How often each class (or next symbol) is a target; the most frequent where there are many."""
    counts = [
        np.bincount(split.y[split.y != IGNORED_TARGET].flatten().numpy(), minlength=len(dataset.classes))
        for split in (dataset.train, dataset.test)
    ]
    order: Sequence[int] = range(len(dataset.classes))
    if len(order) > CLASSES_SHOWN:
        order = np.argsort(-counts[0], kind="stable")[:CLASSES_SHOWN].tolist()
    title = f"{len(dataset.classes):,} classes" + (
        f", the {len(order)} most frequent" if len(order) < len(counts[0]) else ""
    )
    table = Table("class", "train", "test", title=title)
    for label in order:
        name = dataset.classes[label]
        shown = name if name.isprintable() and name.strip() else repr(name)
        table.add_row(escape(shown), *(f"{count[label]:,}" for count in counts))
    return table


if __name__ == "__main__":
    sys.exit(main())
