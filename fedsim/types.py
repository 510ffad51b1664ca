"""Names that every floor shares: the arrays of a model, what a device trains on, and the one error users meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:  # importing torch takes seconds, which a misspelt key or a Tab on the command line need not wait for
    from torch import Tensor

Params: TypeAlias = "dict[str, Tensor]"
"""A model's arrays by name, as in `nn.Module.state_dict()`: parameters and buffers."""


class FedsimError(Exception):
    """A mistake that a user can mend: one sentence that says what is wrong, which key, and what to do."""

    exit_code = 1


class MissingPackageError(FedsimError):
    """An optional package is not installed; the sentence holds the `pip install` that mends it."""


class ClientData(NamedTuple):
    """What one device holds, ready for the model.

    x: (examples, ...) preprocessed inputs; y: (examples, ...) targets; both on the training device.
    """

    client: int
    x: Tensor
    y: Tensor
