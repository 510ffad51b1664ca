"""Schemes that give each client some classes and no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.checks import require_choice, require_int, require_number
from fedsim.data.partition.arguments import class_codes, require_classes_per_client, require_clients
from fedsim.data.partition.index import Columns, Partition
from fedsim.data.partition.shuffled import NOBODY, dealt, draws, even_sizes, shuffled_rows
from fedsim.rng import SERVER, numpy_generator
from fedsim.types import FedsimError


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
    failure = (
        f"partition=pathological gives some class to more of the {clients} clients than it has rows; lower "
        "population.num_clients or partition.num_classes_per_partition"
    )
    order = shuffled_rows(len(codes), seed)
    codes = codes[order]
    classes = int(codes.max()) + 1
    held = np.zeros((clients, classes), bool)
    for client, chosen in enumerate(
        _classes_of(clients, classes, num_classes_per_partition, class_assignment_mode, draws(seed))
    ):
        held[client, chosen] = True
    owner = np.full(len(codes), NOBODY)
    for code in range(classes):
        places, holders = np.flatnonzero(codes == code), np.flatnonzero(held[:, code])
        if len(holders) > len(places):
            raise FedsimError(failure)
        if len(holders):
            owner[places] = holders.repeat(even_sizes(len(places), len(holders)))
    return dealt(order, owner, clients, failure)


def _classes_of(clients: int, classes: int, each: int, mode: str, random: np.random.Generator) -> list[list[int]]:
    """The `each` different classes of each client."""
    if mode == "deterministic":
        return [[(client + i) % classes for i in range(each)] for client in range(clients)]
    if mode == "random":
        return [random.choice(classes, each, replace=False).tolist() for _ in range(clients)]
    chosen: list[list[int]] = []
    for client in range(clients):
        own = [client % classes]
        while len(own) < each:
            if (drawn := int(random.integers(classes))) not in own:
                own.append(drawn)
        chosen.append(own)
    return chosen


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
    clients, rows = require_clients("shard", columns, num_clients), len(columns.label)
    for key, value in (("num_shards_per_partition", num_shards_per_partition), ("shard_size", shard_size)):
        if value is not None:
            require_int(f"partition.{key}", value, low=1)
    if num_shards_per_partition is None and shard_size is None:
        raise FedsimError(
            "partition=shard needs a number of shards or a size; set partition.num_shards_per_partition=2"
        )
    needed = clients * (num_shards_per_partition or 1) * (shard_size or 1)
    if shard_size is not None and num_shards_per_partition is None and keep_incomplete_shard:
        needed -= shard_size - 1  # one row makes the last shard
    if needed > rows:
        raise FedsimError(
            f"partition=shard asks for more shards than {rows} training rows fill at {clients} clients; "
            "lower partition.num_shards_per_partition, partition.shard_size or population.num_clients"
        )
    # With both numbers given, flwr-datasets never deals the incomplete shard out.
    incomplete = keep_incomplete_shard and (shard_size is None or num_shards_per_partition is None)
    size = shard_size or rows // (clients * (num_shards_per_partition or 1))
    shards = -(-rows // size) if incomplete else rows // size
    given = np.full(clients, num_shards_per_partition) if num_shards_per_partition else even_sizes(shards, clients)
    owner_of_shard = np.full(shards + 1, NOBODY)  # the last is what no whole shard is left for
    owner_of_shard[draws(seed).permutation(shards)[: given.sum()]] = np.arange(clients).repeat(given)
    order = shuffled_rows(rows, seed)
    codes = np.unique(columns.label, return_inverse=True)[1]
    owner = np.empty(rows, np.int64)
    owner[np.argsort(codes[order], kind="stable")] = owner_of_shard[np.minimum(np.arange(rows) // size, shards)]
    return dealt(
        order,
        owner,
        clients,
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
    classes, each = int(codes.max()) + 1, num_unique_labels_per_partition
    require_classes_per_client("num_unique_labels_per_partition", each, codes)
    require_int("partition.preassigned_num_samples_per_label", preassigned_num_samples_per_label, low=0)
    if clients % classes:
        raise FedsimError(
            f"partition=distribution needs a multiple of the {classes} classes as number of clients; "
            f"population.num_clients={clients} is none"
        )
    failure = (
        "partition=distribution asks for more rows of a class than there are, or leaves a client without any; lower "
        "population.num_clients, partition.preassigned_num_samples_per_label or partition.distribution_array"
    )
    shares = _shares(distribution_array, (classes, each * clients // classes), rescale, sigma, seed)
    sizes = _amounts(shares, np.bincount(codes), preassigned_num_samples_per_label, rescale)
    if sizes is None:
        raise FedsimError(failure)
    order, random = shuffled_rows(len(codes), seed), draws(seed)
    codes = codes[order]
    owner = np.full(len(codes), NOBODY)
    for code, amounts in enumerate(sizes):
        places = np.flatnonzero(codes == code)
        holders = np.flatnonzero((code - np.arange(clients)) % classes < each)
        owner[places[: amounts.sum()]] = holders.repeat(amounts)
        if rescale:  # what rounding leaves goes to one of the class's clients
            owner[places[amounts.sum() :]] = holders[random.integers(len(holders))]
    return dealt(order, owner, clients, failure)


def _amounts(shares: np.ndarray, rows_of_class: np.ndarray, first: int, rescale: bool) -> np.ndarray | None:
    """(classes, columns) rows that each client of a class gets of it; None where there are too few."""
    if not rescale:
        return None if (shares.sum(1) > rows_of_class).any() else shares.astype(np.int64)
    columns = shares.shape[1]
    free = rows_of_class - first * columns
    if (free < columns).any():
        return None
    return np.floor(shares / shares.sum(1, keepdims=True) * free[:, None].astype(float)).astype(np.int64) + first


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
