"""Clients' data that are ready for the model, kept from round to round: the newest used, up to so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fedsim.types import ClientData


class Prepared:
    """A cache by client. Nothing that it gives may be changed in place."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self._bytes = most_bytes, 0
        self._kept: OrderedDict[int, ClientData] = OrderedDict()

    def get(self, client: int, make: Callable[[], ClientData]) -> ClientData:
        """The client's data, made where they are not kept."""
        if not self.most_bytes:
            return make()
        if client in self._kept:
            self._kept.move_to_end(client)
            return self._kept[client]
        data = make()
        self._kept[client] = data
        self._bytes += data.x.nbytes + data.y.nbytes
        while self._bytes > self.most_bytes and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.x.nbytes + oldest.y.nbytes
        return data

    def __reduce__(self) -> tuple[type[Prepared], tuple[int]]:
        """Another process begins without any."""
        return Prepared, (self.most_bytes,)
