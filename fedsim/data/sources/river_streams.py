"""River's small shipped streams, and its generators with drift on demand (Montiel et al. 2021, arXiv:2012.04740).

A shipped stream is read straight from river's own file. A generator (SEA, Agrawal, Hyperplane, ...) makes `rows` rows
by its own seed, the same for every run; with `drift` it passes from one concept to another around the middle.
"""

from __future__ import annotations

import importlib
import inspect
import io
import zipfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples, Standardize
from fedsim.data.sources._files import find_file, missing, package_file, read_bytes
from fedsim.data.splits import stratified_split
from fedsim.types import FedsimError, MissingPackageError

ABOUT = "river's shipped streams (Phishing, Bananas, ImageSegments, ...) and generators with drift (SEA, ...)"
HOW = "pip install 'fedsim-flower[river]'"


class Shipped(NamedTuple):
    """A stream that river ships: its file, the SHA-256 of that (out of its gzip), the target column, the classes."""

    file: str
    sha256: str
    target: str
    classes: tuple[str, ...] = ()  # in the order of labels; empty for regression


IMAGE_SEGMENTS = ("brickface", "cement", "foliage", "grass", "path", "sky", "window")
STREAMS = {
    "Phishing": Shipped(
        "phishing.csv.gz", "cfe77f0b77dd706ac5491842d7ad787c80b5805eb315a47a4b89d0172c760fca", "is_phishing", ("0", "1")
    ),
    "Bananas": Shipped(
        "banana.zip", "0095525598e245d0f075fa65e4553eeadaba51ddf393e449e6959e061ed3303f", "", ("-1", "1")
    ),
    "ImageSegments": Shipped(
        "segment.csv.zip",
        "91e4402efcb6f6a4087e4bcfcd074976dd8e48819d290f45bae6bd652bd16d75",
        "category",
        IMAGE_SEGMENTS,
    ),
    "Shuttle": Shipped(
        "shuttle.csv.gz", "8bee3239f80b6549cbf0bc69c07bdcad8bb33fb968329c0678328a8ca971784b", "anomaly", ("0", "1")
    ),
    "TrumpApproval": Shipped(
        "trump_approval.csv.gz", "aef188d04b606270e9590013282e2ede3f5f92edae1106d85d3defa483189cb0", "five_thirty_eight"
    ),
    "ChickWeights": Shipped(
        "chick-weights.csv", "0dc2c24ced9d447958d16be9d1537db1e6973c867223553623708c879080be3f", "weight"
    ),
}


def find(root: str | None = None, stream: str = "Phishing") -> Path | None:
    """The stream's file in `root`, among fetched data, or inside river; river's generators where it has no file."""
    if stream in STREAMS:
        file = STREAMS[stream].file
        return find_file("river_streams", file, root, package_file("river", "datasets", file))
    path = package_file("river", "datasets", "synth", "__init__.py")
    return path if path is not None and path.is_file() else None


