"""What devices can do, as arrays over the devices that were asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hardware:
    """What n devices can do: (n,) arrays in the order in which the devices were asked for, float64 but for `kind`.

    kind: index into the fleet's `kinds`. flops: effective training speed, FLOP/s. memory: bytes that a training app may use.
    down, up: bytes a second. latency: seconds, once for each transfer. *_watts: drawn above idle by computing, by the radio as it
    receives and as it sends. battery: joules (inf: on mains). charge_watts: while it charges. failures: lost connections a
    second of work. A device that takes no time has infinite rates.
    """

    kind: np.ndarray
    flops: np.ndarray
    memory: np.ndarray
    down: np.ndarray
    up: np.ndarray
    latency: np.ndarray
    compute_watts: np.ndarray
    down_watts: np.ndarray
    up_watts: np.ndarray
    battery: np.ndarray
    charge_watts: np.ndarray
    failures: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)
