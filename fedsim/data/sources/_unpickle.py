"""Reading the pickles that others ship, without running anything they say.

A pickle is a program: it may call any function that it can name. Here it can name only what a caller lists, and the
listed things build arrays and tables, nothing else. The sources check the file's SHA-256 first; this is a second lock.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from fedsim.types import FedsimError

Names = Mapping[tuple[str, str], Any]
"""What a pickle may name: (module, name) as written in it -> the object that it gets."""


def _reconstruct(subtype: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.ndarray.__new__(subtype, shape, dtype)


def _frombuffer(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how protocol 2 writes bytes; the other codecs can do more than encode
        raise FedsimError(f"a pickle asks for the codec {encoding!r}, which reading a dataset does not need; refused")
    return text.encode("latin1")


NUMPY_NAMES: Names = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
"""What a pickle of numpy arrays names."""


def pandas_names() -> Names:
    """What a pickle of a pandas table with plain columns names, beside numpy's."""
    from pandas import DataFrame, Index, RangeIndex

    inside = (  # private, so without type stubs, but this is what such a pickle is made of
        ("pandas.core.indexes.base", "_new_Index"),
        ("pandas.core.internals.managers", "BlockManager"),
        ("pandas._libs.internals", "_unpickle_block"),
    )
    return {
        **NUMPY_NAMES,
        ("builtins", "slice"): slice,
        ("pandas.core.frame", "DataFrame"): DataFrame,
        ("pandas.core.indexes.base", "Index"): Index,
        ("pandas.core.indexes.range", "RangeIndex"): RangeIndex,
        **{(module, name): getattr(import_module(module), name) for module, name in inside},
    }


class _Restricted(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, names: Names) -> None:
        super().__init__(file)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise FedsimError(f"a pickle asks for {module}.{name}, which reading a dataset does not need; refused")
        return self._names[module, name]


def unpickle(content: bytes, names: Names = NUMPY_NAMES) -> Any:
    """The object that `content` describes; FedsimError where it names anything outside `names`, or is no pickle."""
    try:
        return _Restricted(io.BytesIO(content), names).load()
    except FedsimError:
        raise
    except Exception as error:  # a broken pickle may raise nearly anything
        raise FedsimError(f"a pickle cannot be read ({type(error).__name__}: {error}); get the file anew") from None
