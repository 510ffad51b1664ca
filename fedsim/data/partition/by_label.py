"""Schemes that decide which classes a client holds; all of them flwr-datasets' own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.checks import require_choice, require_int, require_number
from fedsim.data.partition.arguments import (
    class_codes,
    require_classes_per_client,
    require_clients,
    require_sizes,
    spare_rows,
)
from fedsim.data.partition.flower import deal
from fedsim.data.partition.index import Columns, Partition
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError


def dirichlet(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    alpha: float = 0.5,
    min_size: int = 1,
    self_balancing: bool = False,
) -> Partition:
    """Label skew: each class is divided by its own Dirichlet(alpha) draw over clients (arXiv 1905.12022).

    alpha: to 0 a class lies with few clients, to infinity IID. min_size: fewest rows of a client; drawn anew up to
    eleven times to reach it. self_balancing: a client above the average size gets no more of later classes.
    """
    clients = require_clients("dirichlet", columns, num_clients)
    require_number("partition.alpha", alpha, above=0)
    spare_rows(columns, clients, min_size)
    return deal(
        class_codes("dirichlet", columns),
        seed,
        lambda flwr, s: flwr.DirichletPartitioner(
            clients, "value", float(alpha), min_size, self_balancing, shuffle=False, seed=s
        ),
        f"partition=dirichlet drew no split that leaves each of {clients} clients {min_size} row(s) at "
        f"alpha={alpha}; raise partition.alpha or lower partition.min_size or population.num_clients",
    )


def inner_dirichlet(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    alpha: float = 0.5,
    partition_sizes: Sequence[int] | None = None,
) -> Partition:
    """Label skew at given sizes: a client's mix of classes is a Dirichlet(alpha) draw over classes (arXiv 2111.04263).

    partition_sizes: rows of each client, None for equal ones; drops rows where they sum to less than the rows there
    are. Slow: flwr-datasets deals out one row at a time, at a cost that grows with rows times clients.
    """
    if partition_sizes is None:
        clients = require_clients("inner_dirichlet", columns, num_clients)
        sizes = [len(part) for part in np.array_split(np.arange(len(columns.label)), clients)]
    else:
        sizes = require_sizes("inner_dirichlet", columns, num_clients, partition_sizes)
    require_number("partition.alpha", alpha, above=0)
    return deal(
        class_codes("inner_dirichlet", columns),
        seed,
        lambda flwr, s: flwr.InnerDirichletPartitioner(sizes, "value", float(alpha), shuffle=False, seed=s),
        f"partition=inner_dirichlet ran out of the classes that clients want at alpha={alpha}; raise partition.alpha",
    )


def pathological(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    num_classes_per_partition: int = 2,
    class_assignment_mode: str = "first-deterministic",
) -> Partition:
    """Each client holds exactly num_classes_per_partition classes (NIID-Bench, arXiv 2102.02079).

    class_assignment_mode: first-deterministic (the first class in turn, the others by chance; the paper's), random,
    deterministic (neighbouring classes in turn). Drops the rows of a class that no client was given.
    """
    clients = require_clients("pathological", columns, num_clients)
    codes = class_codes("pathological", columns)
    modes = ("first-deterministic", "random", "deterministic")
    require_choice("partition.class_assignment_mode", class_assignment_mode, modes)
    require_classes_per_client("num_classes_per_partition", num_classes_per_partition, codes)
    return deal(
        codes,
        seed,
        lambda flwr, s: flwr.PathologicalPartitioner(
            clients, "value", num_classes_per_partition, class_assignment_mode, shuffle=False, seed=s
        ),
        f"partition=pathological gives some class to more of the {clients} clients than it has rows; lower "
        "population.num_clients or partition.num_classes_per_partition",
    )


def shard(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    num_shards_per_partition: int | None = 2,
    shard_size: int | None = None,
    keep_incomplete_shard: bool = False,
) -> Partition:
    """Rows sorted by label, cut into shards, and the same number of shards to each client (McMahan, arXiv 1602.05629).

    shard_size None: rows / (clients * shards a client), rounded down. num_shards_per_partition None: every shard of
    shard_size is dealt out. Drops rows: what is left over by rounding or by fewer shards than there are; the last,
    incomplete shard only where keep_incomplete_shard is false.
    """
    clients = require_clients("shard", columns, num_clients)
    for key, value in (("num_shards_per_partition", num_shards_per_partition), ("shard_size", shard_size)):
        if value is not None:
            require_int(f"partition.{key}", value, low=1)
    if num_shards_per_partition is None and shard_size is None:
        raise FedsimError(
            "partition=shard needs a number of shards or a size; set partition.num_shards_per_partition=2"
        )
    if clients * (num_shards_per_partition or 1) * (shard_size or 1) > len(columns.label):
        raise FedsimError(
            f"partition=shard asks for more shards than {len(columns.label)} training rows fill at {clients} clients; "
            "lower partition.num_shards_per_partition, partition.shard_size or population.num_clients"
        )
    return deal(
        np.unique(columns.label, return_inverse=True)[1],
        seed,
        lambda flwr, s: flwr.ShardPartitioner(
            clients, "value", num_shards_per_partition, shard_size, keep_incomplete_shard, shuffle=False, seed=s
        ),
        f"partition=shard leaves a client of {clients} without a shard; lower partition.shard_size or "
        "population.num_clients",
    )


def distribution(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    distribution_array: Sequence[Sequence[float]] | None = None,
    num_unique_labels_per_partition: int = 2,
    preassigned_num_samples_per_label: int = 5,
    rescale: bool = True,
    sigma: float = 2.0,
) -> Partition:
    """Neighbouring classes to each client, in amounts from a given law (FedProx's MNIST split, arXiv 1812.06127).

    distribution_array: (classes, num_unique_labels_per_partition * clients / classes) shares of each class, one column
    a client that holds it; None draws them from LogNormal(0, sigma), the paper's power law. rescale: shares are of the
    class, after preassigned_num_samples_per_label rows to each client for each of its classes; false: they are row
    counts, and rows beyond them are dropped. The number of clients has to be a multiple of the number of classes.
    """
    clients = require_clients("distribution", columns, num_clients)
    codes = class_codes("distribution", columns)
    classes = int(codes.max()) + 1
    require_classes_per_client("num_unique_labels_per_partition", num_unique_labels_per_partition, codes)
    if clients % classes:
        raise FedsimError(
            f"partition=distribution needs a multiple of the {classes} classes as number of clients; "
            f"population.num_clients={clients} is none"
        )
    shape = (classes, num_unique_labels_per_partition * clients // classes)
    array = _shares(distribution_array, shape, rescale, sigma, seed)
    return deal(
        codes,
        seed,
        lambda flwr, s: flwr.DistributionPartitioner(
            array,
            clients,
            num_unique_labels_per_partition,
            "value",
            preassigned_num_samples_per_label,
            rescale,
            shuffle=False,
            seed=s,
        ),
        "partition=distribution asks for more rows of a class than there are, or leaves a client without any; lower "
        "population.num_clients, partition.preassigned_num_samples_per_label or partition.distribution_array",
    )


def _shares(
    given: Sequence[Sequence[float]] | None, shape: tuple[int, int], rescale: bool, sigma: float, seed: int
) -> np.ndarray:
    """(classes, columns) of `distribution`: the user's, checked, or a log-normal draw."""
    if given is None:
        require_number("partition.sigma", sigma, above=0)
        if not rescale:
            raise FedsimError("partition.rescale=false needs row counts; set partition.distribution_array as well")
        return numpy_generator(seed, 0, SERVER, "partition/distribution").lognormal(0.0, sigma, shape)
    lengths = {len(row) for row in given}
    if len(given) != shape[0] or lengths != {shape[1]}:
        raise FedsimError(
            f"partition.distribution_array has {len(given)} rows of {sorted(lengths)} numbers; give {shape[0]} rows "
            f"(the classes) of {shape[1]} (the clients that hold a class)"
        )
    array = np.array([[float(share) for share in row] for row in given])
    if not (np.isfinite(array).all() and (array >= 0).all() and (array.sum(1) > 0).all()):
        raise FedsimError(
            "partition.distribution_array has a negative or infinite share, or a class without any; give shares from 0 "
            "up"
        )
    return array
