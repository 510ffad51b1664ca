"""8,993 households of the San Francisco bay: 13 answers to a survey, and income in nine brackets; in R's kernlab.

From Hastie, Tibshirani and Friedman, The Elements of Statistical Learning (marketing data). Every answer is a choice
among a few; each choice is a column of zeros and ones, and "no answer" is a choice of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.sources._rdata import check_table, find_r_file, read_r_table, tabular

ABOUT = "8,993 households by 13 survey answers, income in 9 brackets"
HOW = "apt-get install r-cran-kernlab"
FILE = "income.rda"
SHA256 = "ccf6a9ec8aea7d667bd74e16567cc34db93ff31eca62674ce3954ec04a12489f"  # of the values


def find(root: str | None = None) -> Path | None:
    """The R file: in `root`, among fetched data, or in R's kernlab."""
    return find_r_file("income", "kernlab", FILE, root)


def load(root: str | None = None) -> Dataset:
    """Choices x (n, f) uint8 and brackets y (n,) int64 from the lowest up, with a fixed stratified test of a fifth."""
    path = find(root)
    table = read_r_table("income", path, FILE, root, "income", HOW)
    bracket = table["INCOME"].cat
    y = bracket.codes.to_numpy(np.int64)
    x = np.concatenate([_choices(table[question].cat) for question in table.columns if question != "INCOME"], axis=1)
    check_table("income", x, y, SHA256, path or Path(FILE), HOW)
    return tabular("income", x, y, tuple(bracket.categories), str(path))


def _choices(answers: Any) -> np.ndarray:
    codes = answers.codes.to_numpy()  # -1 for no answer
    options = range(-1 if (codes < 0).any() else 0, len(answers.categories))
    return (codes[:, None] == np.asarray(options)).astype(np.uint8)
