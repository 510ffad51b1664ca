"""Keys and masks, by the primitives of the `cryptography` package: X25519, HKDF, AES-GCM, and a ChaCha20 key stream."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from fedsim import rng
from fedsim.types import FedsimError

KEY_BYTES = 32

TRAVELS = {16: torch.int16, 32: torch.int32}
"""By bits: the type in which a vector travels."""

_UNSIGNED, _SIGNED = {16: np.uint16, 32: np.uint32}, {16: np.int16, 32: np.int32}


@dataclass(frozen=True)
class Entropy:
    """Where secret randomness comes from: the run's seed and the draw's name, or, with `secure`, the operating system."""

    seed: int
    secure: bool = False

    def draw(self, size: int, round: int, client: int, purpose: str) -> bytes:
        """`size` bytes. A secure source gives new ones each time."""
        if self.secure:
            return os.urandom(size)
        return rng.numpy_generator(self.seed, round, client, purpose).bytes(size)


def public_key(private: bytes) -> bytes:
    """The 32 public bytes of a 32-byte X25519 private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, purpose: str) -> bytes:
    """The 32-byte key that both ends of a pair derive (X25519, then HKDF-SHA256). Raises FedsimError on a bad public key."""
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise FedsimError("secure aggregation: a public key is not a point of X25519, so it is refused") from None
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=f"fedsim {purpose}".encode()).derive(secret)


def seal(key: bytes, plain: bytes, label: str) -> bytes:
    """Encrypt and authenticate. A pair's key seals one message in each direction; `label` keeps the two nonces apart."""
    return AESGCM(key).encrypt(_nonce(label), plain, label.encode())


def unseal(key: bytes, sealed: bytes, label: str) -> bytes:
    """The plain text. Raises FedsimError where it was not sealed by this key under this label."""
    try:
        return AESGCM(key).decrypt(_nonce(label), sealed, label.encode())
    except (InvalidTag, ValueError):
        raise FedsimError(
            f"secure aggregation: the sealed share {label} is garbled or forged, so it is refused"
        ) from None


def _nonce(label: str) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(label.encode())
    return digest.finalize()[:12]


def commit(seed: bytes) -> bytes:
    """SHA-256 of a 256-bit random seed: it tells nothing of the seed, and a wrong seed does not fit it."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"fedsim seed" + seed)
    return digest.finalize()


def stream(key: bytes, size: int) -> bytes:
    """The first `size` bytes of a key's ChaCha20 stream. A key is used for one stream only."""
    return Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(size))


def mask_of(key: bytes, length: int, bits: int) -> np.ndarray:
    """(length,) unsigned integers of `bits`, uniform to whoever lacks the key."""
    return np.frombuffer(stream(key, length * bits // 8), dtype=_UNSIGNED[bits])


def as_unsigned(vector: Tensor, bits: int) -> np.ndarray:
    """A copy of an integer tensor as numbers modulo 2^bits, (length,) unsigned."""
    return vector.detach().cpu().reshape(-1).to(TRAVELS[bits]).numpy().view(_UNSIGNED[bits]).copy()


def as_tensor(numbers: np.ndarray, bits: int) -> Tensor:
    """Numbers modulo 2^bits as a signed tensor, (length,), in [-2^(bits-1), 2^(bits-1))."""
    return torch.from_numpy(numbers.view(_SIGNED[bits]))
