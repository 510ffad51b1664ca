"""Who holds which rows: one function a scheme, `scheme(columns, num_clients, seed, **options) -> Partition`.

Laws that hold for every scheme: the same arguments give the same partition; no row lies with two clients; every client
holds at least one row; a client's rows ascend. Every row is used, except where a docstring says "drops rows".

Most schemes are those of flwr-datasets. Rows are shuffled by the seed before they are dealt out (as Flower's
FederatedDataset does), so that the order of the source, often by class or by user, does not leak into a scheme.
`iid`, `natural` and `quantity` are numpy alone: importing flwr_datasets takes seconds (it draws in matplotlib, seaborn
and scipy, whichever of its submodules is asked for), and its loops in Python are not for a million clients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedsim.rng import SERVER, derive_seed, numpy_generator
from fedsim.types import FedsimError, MissingPackageError


class Columns(NamedTuple):
    """What a scheme may look at, one entry a training row.

    label: (n,) class labels, or real targets of a regression, or users where the task is next_token.
    user: (n,) natural user of each row, or None. time: (n,) arrival order, or None.
    """

    label: np.ndarray
    user: np.ndarray | None = None
    time: np.ndarray | None = None


class Partition(NamedTuple):
    """An index of rows by client. offsets: (num_clients + 1,) int64 from 0; rows: (assigned,) int64 row numbers."""

    offsets: np.ndarray
    rows: np.ndarray

    @property
    def num_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(num_clients,) rows of each client."""
        return np.diff(self.offsets)

    def client(self, client: int) -> np.ndarray:
        """Rows of one client, ascending: a view, so that asking costs nothing; IndexError for a client there is not."""
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} of {self.num_clients}")
        return self.rows[self.offsets[client] : self.offsets[client + 1]]