def load(
    root: str | None = None,
    stream: str = "Phishing",
    split: Literal["stratified", "last"] = "stratified",
    rows: int = 10_000,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    drift: Mapping[str, Any] | None = None,
) -> Dataset:
    """Features x (n, f) float32, y (n,) labels, or numbers in a regression; time is the place in the stream.

    split: a fixed stratified fifth of the rows for the test, or the last fifth of the stream.
    For generators only: rows; seed; options, those of the generator's class; drift, those that it has after the middle.
    """
    if split not in ("stratified", "last"):
        raise FedsimError(f"dataset.split={split} must be stratified or last")
    path = find(root, stream)
    if path is None:
        raise missing("river_streams", STREAMS[stream].file if stream in STREAMS else "river.datasets.synth", root, HOW)
    if stream in STREAMS:
        x, y, classes = _shipped(path, STREAMS[stream])
    else:
        x, y, classes = _generated(stream, rows, seed, dict(options or {}), drift)
    name = f"river_{stream}"
    labels = y if classes else np.zeros(len(y), np.int64)
    if split == "stratified":
        parts = stratified_split(labels, 0.2, name=name)
    else:
        parts = np.arange(len(y) * 4 // 5), np.arange(len(y) * 4 // 5, len(y))
    train, test = (Examples(torch.from_numpy(x[part]), torch.from_numpy(y[part]), time=part) for part in parts)
    task: Literal["classification", "regression"] = "classification" if classes else "regression"
    return Dataset(name, train, test, task, classes, Standardize.fit(train.x), source=f"{path} ({stream})")


Columns = tuple[np.ndarray, np.ndarray, tuple[str, ...]]
"""x (n, f) float32, y (n,) int64 or float32, the classes' names (empty for a regression)."""


def _shipped(path: Path, shipped: Shipped) -> Columns:
    import pandas as pd

    content = read_bytes(path, "river_streams", HOW, shipped.sha256)
    if path.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(next(name for name in archive.namelist() if "/" not in name))
    if not shipped.target:  # libsvm: label 1:value 2:value
        rows = np.array(content.decode().replace(":", " ").split(), np.float64).reshape(-1, 5)
        table = pd.DataFrame({"x": rows[:, 2], "y": rows[:, 4], "target": rows[:, 0].astype(np.int64)})
    else:
        table = pd.read_csv(io.BytesIO(content)).rename(columns={shipped.target: "target"})
    x = table.drop(columns="target").to_numpy(np.float32)
    if not shipped.classes:
        return x, table["target"].to_numpy(np.float32), ()
    places = {label: place for place, label in enumerate(shipped.classes)}
    return x, table["target"].astype(str).map(places).to_numpy(np.int64), shipped.classes


def _generated(stream: str, rows: int, seed: int, options: dict[str, Any], drift: Mapping[str, Any] | None) -> Columns:
    if rows < 10:
        raise FedsimError(f"dataset.rows={rows} must be at least 10")
    try:
        synth = importlib.import_module("river.datasets.synth")
    except ImportError:
        raise MissingPackageError(f"dataset.stream={stream} needs the package river: {HOW}") from None
    if stream not in synth.__all__:
        close = get_close_matches(stream, [*STREAMS, *synth.__all__], n=3, cutoff=0.4) or sorted(STREAMS)
        raise FedsimError(
            f"dataset.stream={stream} is none of river's shipped streams and generators; did you mean {close}?"
        )
    made = _make(synth, stream, seed, options)
    if drift is not None:
        after = _make(synth, stream, seed + 1, {**options, **drift})
        middle = {"position": rows // 2, "width": max(1, rows // 10), "seed": seed}
        made = synth.ConceptDriftStream(stream=made, drift_stream=after, **middle)
    features, targets = zip(*made.take(rows), strict=True)
    try:
        x = np.array([list(row.values()) for row in features], np.float32)
        y = np.array([float(target) for target in targets])
    except (TypeError, ValueError):
        raise FedsimError(
            f"dataset.stream={stream} gives words or several targets at once, which no task of fedsim takes; "
            "choose another generator"
        ) from None
    if len(x) < rows:
        raise FedsimError(
            f"dataset.stream={stream} gives only {len(x):,} rows; set dataset.rows={len(x)} or its options"
        )
    if "classification" not in str(made.task).lower():
        return x, y.astype(np.float32), ()
    labels = y.astype(np.int64)
    count = max(int(getattr(made, "n_classes", None) or 0), int(labels.max()) + 1, 2)
    return x, labels, tuple(str(label) for label in range(count))


def _make(synth: Any, stream: str, seed: int, options: dict[str, Any]) -> Any:
    """The generator, with every seed that it takes set from ours unless `options` sets it."""
    generator = getattr(synth, stream)
    seeds = {
        key: seed
        for key in inspect.signature(generator).parameters
        if key in ("seed", "seed_model", "seed_sample", "seed_tree")
    }
    try:
        return generator(**{**seeds, **options})
    except (TypeError, ValueError) as error:
        raise FedsimError(f"dataset.options={options} does not suit {stream} ({error})") from None
