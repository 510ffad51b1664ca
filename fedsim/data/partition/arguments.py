"""What a scheme may be asked for: each refusal is one sentence that names the key and the way out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.checks import require_int
from fedsim.data.partition.index import Blocks, Columns
from fedsim.types import FedsimError


def require_clients(scheme: str, columns: Columns, num_clients: int | None) -> int:
    """The number of clients, once it is known to be between one and the number of rows."""
    if num_clients is None:
        raise FedsimError(
            f"partition={scheme} needs a number of clients, and population.num_clients is null; set it to 10, say"
        )
    require_int("population.num_clients", num_clients, low=1)
    if num_clients > len(columns.label):
        raise FedsimError(
            f"population.num_clients={num_clients} is more than the {len(columns.label)} training rows, and every "
            "client needs one; lower population.num_clients"
        )
    return num_clients


def require_sizes(scheme: str, columns: Columns, num_clients: int | None, partition_sizes: Sequence[int]) -> list[int]:
    """`partition_sizes`, once it fits the clients and the rows."""
    sizes = list(partition_sizes)
    if num_clients is not None and num_clients != len(sizes):
        raise FedsimError(
            f"partition.partition_sizes names {len(sizes)} clients and population.num_clients={num_clients}; make them "
            f"equal, or set population.num_clients=null"
        )
    if not sizes or any(isinstance(rows, bool) or not isinstance(rows, int) or rows < 1 for rows in sizes):
        raise FedsimError(f"partition={scheme} needs whole numbers of rows from 1 up in partition.partition_sizes")
    if sum(sizes) > len(columns.label):
        raise FedsimError(
            f"partition.partition_sizes sums to {sum(sizes)} of {len(columns.label)} training rows; lower them"
        )
    return sizes


def spare_rows(columns: Columns, clients: int, min_size: int) -> int:
    """Rows that are left when every client has min_size."""
    require_int("partition.min_size", min_size, low=1)
    spare = len(columns.label) - clients * min_size
    if spare < 0:
        raise FedsimError(
            f"partition.min_size={min_size} for each of {clients} clients is more than the {len(columns.label)} "
            "training rows; lower partition.min_size or population.num_clients"
        )
    return spare


def class_codes(scheme: str, columns: Columns) -> np.ndarray:
    """(n,) labels numbered from 0 without gaps, in their order."""
    if columns.label.dtype.kind == "f":
        raise FedsimError(
            f"partition={scheme} needs class labels, and the targets are real numbers; choose partition=continuous, "
            "iid or quantity"
        )
    return np.unique(columns.label, return_inverse=True)[1]


def require_classes_per_client(key: str, value: int, codes: np.ndarray) -> None:
    """Refuse more classes a client than there are among `codes` (n,)."""
    require_int(f"partition.{key}", value, low=1)
    if value > int(codes.max()) + 1:
        raise FedsimError(
            f"partition.{key}={value} is more than the {int(codes.max()) + 1} classes among the training rows; lower it"
        )


def require_users(scheme: str, columns: Columns) -> np.ndarray | Blocks:
    """(n,) users of the rows."""
    if columns.user is None:
        raise FedsimError(
            f"partition={scheme} needs natural users, and this dataset has none; set another partition, such as "
            "partition=dirichlet, or a dataset with users"
        )
    return columns.user