def iid(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Rows in random order, split evenly; sizes differ by one at most.

    The same rows as flwr-datasets' IidPartitioner deals out of the shuffled dataset; done here because theirs slices a
    dataset once a client, at a millisecond or more: some twenty minutes for 1,000,000 clients, against a second or two.
    """
    clients = _count("iid", columns, num_clients)
    order = numpy_generator(seed, 0, SERVER, "partition/order").permutation(len(columns.label)).astype(np.int64)
    size, longer = divmod(len(order), clients)
    cut = longer * (size + 1)
    # Two blocks of equal sizes: sorting along an axis is several times faster than one sort by (client, row).
    order[:cut].reshape(longer, size + 1).sort(axis=1)
    order[cut:].reshape(clients - longer, size).sort(axis=1)
    return Partition(_offsets(np.full(clients, size) + (np.arange(clients) < longer)), order)


def quantity(
    columns: Columns, num_clients: int | None, seed: int, *, alpha: float = 0.5, min_size: int = 1
) -> Partition:
    """Quantity skew: sizes from Dirichlet(alpha) over clients, labels IID (NIID-Bench, arXiv 2102.02079).

    Each client first gets min_size rows and the Dirichlet draw divides the others; NIID-Bench draws anew until the
    smallest client is large enough, which at many clients is never.
    """
    clients = _count("quantity", columns, num_clients)
    _positive("alpha", alpha)
    spare = _spare_rows(columns, clients, min_size)
    shares = numpy_generator(seed, 0, SERVER, "partition").dirichlet(np.full(clients, float(alpha)))
    cuts = np.minimum((np.cumsum(shares)[:-1] * spare).astype(np.int64), spare)
    sizes = min_size + np.diff(cuts, prepend=0, append=spare)
    order = numpy_generator(seed, 0, SERVER, "partition/order").permutation(len(columns.label))
    owner = np.empty(len(order), np.int64)
    owner[order] = np.repeat(np.arange(clients), sizes)
    return _by_owner(owner, clients)


def natural(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """A client is a user of the dataset, in the order of the users' numbers (flwr-datasets' NaturalIdPartitioner).

    num_clients None: every user with a row. Fewer than there are: as many users chosen by the seed; drops rows.
    """
    names, owner = np.unique(_users("natural", columns), return_inverse=True)
    return _choose("users", owner, len(names), num_clients, seed)


def grouped_natural(
    columns: Columns,
    num_clients: int | None,
    seed: int,
    *,
    group_size: int = 10,
    mode: str = "allow-smaller",
    sort_unique_ids: bool = False,
) -> Partition:
    """A client is a group of group_size users, by chance or, with sort_unique_ids, neighbours in number.

    mode: what becomes of a remainder of users: allow-smaller (one smaller group), allow-bigger (spread over the
    groups), drop-reminder (left out; drops rows), strict (refused). num_clients None: every group; fewer than there
    are: as many groups chosen by the seed; drops rows.
    """
    codes = np.unique(_users("grouped_natural", columns), return_inverse=True)[1]
    _one_of("mode", mode, ("allow-smaller", "allow-bigger", "drop-reminder", "strict"))
    _at_least_one("group_size", group_size)
    groups = _by_flwr(
        codes,
        seed,
        lambda flwr, _: flwr.GroupedNaturalIdPartitioner("value", group_size, mode, sort_unique_ids),
        f"partition.group_size={group_size} does not fit {int(codes.max()) + 1} users in "
        f"partition.mode={mode}; lower partition.group_size or set partition.mode=allow-smaller",
    )
    owner = np.full(len(codes), -1)
    owner[groups.rows] = np.repeat(np.arange(groups.num_clients), groups.sizes)
    return _choose("groups of users", owner, groups.num_clients, num_clients, seed)


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
    clients = _count("dirichlet", columns, num_clients)
    _positive("alpha", alpha)
    _spare_rows(columns, clients, min_size)
    return _by_flwr(
        _classes("dirichlet", columns),
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
        clients = _count("inner_dirichlet", columns, num_clients)
        sizes = [len(part) for part in np.array_split(np.arange(len(columns.label)), clients)]
    else:
        sizes = _sizes("inner_dirichlet", columns, num_clients, partition_sizes)
    _positive("alpha", alpha)
    return _by_flwr(
        _classes("inner_dirichlet", columns),
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
    clients = _count("pathological", columns, num_clients)
    codes = _classes("pathological", columns)
    _one_of("class_assignment_mode", class_assignment_mode, ("first-deterministic", "random", "deterministic"))
    _classes_per_client("num_classes_per_partition", num_classes_per_partition, codes)
    return _by_flwr(
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
    clients = _count("shard", columns, num_clients)
    for key, value in (("num_shards_per_partition", num_shards_per_partition), ("shard_size", shard_size)):
        if value is not None:
            _at_least_one(key, value)
    if num_shards_per_partition is None and shard_size is None:
        raise FedsimError(
            "partition=shard needs a number of shards or a size; set partition.num_shards_per_partition=2"
        )
    if clients * (num_shards_per_partition or 1) * (shard_size or 1) > len(columns.label):
        raise FedsimError(
            f"partition=shard asks for more shards than {len(columns.label)} training rows fill at {clients} clients; "
            "lower partition.num_shards_per_partition, partition.shard_size or population.num_clients"
        )
    return _by_flwr(
        np.unique(columns.label, return_inverse=True)[1],
        seed,
        lambda flwr, s: flwr.ShardPartitioner(
            clients, "value", num_shards_per_partition, shard_size, keep_incomplete_shard, shuffle=False, seed=s
        ),
        f"partition=shard leaves a client of {clients} without a shard; lower partition.shard_size or "
        "population.num_clients",
    )


def linear(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as client + 1, labels IID; the last client also gets what rounding leaves."""
    return _by_size_law("linear", "LinearPartitioner", columns, num_clients, seed)


