"""The right to be forgotten: what clients left in a finished run is found, taken out, and measured.

Exactly, by training again without them from the last checkpoint that knew nothing of them; and approximately, by gradient
ascent on their examples. What the dataset's own preparation learnt from all rows (moments of `Standardize`, a vocabulary, how
rows were divided among clients) is part of the experiment and stays as it was.
"""

from fedsim.forgetting.report import Request, forget, sentences

__all__ = ["Request", "forget", "sentences"]
