"""The exact sensitivity of tree aggregation with restarts: what one client's participations can do to all nodes together.

With c(node) of a client's rounds below each node, all of norm 1 and one direction, the squared distance is the sum of c^2
over the nodes that are released. Trees are joined from blocks, and a block needs to know of its neighbours no more than
how far its own first and last participations are from its ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MOST_WORK = 5e8
"""Of this, in rounds^2 x separation: a second or two; beyond, callers take the upper bound of `sensitivity.py`."""


class Block(NamedTuple):
    """Some rounds in a row. squares: (participations, separation, separation): [m - 1, a, e] is the largest sum of squares
    with m participations, none in the first a rounds nor in the last e; -inf where m have no room."""

    rounds: int
    squares: np.ndarray


def forest_sensitivities(rounds: int, restart: int, participations: int, separation: int) -> np.ndarray:
    """(participations,) the most that a client of unit updates moves the trees by at most 1, 2, ... participations.

    rounds: of the run, a new tree every `restart` of them; the client's are at least `separation` apart.
    """
    squares = np.full((1, separation, separation), -np.inf)
    squares[0, 0, 0] = 0
    open_blocks = [Block(1, squares)]  # of 1, 2, 4, ... rounds, without a node of their own
    while 2 * open_blocks[-1].rounds <= min(restart, rounds):
        half = open_blocks[-1]
        open_blocks.append(join(with_node(half), half, participations))
    run: Block | None = None
    whole, rest = divmod(rounds, restart)
    for size in [restart] * whole + [rest]:
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                block = with_node(open_blocks[level])
                run = block if run is None else join(run, block, participations)
    assert run is not None
    best = np.maximum.accumulate(run.squares[:, 0, 0])
    return np.sqrt(np.pad(best, (0, participations - len(best)), mode="edge"))


def with_node(block: Block) -> Block:
    """The same rounds below a node that is released."""
    counts = np.arange(1, len(block.squares) + 1)
    return Block(block.rounds, block.squares + counts[:, None, None] ** 2)


def join(left: Block, right: Block, participations: int) -> Block:
    """Both, one after the other, with at most so many participations (and no more than have room)."""
    separation = left.squares.shape[1]
    rounds = left.rounds + right.rounds
    most = min(participations, -(-rounds // separation))
    squares = np.full((most + len(right.squares) + 1, separation, separation), -np.inf)
    ends = np.arange(separation)
    alone = left.squares[:, :, np.maximum(ends - right.rounds, 0)]
    squares[: len(alone)] = alone
    alone = right.squares[:, np.maximum(ends - left.rounds, 0), :]
    np.maximum(squares[: len(alone)], alone, out=squares[: len(alone)])
    for m, table in enumerate(left.squares[:most], start=1):
        into = squares[m : m + len(right.squares)]
        for free in ends:  # rounds at the end of the left block; the right one's first leave the rest of the gap
            if table[0, free] == -np.inf:
                break
            both = table[None, :, free, None] + right.squares[:, separation - 1 - free, None, :]
            np.maximum(into, both, out=into)
    return Block(rounds, squares[:most])
