"""UCI spambase: 4,601 e-mails by the frequency of 57 words and signs, spam or not; in R's kernlab."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.sources._rdata import check_table, find_r_file, read_r_table, tabular

ABOUT = "4,601 e-mails by 57 word counts, spam or not"
HOW = "apt-get install r-cran-kernlab"
FILE = "spam.rda"
SHA256 = "ac5f1044ec0e8fcde656ad01b11dcb23b294c852a64c1a0ca68be767a5e1e790"  # of the values


def find(root: str | None = None) -> Path | None:
    """The R file: in `root`, among fetched data, or in R's kernlab."""
    return find_r_file("spam", "kernlab", FILE, root)


def load(root: str | None = None) -> Dataset:
    """Measures x (n, f) float32 and labels y (n,) int64, with a fixed stratified test of a fifth."""
    path = find(root)
    table = read_r_table("spam", path, FILE, root, "spam", HOW)
    label = table["type"].cat
    x, y = table.drop(columns="type").to_numpy(np.float64), label.codes.to_numpy(np.int64)
    check_table("spam", x, y, SHA256, path or Path(FILE), HOW)
    return tabular("spam", x.astype(np.float32), y, tuple(label.categories), str(path))
