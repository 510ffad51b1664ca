"""Pictures as files: what matplotlib would show, for less work."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fake_run import AUDIT, LEDGER, make_private, make_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from fedsim.results.finished import read_run
from fedsim.results.pictures.plain import lay_out
from fedsim.results.pictures.style import STYLE, drawing, figure_of, save
from fedsim.results.plots import DRAWINGS

RUNS: dict[str, Callable[[Path], Path]] = {
    "bubbles": lambda folder: make_run(folder, clients=40, failing=0.2),
    "heat map": lambda folder: make_run(folder, clients=300, every=5),
    "private": lambda folder: make_private(make_run(folder), LEDGER, AUDIT, alike=False),
}


def drawn(name: str, folder: Path) -> Iterator[tuple[Figure, Figure]]:
    """Each picture of the run, made twice."""
    run = read_run(RUNS[name](folder / "run"))
    for draw in DRAWINGS.values():
        with drawing():
            ours, theirs = draw(run), draw(run)
            if ours is not None and theirs is not None:
                yield ours, theirs


@pytest.mark.parametrize("name", RUNS)
def test_a_picture_that_is_not_plain_has_the_pixels_of_savefig(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.results.pictures.plain.lay_out", lambda *words: False)
    stream, count = io.BytesIO(), 0
    for ours, theirs in drawn(name, tmp_path):
        save(ours, tmp_path / "ours.png")
        stream.seek(0)
        theirs.savefig(stream, format="png")
        with Image.open(tmp_path / "ours.png") as found, Image.open(stream) as expected:
            assert found.mode == "RGB" and found.info["dpi"] == expected.info["dpi"]
            assert np.array_equal(np.asarray(found), np.asarray(expected.convert("RGB")))
        count += 1
    assert count >= 4


def box(text: Text) -> Bbox:
    return text.get_window_extent()


@pytest.mark.parametrize("name", RUNS)
def test_plain_panels_have_the_ticks_of_matplotlib_and_room_for_all_words(name: str, tmp_path: Path) -> None:
    plain = 0
    for ours, theirs in drawn(name, tmp_path):
        ticks = [axes.xaxis.get_major_locator() for axes in ours.axes]
        save(ours, tmp_path / "ours.png")
        if [axes.xaxis.get_major_locator() for axes in ours.axes] == ticks:
            continue  # it is not plain
        plain += 1
        theirs.savefig(io.BytesIO(), format="png")
        expected = Counter(
            label.get_text()
            for axes in theirs.axes
            for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim())))
            for label, place in zip(axis.get_ticklabels(), axis.get_majorticklocs(), strict=True)
            if low <= place <= high
        )
        words = [text for text in ours.texts if text is not ours._suptitle]  # type: ignore[attr-defined]
        assert Counter(text.get_text() for text in words) == expected
        labels = [axis.label for axes in ours.axes for axis in (axes.xaxis, axes.yaxis) if axis.label.get_text()]
        for text in [*words, *labels]:
            (left, bottom), (right, top) = box(text).min, box(text).max
            assert left >= -1 and bottom >= -1 and right <= ours.bbox.width + 1 and top <= ours.bbox.height + 1
            assert not any(box(text).overlaps(box(other)) for other in words if other is not text)
        for mine, other in zip(ours.axes, theirs.axes, strict=True):  # in the same place, but for a few pixels
            np.testing.assert_allclose(mine.get_position().bounds, other.get_position().bounds, atol=0.03)
    assert plain >= 2


@pytest.mark.parametrize(
    "change", ["log", "a text", "an aspect", "labels", "a title", "an outer legend", "many digits"]
)
def test_what_is_not_plain_is_left_to_matplotlib(change: str) -> None:
    with drawing():
        figure, (axes, _) = figure_of("a title", 2)
        axes.plot([0.0, 1.0], [2.0, 3.0], label="a line")
        changes: dict[str, Callable[[], object]] = {
            "log": lambda: axes.set_yscale("log"),
            "a text": lambda: axes.text(0.5, 2.5, "here"),
            "an aspect": lambda: axes.set_aspect("equal"),
            "labels": lambda: axes.set_xticks([0, 1], ["no", "yes"]),
            "a title": lambda: axes.set_title("of a panel"),
            "an outer legend": lambda: axes.legend(bbox_to_anchor=(1.0, 1.0)),
            "many digits": lambda: axes.set_ylim(1e9, 1e9 + 1e-3),
        }
        renderer = FigureCanvasAgg(figure).get_renderer()
        changes[change]()
        assert not lay_out(figure, renderer, None)
        assert not figure.texts[1:] and not axes.collections


def test_drawing_has_a_style_of_its_own_and_leaves_the_users() -> None:
    with matplotlib.rc_context({"font.size": 31, "lines.linewidth": 7}):
        with drawing():
            assert matplotlib.rcParams["font.size"] == STYLE["font.size"]
        assert matplotlib.rcParams["font.size"] == 31


def test_what_lives_is_set_aside_while_figures_are_made() -> None:
    gc.unfreeze()
    with drawing():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        with drawing():
            pass
        assert gc.get_freeze_count() > 1000  # it was somebody else's doing
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("module", ["fedsim.grids.preloaded", "fedsim.sweeps.preloaded"])
def test_what_the_fork_server_imports_is_never_looked_through_for_garbage(module: str) -> None:
    code = f"import {module}, gc; print(gc.isenabled(), gc.get_freeze_count() > 100_000, gc.get_count()[2] < 5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3
