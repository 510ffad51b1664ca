"""Pictures of any format to arrays of bytes, and the normalisation that their training split asks for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Normalize
from fedsim.types import FedsimError

GREY_MODES = frozenset({"1", "L", "LA", "La"})
DEEP_MODES = ("I", "F")  # 16 or 32 bits a pixel: Pillow would clip them to bytes without a word


def picture_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) from `dataset.size`: a number, a pair, or None for the pictures' own."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise FedsimError(
            f"dataset.size={size} is no size; give pixels as in dataset.size=32 or dataset.size=[height,width]"
        )
    return pair[0], pair[1]


def decode_picture(
    source: bytes | Path, where: str, size: tuple[int, int] | None, grayscale: bool | None
) -> np.ndarray:
    """One picture as (h, w) or (h, w, 3) uint8. grayscale None keeps grey pictures grey and makes all others RGB.

    Transparency is dropped. Raises FedsimError naming `where` for what Pillow cannot read and for more than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if picture.mode.startswith(DEEP_MODES):
                raise FedsimError(
                    f"{where} has more than 8 bits a pixel (mode {picture.mode}); convert it to 8 bits first"
                )
            grey = picture.mode in GREY_MODES if grayscale is None else grayscale
            flat = picture.convert("L" if grey else "RGB")
            return np.asarray(flat if size is None else flat.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise FedsimError(
            f"{where} cannot be read as a picture ({type(error).__name__}); mend it or take it away"
        ) from None


def stack_pictures(pictures: Sequence[np.ndarray], where: str) -> np.ndarray:
    """Pictures (h, w) or (h, w, 3) as one (n, c, h, w) uint8 array: c is 1 where all are grey, else 3."""
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise FedsimError(
            f"the pictures of {where} have {len(sizes)} different sizes, such as {sizes[0]} and {sizes[-1]}; "
            "set dataset.size=[height,width] to bring them to one"
        )
    if all(picture.ndim == 2 for picture in pictures):
        return np.stack(pictures)[:, None]
    return np.stack(
        [np.moveaxis(picture, -1, 0) if picture.ndim == 3 else np.stack([picture] * 3) for picture in pictures]
    )


def fit_normalize(x: Tensor, chunk: int = 1000) -> Normalize:
    """Normalisation by mean and deviation of each channel of x (n, c, h, w) uint8, found exactly by counting bytes."""
    channels = x.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for part in x.split(chunk):  # bincount widens bytes to int64: a chunk at a time keeps that small
        for channel in range(channels):
            counts[channel] += torch.bincount(part[:, channel].reshape(-1), minlength=256)
    level = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ level
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))
    return Normalize(mean.item(), std.item()) if channels == 1 else Normalize(mean.tolist(), std.tolist())
