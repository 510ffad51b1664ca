"""What an export means for the privacy that its run promised, in sentences."""

from __future__ import annotations

from fedsim.results.files import read_json
from fedsim.results.privacy_words import Promise
from fedsim.serving.rows import Rows
from fedsim.serving.source import Trained


def sentences(run: Trained, calibration: Rows) -> list[str]:
    """What was looked at, what still holds, and what the files hold beside the model."""
    why = f"{calibration.why[0].upper()}{calibration.why[1:]}."
    if not run.private:
        return [why]
    audited = run.folder / "audit.json"
    promise = Promise(run.privacy, read_json(audited, str(run.folder)) if audited.is_file() else {})
    held = (
        f"What the run promises of its model, {promise.in_brief()}, it promises of these files: they are made of the model alone."
        if promise.in_brief()
        else "The run had a privacy mechanism but states no ε, and so nothing is promised of these files."
    )
    measured = any(True for _ in run.population.preprocess.buffers())
    moments = (
        "The preprocessing's own numbers (means and deviations of inputs) are in the files as the dataset gives them; if it "
        "measured them on training rows, no mechanism protected that."
    )
    return [why, held, *([moments] if measured else [])]
