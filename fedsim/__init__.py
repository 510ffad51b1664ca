"""fedsim: federated learning on simulated devices, from one Hydra command to a written run."""

import os

# Flower reports usage unless told otherwise before its first import; a simulator on a private machine should not.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

__version__ = "0.1.0"
