"""UCI letter recognition (Frey and Slate 1991): 20,000 printed letters by 16 measures of shape; in R's mlbench."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.sources._rdata import check_table, find_r_file, read_r_table, tabular

ABOUT = "20,000 printed letters by 16 measures, 26 classes"
HOW = "apt-get install r-cran-mlbench"
FILE = "LetterRecognition.rda"
SHA256 = "19d01463ecc357bb375d9a1fcffee59e2009c3421aa3960accba71db597f0260"  # of the values


def find(root: str | None = None) -> Path | None:
    """The R file: in `root`, among fetched data, or in R's mlbench."""
    return find_r_file("letters", "mlbench", FILE, root)


def load(root: str | None = None) -> Dataset:
    """Measures x (n, f) float32 and labels y (n,) int64, with a fixed stratified test of a fifth."""
    path = find(root)
    table = read_r_table("letters", path, FILE, root, "LetterRecognition", HOW)
    label = table["lettr"].cat
    x, y = table.drop(columns="lettr").to_numpy(np.float64), label.codes.to_numpy(np.int64)
    check_table("letters", x, y, SHA256, path or Path(FILE), HOW)
    return tabular("letters", x.astype(np.float32), y, tuple(label.categories), str(path))
