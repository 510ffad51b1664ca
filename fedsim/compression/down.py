"""The model on its way to the devices: quantised like an update, with its integer buffers as they are.

Every message holds a whole model. The difference to the last one would be smaller, and a device that has sat out a round could
not read it: the server would have to keep a past for each device, or send the differences of all rounds between.
"""

from __future__ import annotations

import numpy as np
import torch

from fedsim.compression.bits import pack, packed_bytes, unpack, width_of
from fedsim.compression.draws import Draws
from fedsim.compression.layout import Buckets, Layout, require_plausible
from fedsim.compression.rounding import uniform_symbols, uniform_values
from fedsim.compression.wire import refusal, seal, unseal
from fedsim.rng import SERVER
from fedsim.types import FedsimError, Params

BUCKET = 256
"""Coordinates that share a minimum and a maximum: a quarter of a bit more for each coordinate."""

NUMBER = 255
"""In the header, where a codec of updates has its own."""


class Downlink:
    """Floating-point arrays at 2^bits levels between the minimum and maximum of each 256 coordinates, rounded at random.

    The mean of the rounding is kept (Caldas et al. 2018, arXiv 1812.07210, section 2). One message serves all devices.
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.alphabet = bits, 2**bits

    def expected_bytes(self, like: Params) -> int:
        """Length of a message for a model of these names, shapes and types: exact."""
        layout, buckets, exact = self._parts(like)
        packed = packed_bytes(layout.total, width_of(self.alphabet))
        return len(seal(NUMBER, b"", b"")) + 8 * len(buckets) + packed + sum(like[name].nbytes for name in exact)

    def encode(self, arrays: Params, seed: int, round: int) -> bytes:
        """The message of a round. Raises FedsimError where an array holds NaN, Inf or beyond 1e27."""
        layout, buckets, exact = self._parts(arrays)
        vector = layout.flatten(arrays)
        try:
            require_plausible(vector)
        except FedsimError as error:
            raise FedsimError(
                "the model holds NaN, Inf or numbers beyond 1e27, which compression.down_bits cannot encode; lower the step sizes"
            ) from error
        low, high = buckets.reduce(np.minimum, vector), buckets.reduce(np.maximum, vector)
        generator = Draws(seed, round, SERVER).private("model")
        symbols = uniform_symbols(vector, buckets.spread(low), buckets.spread(high), self.alphabet, generator)
        payload = [low.astype("<f4").tobytes(), high.astype("<f4").tobytes(), pack(symbols, width_of(self.alphabet))]
        payload += [_raw(arrays[name]) for name in exact]
        return seal(NUMBER, self.agreed(arrays), b"".join(payload))

    def decode(self, message: bytes, like: Params) -> Params:
        """The model, on the CPU. Raises FedsimError for whatever is no message for arrays of these names, shapes and types."""
        layout, buckets, exact = self._parts(like)
        reader = unseal(NUMBER, self.agreed(like), message)
        low, high = (buckets.spread(reader.floats(len(buckets)).astype(np.float32)) for _ in range(2))
        symbols = unpack(reader, layout.total, width_of(self.alphabet))
        with np.errstate(over="ignore", invalid="ignore"):
            vector = uniform_values(symbols, low, high, self.alphabet)
        if not np.isfinite(vector).all():
            raise refusal("its numbers overflow")
        found = layout.unflatten(vector)
        for name in exact:
            found[name] = _from_raw(reader.take(like[name].nbytes), like[name])
        reader.end()
        return {name: found[name].to(array.dtype) for name, array in like.items()}

    def _parts(self, like: Params) -> tuple[Layout, Buckets, list[str]]:
        layout = Layout.of({name: array.shape for name, array in like.items() if array.is_floating_point()})
        return layout, Buckets(layout.sizes, BUCKET), sorted(like.keys() - set(layout.names))

    def agreed(self, like: Params) -> bytes:
        """What both sides must know alike."""
        return repr((self.bits, [(name, str(like[name].dtype), *like[name].shape) for name in sorted(like)])).encode()


def _raw(array: torch.Tensor) -> bytes:
    return array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _from_raw(data: memoryview, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(np.frombuffer(data, dtype=np.uint8)).view(like.dtype).reshape(like.shape)
