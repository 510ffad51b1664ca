"""How many bytes a round's messages take, before one was sent."""

from __future__ import annotations

from torch import nn

from fedsim import flower
from fedsim.compression.base import Compression
from fedsim.privacy.base import Protection
from fedsim.training.arrays import model_arrays


def message_bytes(model: nn.Module, protection: Protection, compression: Compression) -> tuple[int, int]:
    """Bytes of a message down and of one up, as encoded; of an entropy-coded one, which depends on its content, the most."""
    arrays = model_arrays(model)
    plain = flower.encoded_bytes(flower.to_record(arrays))
    down = plain if compression.down is None else len(compression.encode_model(arrays, 0, 0))
    moving = {name: arrays[name] for name in dict.fromkeys(protection.moving.values())}
    if compression.compresses:
        buffers = {} if protection.transforms else dict(model.named_buffers())
        encoded = compression.expected_bytes({name: array.shape for name, array in moving.items()})
        return down, encoded + flower.encoded_bytes(flower.to_record(buffers))
    if protection.sums:
        return down, flower.encoded_bytes(flower.exact_record(protection.sent(moving)))
    return down, plain
