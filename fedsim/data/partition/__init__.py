"""Who holds which rows: one function a scheme, `scheme(columns, num_clients, seed, **options) -> Partition`.

Laws that hold for every scheme: the same arguments give the same partition; no row lies with two clients; every client
holds at least one row; a client's rows ascend. Every row is used, except where a docstring says "drops rows".

All are numpy alone, and give row for row what the partitioners of flwr-datasets give for the same draws. Those are not
called: importing flwr_datasets takes seconds (it draws in datasets, pandas, matplotlib and scipy, whichever of its
submodules is asked for), and their loops in Python are not for a million clients.
"""

from fedsim.data.partition.by_class import distribution, pathological, shard
from fedsim.data.partition.by_label import dirichlet, inner_dirichlet
from fedsim.data.partition.by_order import continuous
from fedsim.data.partition.by_size import exponential, iid, linear, quantity, size, square
from fedsim.data.partition.by_user import grouped_natural, natural
from fedsim.data.partition.index import Columns, Partition

__all__ = [
    "Columns",
    "Partition",
    "continuous",
    "dirichlet",
    "distribution",
    "exponential",
    "grouped_natural",
    "iid",
    "inner_dirichlet",
    "linear",
    "natural",
    "pathological",
    "quantity",
    "shard",
    "size",
    "square",
]
