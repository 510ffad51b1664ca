"""One's own pictures: a folder for each class, perhaps below train/ and test/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import Dataset
from fedsim.data.sources._columns import Columns, build, split_columns
from fedsim.data.sources._images import decode_picture, fit_normalize, picture_size, stack_pictures
from fedsim.types import FedsimError

ABOUT = "your own pictures, a folder for each class"
HOW = "dataset=images dataset.path=DIR with DIR/CLASS/*.png, or DIR/train/CLASS/*.png and DIR/test/CLASS/*.png"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})


def find(root: str | None = None) -> Path | None:
    """None: the folder is named by dataset.path."""
    return None


def load(
    path: str,
    size: int | Sequence[int] | None = None,
    grayscale: bool | None = None,
    test_share: float = 0.2,
    split_seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Pictures x (n, c, h, w) uint8 in the order of their paths; the classes are the folders' names, sorted.

    size: pixels, or [height, width], to bring pictures to; None wants them all of one size. grayscale: true | false;
    None keeps grey pictures grey. test_share: share of each class for the test where there is no train/ and test/.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FedsimError(
            f"there is no folder {folder}; set dataset.path to a folder with one folder of pictures for each class"
        )
    shape = picture_size(size)
    parts = [part for part in ("train", "test") if (folder / part).is_dir()]
    if len(parts) == 1:
        raise FedsimError(
            f"{folder} has {parts[0]}/ without its counterpart; give both train/ and test/, or the classes alone"
        )
    pictures = [_read_classes(folder / part, shape, grayscale) for part in parts or [""]]
    x = stack_pictures([picture for found, _ in pictures for picture in found], str(folder))
    cuts = np.cumsum([len(found) for found, _ in pictures])[:-1]
    columns = [
        Columns(rows, np.array(labels), None, None, str(folder))
        for rows, (_, labels) in zip(np.split(x, cuts), pictures, strict=True)
    ]
    train, test = columns if parts else split_columns(columns[0], "share", test_share, split_seed, "classification")
    pipeline = fit_normalize(torch.from_numpy(train.x))
    return build(name or folder.resolve().name, train, test, "classification", pipeline, str(folder))


def _read_classes(
    folder: Path, size: tuple[int, int] | None, grayscale: bool | None
) -> tuple[list[np.ndarray], list[str]]:
    """Pictures of every class folder, at any depth below it, and their classes. Other files are passed over."""
    pictures: list[np.ndarray] = []
    labels: list[str] = []
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise FedsimError(
            f"{folder} has no folder of pictures; put the pictures of each class into a folder of its own"
        )
    for each in classes:
        files = sorted(
            file for file in each.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not files:
            raise FedsimError(f"{each} holds no pictures ({', '.join(sorted(SUFFIXES))}); fill it or take it away")
        pictures += [decode_picture(file, str(file), size, grayscale) for file in files]
        labels += [each.name] * len(files)
    return pictures, labels
