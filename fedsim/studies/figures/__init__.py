"""The figures of a study, each a function from a study to a figure, or to None where there is nothing to draw."""
