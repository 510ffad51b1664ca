"""Who holds which rows: one function a scheme, `scheme(columns, num_clients, seed, **options) -> Partition`.

Laws that hold for every scheme: the same arguments give the same partition; no row lies with two clients; every client
holds at least one row; a client's rows ascend. Every row is used, except where a docstring says "drops rows".

`iid`, `natural` and `quantity` are numpy alone: importing flwr_datasets takes seconds (it draws in matplotlib, seaborn
and scipy, whichever of its submodules is asked for), and its loops in Python are not for a million clients. The other
schemes are those of flwr-datasets, imported when one of them is called.
"""

from fedsim.data.partition.by_label import dirichlet, distribution, inner_dirichlet, pathological, shard
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