def square(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as (client + 1) squared, labels IID; the last client also gets what rounding leaves."""
    return _by_size_law("square", "SquarePartitioner", columns, num_clients, seed)


def exponential(columns: Columns, num_clients: int | None, seed: int) -> Partition:
    """Sizes that grow as exp(client + 1), labels IID: for about ten clients, since the first must still get a row."""
    return _by_size_law("exponential", "ExponentialPartitioner", columns, num_clients, seed)


def size(
    columns: Columns, num_clients: int | None, seed: int, *, partition_sizes: Sequence[int] | None = None
) -> Partition:
    """Given sizes, labels IID. partition_sizes: rows of each client; drops the rows beyond their sum."""
    if partition_sizes is None:
        raise FedsimError("partition=size needs the rows of each client; set partition.partition_sizes=[...]")
    sizes = _sizes("size", columns, num_clients, partition_sizes)
    return _by_flwr(
        np.zeros(len(columns.label), np.int64),
        seed,
        lambda flwr, _: flwr.SizePartitioner(sizes),
        "partition.partition_sizes does not fit the training rows; lower them",
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
    clients = _count("distribution", columns, num_clients)
    codes = _classes("distribution", columns)
    classes = int(codes.max()) + 1
    _classes_per_client("num_unique_labels_per_partition", num_unique_labels_per_partition, codes)
    if clients % classes:
        raise FedsimError(
            f"partition=distribution needs a multiple of the {classes} classes as number of clients; "
            f"population.num_clients={clients} is none"
        )
    shape = (classes, num_unique_labels_per_partition * clients // classes)
    array = _shares(distribution_array, shape, rescale, sigma, seed)
    return _by_flwr(
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


def continuous(
    columns: Columns, num_clients: int | None, seed: int, *, partition_by: str = "label", strictness: float = 0.5
) -> Partition:
    """Rows sorted by strictness * z + (1 - strictness) * noise and split evenly; z is a standardized column.

    partition_by: label (also a real target) or time. strictness: 0 IID, 1 the column's own order.
    """
    clients = _count("continuous", columns, num_clients)
    _one_of("partition_by", partition_by, ("label", "time"))
    column = columns.label if partition_by == "label" else columns.time
    if column is None:
        raise FedsimError("the dataset's rows have no time; set partition.partition_by=label or choose another dataset")
    if not (_is_real(strictness) and 0 <= strictness <= 1):
        raise FedsimError(f"partition.strictness={strictness} is not between 0 and 1; set it to 0.5, say")
    return _by_flwr(
        _ranks(column, seed) if strictness in (0, 1) else _standardized(column, partition_by),
        seed,
        lambda flwr, s: flwr.ContinuousPartitioner(clients, "value", float(strictness), shuffle=False, seed=s),
        f"partition=continuous cannot order the rows by {partition_by}; set partition.strictness=0",
    )


def _ranks(column: np.ndarray, seed: int) -> np.ndarray:
    """(n,) distinct ranks, ties broken by the seed: for strictness 0 and 1, where nothing but the order can count.

    Sorted as they are, tied values would fall as the machine's unstable sort has it, and a constant divide by 0.
    """
    ties = numpy_generator(seed, 0, SERVER, "partition/ties").permutation(len(column))
    ranks = np.empty(len(column))
    ranks[np.lexsort((ties, column))] = np.arange(len(column))
    return ranks


def _standardized(column: np.ndarray, partition_by: str) -> np.ndarray:
    """(n,) float64 of zero mean and unit variance; here since flwr-datasets' float32 blurs times far from 0."""
    values = (column - column.min()).astype(np.float64)  # a difference, so that dates become numbers too
    spread = values.std()
    if not (np.isfinite(spread) and spread > 0):
        raise FedsimError(
            f"partition.partition_by={partition_by} has one value only, or some that are not finite, so that no order "
            "follows from it; set partition.strictness=0 or partition by another column"
        )
    return (values - values.mean()) / spread


def _by_size_law(scheme: str, partitioner: str, columns: Columns, num_clients: int | None, seed: int) -> Partition:
    clients = _count(scheme, columns, num_clients)
    return _by_flwr(
        np.zeros(len(columns.label), np.int64),
        seed,
        lambda flwr, _: getattr(flwr, partitioner)(clients),
        f"partition={scheme} leaves the smallest of {clients} clients without a row; lower population.num_clients",
    )


def _by_flwr(values: np.ndarray, seed: int, make: Callable[[Any, int], Any], failure: str) -> Partition:
    """Deal out shuffled rows by a partitioner of flwr-datasets.

    values: (n,) column "value" that it partitions by. make(flwr_datasets.partitioner, seed) builds it, told not to
    shuffle within clients, which costs time and would be undone by the sort. failure: the sentence for a refusal.
    """
    try:
        from flwr_datasets import partitioner as flwr  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingPackageError("this partition needs flwr-datasets; pip install flwr-datasets") from error
    order = numpy_generator(seed, 0, SERVER, "partition/order").permutation(len(values)).astype(np.int64)
    try:
        # What its warnings tell (retries, rows left out) is in the docstrings, and its overflows end in a refusal.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            partitioner = make(flwr, derive_seed(seed, 0, SERVER, "partition"))
            partitioner.dataset = _row_numbers(values[order], order)
            held = [partitioner.load_partition(client) for client in range(partitioner.num_partitions)]
    except ValueError as error:
        raise FedsimError(failure) from error
    sizes = np.array([len(rows) for rows in held])
    owner = np.full(len(values), -1)
    owner[np.concatenate(held)] = np.repeat(np.arange(len(held)), sizes)
    if sizes.min() == 0 or np.count_nonzero(owner >= 0) != sizes.sum():
        raise FedsimError(failure)
    return _by_owner(owner, len(held))


def _row_numbers(values: np.ndarray, rows: np.ndarray) -> Any:
    """A `datasets.Dataset` of one column, of which `select` gives row numbers, not a table.

    Partitioners ask a dataset for little: a column, its unique values, a sort, a selection. Arrow answers each a client
    at a time: 60,000 rows and 1,000 clients took 4 s that way, and a tenth of a second this way.
    """
    from datasets import Dataset  # type: ignore[import-untyped]

    class RowNumbers(Dataset):
        def __init__(self, values: np.ndarray, rows: np.ndarray) -> None:
            self._values, self._rows = values, rows

        @property
        def num_rows(self) -> int:
            return len(self._rows)

        def __len__(self) -> int:
            return len(self._rows)

        def __getitem__(self, key: Any) -> Any:
            return self._values

        def unique(self, column: str) -> list[Any]:
            unique, first = np.unique(self._values, return_index=True)
            return unique[np.argsort(first)].tolist()  # by first appearance, as Arrow has it

        def sort(self, *args: Any, **kwargs: Any) -> Any:
            order = np.argsort(self._values, kind="stable")
            return RowNumbers(self._values[order], self._rows[order])

        def select(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
            return self._rows[np.asarray(indices, np.int64)]

    return RowNumbers(values, rows)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def _by_owner(owner: np.ndarray, clients: int) -> Partition:
    """owner: (n,) the client of each row, -1 for a row that nobody holds."""
    held = np.flatnonzero(owner >= 0)
    owner = owner[held].astype(np.int32)
    return Partition(_offsets(np.bincount(owner, minlength=clients)), held[np.argsort(owner, kind="stable")])


def _choose(what: str, owner: np.ndarray, there: int, num_clients: int | None, seed: int) -> Partition:
    """All of the `there` owners, or num_clients of them by chance, kept in order. owner: (n,), -1 for a dropped row."""
    if num_clients is None or num_clients == there:
        return _by_owner(owner, there)
    _at_least_one("num_clients", num_clients, "population")
    if num_clients > there:
        raise FedsimError(
            f"population.num_clients={num_clients} is more than the {there} {what} that hold training rows; lower it, "
            "or set population.num_clients=null to take them all"
        )
    chosen = numpy_generator(seed, 0, SERVER, "partition/choice").choice(there, num_clients, replace=False)
    renamed = np.full(there + 1, -1)  # the last entry is where owner -1 looks
    renamed[np.sort(chosen)] = np.arange(num_clients)
    return _by_owner(renamed[owner], num_clients)


def _count(scheme: str, columns: Columns, num_clients: int | None) -> int:
    """The number of clients, once it is known to be between one and the number of rows."""
    if num_clients is None:
        raise FedsimError(
            f"partition={scheme} needs a number of clients, and population.num_clients is null; set it to 10, say"
        )
    _at_least_one("num_clients", num_clients, "population")
    if num_clients > len(columns.label):
        raise FedsimError(
            f"population.num_clients={num_clients} is more than the {len(columns.label)} training rows, and every "
            "client needs one; lower population.num_clients"
        )
    return num_clients


def _sizes(scheme: str, columns: Columns, num_clients: int | None, partition_sizes: Sequence[int]) -> list[int]:
    sizes = list(partition_sizes)
    if num_clients is not None and num_clients != len(sizes):
        raise FedsimError(
            f"partition.partition_sizes names {len(sizes)} clients and population.num_clients={num_clients}; make them "
            f"equal, or set population.num_clients=null"
        )
    if not sizes or any(not _is_whole(rows) or rows < 1 for rows in sizes):
        raise FedsimError(f"partition={scheme} needs whole numbers of rows from 1 up in partition.partition_sizes")
    if sum(sizes) > len(columns.label):
        raise FedsimError(
            f"partition.partition_sizes sums to {sum(sizes)} of {len(columns.label)} training rows; lower them"
        )
    return sizes


def _spare_rows(columns: Columns, clients: int, min_size: int) -> int:
    """Rows that are left when every client has min_size."""
    _at_least_one("min_size", min_size)
    spare = len(columns.label) - clients * min_size
    if spare < 0:
        raise FedsimError(
            f"partition.min_size={min_size} for each of {clients} clients is more than the {len(columns.label)} "
            "training rows; lower partition.min_size or population.num_clients"
        )
    return spare


def _classes(scheme: str, columns: Columns) -> np.ndarray:
    """(n,) labels numbered from 0 without gaps, in their order."""
    if columns.label.dtype.kind == "f":
        raise FedsimError(
            f"partition={scheme} needs class labels, and the targets are real numbers; choose partition=continuous, "
            "iid or quantity"
        )
    return np.unique(columns.label, return_inverse=True)[1]


def _classes_per_client(key: str, value: int, codes: np.ndarray) -> None:
    _at_least_one(key, value)
    if value > int(codes.max()) + 1:
        raise FedsimError(
            f"partition.{key}={value} is more than the {int(codes.max()) + 1} classes among the training rows; lower it"
        )


def _users(scheme: str, columns: Columns) -> np.ndarray:
    if columns.user is None:
        raise FedsimError(
            f"partition={scheme} needs natural users, and this dataset has none; set another partition, such as "
            "partition=dirichlet, or a dataset with users"
        )
    return columns.user


def _shares(
    given: Sequence[Sequence[float]] | None, shape: tuple[int, int], rescale: bool, sigma: float, seed: int
) -> np.ndarray:
    """(classes, columns) of `distribution`: the user's, checked, or a log-normal draw."""
    if given is None:
        _positive("sigma", sigma)
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


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(key: str, value: float) -> None:
    if not _is_real(value) or value <= 0:
        raise FedsimError(f"partition.{key}={value} is not a number above 0; set partition.{key}=0.5, for example")


def _at_least_one(key: str, value: int, part: str = "partition") -> None:
    if not _is_whole(value) or value < 1:
        raise FedsimError(f"{part}.{key}={value} is not a whole number from 1 up; set {part}.{key}=1 or more")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise FedsimError(f"partition.{key}={value} is unknown; set it to one of {', '.join(choices)}")
