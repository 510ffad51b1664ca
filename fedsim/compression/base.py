"""What compression is to a run: an update becomes the bytes of a message, and a message an update again.

A part of `conf/compression/` is one `Compression`. Its `encode` works on the device and its `decode` at the server, which
share the part's keys, the names and shapes of the arrays, and nothing else: what chance they must share is in the message.
A message is a function of the update, of what the client kept (`state`), and of random numbers that are public: it hides
nothing and protects nobody. Encoding what a device has already made private is post-processing; a server that decodes, then
clips and adds noise, bounds the decoded update as it would any other. Masked sums are another matter: they must not be rounded.

With error feedback (Stich et al. 2018, arXiv 1809.07599; Karimireddy et al. 2019, arXiv 1901.09847) a client adds to its
update what its earlier messages left out: p = u + e is encoded, and e = p - decode(encode(p)) is kept for its next round. The
sum of all that was decoded is then the sum of all updates less the last e.

Subclasses give `pack`, `unpack` and `payload_bytes`; header, arrays, error feedback and refusals are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from fedsim.checks import require_bool, require_int
from fedsim.compression.down import Downlink
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Layout, require_plausible
from fedsim.compression.wire import HEADER_BYTES, Reader, refusal, seal, unseal
from fedsim.types import FedsimError, Params

RESIDUAL = "compression.residual"
"""(d,) in a client's state: what its messages have left out so far."""


class Compression:
    """One codec with its keys. Stateless: what a client keeps between rounds comes in and goes out.

    compresses: whether messages are encoded at all (False: compression=none). number: the codec's, in the header. agreed_keys:
    the attributes that both sides must have alike. down: how the model is encoded on its way to the devices, or None.
    """

    compresses: ClassVar[bool] = True
    number: ClassVar[int]
    agreed_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, error_feedback: bool = False, down_bits: int | None = None) -> None:
        self.error_feedback = require_bool("compression.error_feedback", error_feedback)
        self.down = (
            None if down_bits is None else Downlink(require_int("compression.down_bits", down_bits, low=1, high=16))
        )

    @property
    def name(self) -> str | None:
        """As in summary.json; None where nothing is encoded."""
        return type(self).__name__.lower() if self.compresses else None

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Before a run: raises FedsimError where arrays of these shapes cannot be carried with these keys."""
        if Layout.of(shapes).total >= 2**30:
            raise FedsimError("a model of 2^30 coordinates or more cannot be compressed; use compression=none")

    def notes(self, shapes: Mapping[str, torch.Size]) -> list[str]:
        """Sentences that a user should read before a run with these shapes."""
        layout = Layout.of(shapes)
        length, plain = self.expected_bytes(shapes), 4 * layout.total
        if not self.compresses or length < plain:
            return []
        return [
            f"a compressed message takes {length:,} bytes, and the {layout.total:,} coordinates as they are {plain:,}"
        ]

    def encode(self, update: Params, state: Params, seed: int, round: int, client: int) -> tuple[bytes, Params]:
        """The message, and what the client keeps for its next one ({} where the codec keeps nothing).

        update: trained arrays less received ones. state: what the client kept of its last message; other arrays in it are not
        looked at. Nothing is changed in place. Raises FedsimError where the update holds NaN, Inf or beyond 1e27.
        """
        layout = Layout.of({name: array.shape for name, array in update.items()})
        vector = layout.flatten(update)
        if self.error_feedback and RESIDUAL in state:
            vector += kept_array(state, RESIDUAL, (layout.total,))
        require_plausible(vector)
        payload, kept = self.pack(vector, layout, state, Draws(seed, round, client))
        if self.error_feedback:
            kept[RESIDUAL] = torch.from_numpy(vector - self.unpack(Reader(payload), layout))
        return seal(self.number, self.agreed(layout), payload), kept

    def decode(self, message: bytes, shapes: Mapping[str, torch.Size]) -> Params:
        """The update that the message stands for, float32 on the CPU, in the order of `shapes`.

        Raises FedsimError for whatever is no message of this codec for these shapes, and allocates no more than they imply.
        """
        layout = Layout.of(shapes)
        reader = unseal(self.number, self.agreed(layout), message)
        with np.errstate(over="ignore", invalid="ignore"):  # what a forged message overflows is refused below
            vector = self.unpack(reader, layout)
        reader.end()
        if not np.isfinite(vector).all():
            raise refusal("its numbers overflow")
        arrays = layout.unflatten(vector)
        return {name: arrays[name] for name in shapes}

    def expected_bytes(self, shapes: Mapping[str, torch.Size]) -> int:
        """Length of a message for these shapes: exact, but for entropy-coded ones, which are no longer than this."""
        return HEADER_BYTES + self.payload_bytes(Layout.of(shapes))

    def encode_model(self, arrays: Params, seed: int, round: int) -> bytes:
        """The model as `down` has it. Every message holds a whole model, so that whoever joins can read it."""
        return self._downlink().encode(arrays, seed, round)

    def decode_model(self, message: bytes, like: Params) -> Params:
        """The model that all devices of a round get; names, shapes and types are those of `like`, what they hold is not read."""
        return self._downlink().decode(message, like)

    def pack(self, vector: np.ndarray, layout: Layout, state: Params, draws: Draws) -> tuple[bytes, Params]:
        """The payload of a message for `vector` (d,) float32, which must not change, and the codec's own part of the state."""
        raise NotImplementedError

    def unpack(self, reader: Reader, layout: Layout) -> np.ndarray:
        """(d,) float32 that the payload stands for, in memory of its own."""
        raise NotImplementedError

    def payload_bytes(self, layout: Layout) -> int:
        """Length of what `pack` gives, or its bound."""
        raise NotImplementedError

    def agreed(self, layout: Layout) -> bytes:
        """What both sides must know alike, and what a message's check therefore covers."""
        shapes = [(name, *shape) for name, shape in zip(layout.names, layout.shapes, strict=True)]
        return repr(([getattr(self, key) for key in self.agreed_keys], shapes)).encode()

    def _downlink(self) -> Downlink:
        if self.down is None:
            raise FedsimError("compression.down_bits=null sends the model as it is; give a number of bits to encode it")
        return self.down


def kept_array(state: Params, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a client's state, float32 on the CPU. Raises FedsimError where its shape is another."""
    array = state[name]
    if tuple(array.shape) != shape:
        raise FedsimError(
            f"a client's state holds {name} of shape {tuple(array.shape)} where {shape} fits the model; start the run anew"
        )
    return array.detach().float().cpu().numpy()
