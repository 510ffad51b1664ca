"""Imported by the fork server from which processes that run cells are forked: what cells are made of, and finished with."""

from fedsim.grids.forkserver import preload

preload(
    *("fedsim.sweeps.alongside", "fedsim.results.plots", "fedsim.results.report", "matplotlib.backends.backend_agg"),
    *("matplotlib.figure", "jinja2", "pandas", "pyarrow.dataset", "pyarrow.parquet", "safetensors.torch"),
)
