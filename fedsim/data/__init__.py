"""Datasets, who holds which rows of them, and what is wrong with those rows."""
