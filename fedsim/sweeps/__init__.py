"""Sweeps: many runs by one command, each a cell with a folder of its own; the same command goes on.

Importing it makes the resolvers known, which a launcher's worker process needs before it composes a cell.
"""

from fedsim import resolvers as resolvers
