"""How wide devices are trained and in which way: one answer for a run, by a rule, recorded with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

WAYS = ("lockstep", "vmap", "one")
"""`lockstep`: layers for many clients at once (`stand_ins.py`). `vmap`: torch.func over any model. `one`: the module itself."""

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Execution:
    """way: one of WAYS. width: clients that train together. compile: by torch.compile. precision: of a step's products.

    why: in words, for people.
    """

    way: str = "one"
    width: int = 1
    compile: bool = False
    precision: str = "float32"
    why: str = ""


ONE_AT_A_TIME = Execution()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def set_precision(precision: str) -> None:
    """Of float32 products on CUDA in this process: TF32's ten bits of mantissa only where they were asked for."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
