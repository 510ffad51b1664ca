"""Imported by the fork server from which a grid's workers are forked."""

from fedsim.grids.forkserver import preload

preload("fedsim.grids.processes", "fedsim.data.population", "fedsim.training.lockstep")
