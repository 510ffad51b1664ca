"""Any Hugging Face dataset of pictures or numbers, from a folder on this machine; `fetch` brings one from the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsim.data.dataset import Dataset, Standardize
from fedsim.data.sources._columns import Columns, build, names_of, require_column, split_columns
from fedsim.data.sources._hub import Split, class_names, plain_column, read_splits
from fedsim.data.sources._images import decode_picture, fit_normalize, picture_size, stack_pictures
from fedsim.paths import data_dir
from fedsim.types import FedsimError

ABOUT = "any Hugging Face dataset of pictures or numbers: from the Hub, a save_to_disk folder, or Parquet files"
HOW = "dataset=huggingface dataset.name=OWNER/NAME (or a folder) dataset.input=COLUMN dataset.label=COLUMN"


def find(root: str | None = None, name: str | None = None, subset: str | None = None) -> Path | None:
    """The folder of dataset `name`: `name` itself where it is a folder, else below `root` or fetched data."""
    if name is None:
        return None
    slug = _slug(name, subset)
    base = Path(root).expanduser() if root else data_dir("huggingface")
    places = [Path(name).expanduser(), base / slug]
    return next((place for place in places if place.is_dir()), None)


def _slug(name: str, subset: str | None) -> str:
    return "--".join([*name.split("/"), *([subset] if subset else [])])


def load(
    name: str,
    input: str | Sequence[str],
    label: str = "label",
    subset: str | None = None,
    user: str | None = None,
    time: str | None = None,
    train_split: str = "train",
    test_split: str | None = "test",
    task: str = "classification",
    size: int | Sequence[int] | None = None,
    grayscale: bool | None = None,
    standardize: bool = True,
    split: str = "share",
    test_share: float = 0.2,
    split_seed: int = 0,
    root: str | None = None,
) -> Dataset:
    """Pictures x (n, c, h, w) uint8, or numbers x (n, ...) float32 from one column or several columns side by side.

    test_split=null splits train_split by `split` (share | time | user). The keys are explained in
    conf/dataset/huggingface.yaml. Never downloads.
    """
    folder = find(root, name, subset)
    if folder is None:
        raise FedsimError(
            f'dataset.name={name} is neither a folder nor a fetched dataset; fetch it with `python -c "from '
            f"fedsim.data.sources import huggingface; huggingface.fetch(None, '{name}', {subset!r})\"`"
        )
    inputs = names_of(input)
    wanted = [train_split] if test_split is None else [train_split, test_split]
    splits = read_splits(folder, wanted)
    for column, key in [*((column, "input") for column in inputs), (label, "label"), (user, "user"), (time, "time")]:
        if column is not None:
            for part in splits:
                require_column(f"dataset.{key}", column, part.column_names, f"{folder} ({part.name})")
    x = _inputs(splits, inputs, str(folder), picture_size(size), grayscale)
    columns = [_columns(part, rows, label, user, time) for part, rows in zip(splits, x, strict=True)]
    train, test = columns if len(columns) == 2 else split_columns(columns[0], split, test_share, split_seed, task)
    classes = class_names(splits[0], label) if task == "classification" else ()
    return build(
        name.rstrip("/").split("/")[-1], train, test, task, _pipeline(train.x, standardize), str(folder), classes
    )


def fetch(root: Path | None = None, name: str | None = None, subset: str | None = None) -> Path:
    """Download `name` from the Hub and keep it as a save_to_disk folder below `root`; whole or not at all."""
    from datasets import load_dataset

    if name is None:
        raise FedsimError(
            "dataset=huggingface has no download of its own; name a dataset, as in dataset.name=ylecun/mnist"
        )
    folder = (data_dir("huggingface") if root is None else Path(root)) / _slug(name, subset)
    part = folder.with_name(folder.name + ".part")
    try:
        rows = load_dataset(name, subset)
        shutil.rmtree(part, ignore_errors=True)
        rows.save_to_disk(str(part))
    except Exception as error:  # the Hub's client raises errors of half a dozen libraries
        shutil.rmtree(part, ignore_errors=True)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FedsimError(
            f"the Hugging Face dataset {name} could not be fetched ({reason}); check its name and the network"
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def _inputs(
    splits: list[Split], inputs: list[str], where: str, size: tuple[int, int] | None, grayscale: bool | None
) -> list[np.ndarray]:
    """x of each split: one picture column, or number columns side by side."""
    if not any(splits[0].is_picture(column) for column in inputs):
        blocks = [np.concatenate([_numbers(part, column) for column in inputs], axis=1) for part in splits]
        if len({block.shape[1:] for block in blocks}) > 1:
            raise FedsimError(f"{where} has inputs of other shapes in train than in test; check dataset.input")
        return blocks
    if len(inputs) > 1:
        raise FedsimError(f"dataset.input={inputs} mixes a column of pictures with others; give the pictures alone")
    pictures = [
        decode_picture(source, f"picture {row} of {where} ({part.name})", size, grayscale)
        for part in splits
        for row, source in enumerate(part.picture_sources(inputs[0]))
    ]
    return np.split(stack_pictures(pictures, where), np.cumsum([len(part) for part in splits])[:-1])


def _numbers(part: Split, column: str) -> np.ndarray:
    """A column of numbers as (n, 1), of vectors as (n, f), of matrices as they are; float32."""
    values = plain_column(part, column, "input")
    if values.dtype.kind not in "biuf":
        raise FedsimError(
            f"column {column} of {part.where} holds no numbers or pictures; name another in dataset.input"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    return values[:, None] if values.ndim == 1 else values


def _columns(part: Split, x: np.ndarray, label: str, user: str | None, time: str | None) -> Columns:
    users = None if user is None else plain_column(part, user, "user")
    moments = None if time is None else plain_column(part, time, "time")
    return Columns(x, plain_column(part, label, "label"), users, moments, part.where)


def _pipeline(x: np.ndarray, standardize: bool) -> nn.Module:
    if x.dtype == np.uint8:
        return fit_normalize(torch.from_numpy(x))
    if not standardize:
        return nn.Identity()
    if x.ndim == 2:
        return Standardize.fit(torch.from_numpy(x))
    return Standardize(torch.tensor(x.mean(dtype=np.float64)), torch.tensor(x.std(dtype=np.float64)))
