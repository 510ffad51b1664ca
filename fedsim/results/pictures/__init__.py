"""The pictures of a run: each a function from a run to a figure, or to None where there is nothing to draw."""
