"""Pages as a person meets them: opened from disk in a real, headless Chromium, which must ask for nothing else.

Screenshots are checked for not being blank, and kept in $FEDSIM_SCREENSHOTS, where that is set, to be looked at.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_run import make_run, pixels

from fedsim.explore import main as explore
from fedsim.results.report import write_report
from fedsim.rng import numpy_generator

pytestmark = pytest.mark.browser

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
ODD = "<img src=x onerror=hacked=1>"
"""A folder's name, an experiment's and a setting's."""

EPSILONS, CLIENTS, SEEDS = (1.0, 2.0, 4.0, 8.0, None), (10, 100, 1000), (0, 1, 2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as the machine has it; the tests are skipped where it, or Playwright, is not there."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("there is no Chromium; apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found[0], args=FLAGS)
        yield launched
        launched.close()


class Tab:
    """A page, and what it complained of or asked for beyond the disk."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.wrong: list[str] = []
        self.watch(self.page)
        context.on("page", self.watch)

    def watch(self, page: Any) -> None:
        page.on("console", lambda message: self._note(message.type in ("error", "warning"), f"console: {message.text}"))
        page.on("pageerror", lambda error: self._note(True, f"error: {error}"))
        page.on("request", lambda request: self._note(not request.url.startswith(("file:", "data:")), request.url))
        page.on("requestfailed", lambda request: self._note(True, f"failed: {request.url}"))
        page.on("dialog", lambda dialog: self._note(True, f"dialog: {dialog.message}"))

    def _note(self, bad: bool, what: str) -> None:
        if bad:
            self.wrong.append(what)

    def open(self, path: Path, state: str = "") -> Any:
        self.page.goto(path.resolve().as_uri() + state)
        return self.page

    def picture(self, name: str, selector: str = "") -> np.ndarray:
        """(height, width, channels) of 0..1: of the whole page, or of what the selector finds."""
        png = self.page.locator(selector).screenshot() if selector else self.page.screenshot(full_page=True)
        if folder := os.environ.get("FEDSIM_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(png)
        return pixels(png)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tab(browser: Any, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab that fails its test for any error, any warning and any request that leaves the disk."""
    scheme = request.getfixturevalue("scheme") if "scheme" in request.fixturenames else "light"
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(15_000)
    opened = Tab(context)
    yield opened
    context.close()
    assert opened.wrong == []


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over clients, epsilon and seeds: 45 runs, one of which has its real report, and half a run."""
    folder = tmp_path_factory.mktemp("studies") / "privacy"
    cells = list(itertools.product(CLIENTS, EPSILONS, SEEDS))
    for number, (clients, epsilon, seed) in enumerate(cells):
        name = f"clients={clients},epsilon={epsilon or 'none'},seed={seed}"
        make_cell(folder / (ODD if number == 0 else name), clients, epsilon, seed)
    write_report(folder / "clients=10,epsilon=1.0,seed=1")
    (folder / "half" / ".hydra").mkdir(parents=True)
    return folder


def make_cell(folder: Path, clients: int, epsilon: float | None, seed: int) -> None:
    random = numpy_generator(seed, clients, int(epsilon or 0), "fake cell")
    best = 0.95 - (0.5 / (epsilon * np.log10(clients) ** 2) if epsilon else 0) + random.normal(0, 0.01)
    at = np.arange(1, 61)
    curve = best - (best - 0.1) * np.exp(-at / 9) + random.normal(0, 0.008, 60)
    mechanism = ODD if epsilon == 8 else "gaussian" if epsilon else None
    privacy = {"_target_": "fedsim.privacy.UserPrivacy", "epsilon": epsilon, "mechanism": mechanism}
    config = {
        "seed": seed,
        "population": {"num_clients": clients},
        "privacy": privacy if epsilon else {"_target_": "fedsim.privacy.NoPrivacy"},
    }
    summary = {"seed": seed, "num_clients": clients, "accuracy": curve[-1], "epsilon": epsilon and 0.99001 * epsilon}
    command = f"python -m fedsim population.num_clients={clients} privacy.epsilon={epsilon} seed={seed}"
    told = {"experiment": "privacy_vs_clients", "config": config, "command": command, "bytes_up": 1000 * clients}
    make_run(folder, clients=min(clients, 10), rounds=60, **told, **summary)
    table = pq.read_table(folder / "rounds.parquet").drop_columns(["accuracy", "loss"])
    table = table.append_column("accuracy", pa.array(curve)).append_column("loss", pa.array(-np.log(curve)))
    pq.write_table(table, folder / "rounds.parquet")
    (folder / "report.html").write_text(f"<!doctype html><title>report of {clients} {epsilon} {seed}</title>")


@pytest.fixture(scope="module")
def explored(study: Path) -> Path:
    explore([str(study)])
    return study / "explore.html"


def shown(page: Any) -> str:
    """What the page says of how many runs it shows; read after the change that was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return str(page.locator("#counts").inner_text())


def point(page: Any, number: int = 0) -> tuple[float, float]:
    """Where a point of the scatter plot lies in the window."""
    box = page.locator("#scatter .points path").nth(number).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def ink(picture: np.ndarray) -> float:
    """Share of the picture that is not of its most common colour."""
    colours = np.round(picture[..., :3] * 255).astype(int) @ (65536, 256, 1)
    return 1 - float(np.unique(colours, return_counts=True)[1].max()) / colours.size


def distinct(picture: np.ndarray) -> int:
    """How many colours there are."""
    return len(np.unique(np.round(picture[..., :3] * 255).astype(int) @ (65536, 256, 1)))


def test_the_page_is_drawn(tab: Tab, explored: Path, scheme: str) -> None:
    page = tab.open(explored)
    page.locator('[data-axis="x"]').select_option("epsilon")
    assert shown(page) == "45 runs · 1 not finished, left out"
    whole = tab.picture(f"explore_{scheme}")
    assert distinct(whole) > 200
    assert (whole[5, 5, :3].mean() > 0.5) == (scheme == "light")
    for name in ("scatter", "curves", "parallel"):
        assert 0.01 < ink(tab.picture(f"explore_{name}_{scheme}", f"#{name}")) < 0.6, name
    assert page.locator("#scatter .points path").count() == 36  # nine runs have no epsilon, and none is drawn at zero
    assert "9 runs left out: no epsilon" in page.locator("#scatter-said").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_filters_narrow_every_view(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    chips = page.locator('[data-key="config.population.num_clients"] .chip')
    chips.filter(has_text="100").first.click()
    assert shown(page).startswith("15 of 45 runs")
    assert page.locator("#scatter .points path").count() == 12
    assert page.locator("#table tbody tr").count() == 15
    page.locator("#search").fill("seed=2")
    assert shown(page).startswith("5 of 45 runs")
    again = tab.open(explored, page.evaluate("location.hash"))  # the view is in the link
    again.reload()
    assert shown(again).startswith("5 of 45 runs")
    assert again.locator("#search").input_value() == "seed=2"
    again.get_by_role("button", name="Clear all filters").click()
    assert shown(again).startswith("45 runs")


def test_a_run_without_a_value_is_missing_and_not_zero(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    page.locator("#figure-filters summary").click()
    page.locator('[data-key="epsilon"] [data-bound="most"]').fill("1000")
    page.keyboard.press("Tab")
    assert shown(page).startswith("36 of 45 runs")
    page.locator("#reset").click()
    page.get_by_role("button", name="epsilon", exact=True).click()
    page.get_by_role("button", name="epsilon ▼", exact=True).click()
    column = page.locator("#table thead th").all_inner_texts().index("epsilon ▲")
    cells = [row.locator("td, th").nth(column).inner_text() for row in page.locator("#table tbody tr").all()]
    assert cells[:3] == ["0.9901"] * 3 and cells[-9:] == ["–"] * 9  # 0.99001, told as at most 0.9901


def test_axes_change(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    page.locator('[data-axis="x"]').select_option("config.population.num_clients")
    page.locator('[data-axis="colour"]').select_option("accuracy")
    page.locator('[data-axis="facet"]').select_option("config.privacy.epsilon")
    shown(page)
    assert page.locator("#scatter .g-x4title").text_content() == "population.num_clients"
    assert page.locator("#scatter .points path").count() == 45
    assert page.locator("#scatter .subplot").count() == len(EPSILONS)
    ticks = page.locator("#scatter .x3tick").all_text_contents()
    assert {"10", "100", "1000"} <= set(ticks)  # a logarithm by itself, with the numbers that there are
    page.locator('[data-log="x"]').uncheck()
    page.locator('[data-axis="y"]').select_option("config.privacy._target_")
    shown(page)
    assert "log.x=0" in page.evaluate("location.hash")
    assert "user" in page.locator("#scatter .ytick").all_text_contents()
    assert ink(tab.picture("explore_facets", "#scatter")) > 0.01


def test_pointing_tells_of_a_run_and_a_click_opens_its_report(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    page.mouse.move(*point(page, 5))
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    told = tip.inner_text()
    assert "population.num_clients" in told and "privacy.epsilon" in told and "accuracy" in told
    tab.picture("explore_hover", "main > section:first-child")
    name = page.locator("#tip strong").inner_text()
    assert page.locator("#run h2").inner_text() == name
    with page.expect_popup() as opened:
        page.mouse.click(*point(page, 5))
    report = opened.value
    report.wait_for_load_state()
    assert report.url.startswith("file:") and report.url.endswith("/report.html")
    assert report.title().startswith("report of ")
    page.bring_to_front()
    page.keyboard.down("Shift")
    page.mouse.click(*point(page, 5))
    page.keyboard.up("Shift")
    assert shown(page).endswith("1 selected")
    assert page.locator("#curves .scatterlayer .trace").count() == 1


def test_many_are_selected_by_a_frame_and_a_picture_is_saved(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    buttons = page.locator("#scatter .modebar-btn").evaluate_all("(all) => all.map((one) => one.dataset.title)")
    assert "Share chart..." not in buttons  # it would send the runs to plotly's own server
    page.locator('#scatter [data-title="Box Select"]').click()
    box = page.locator("#scatter .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2, steps=8)
    page.wait_for_timeout(300)  # nobody lets go in the same instant, which plotly does not take for a frame
    page.mouse.up()
    page.wait_for_function("state.selected.size === 36")
    assert shown(page).endswith("36 selected")
    assert page.locator("#curves .scatterlayer .trace").count() == 36
    with page.expect_download() as saved:
        page.locator('#scatter [data-title="Download plot"]').click()
    assert saved.value.suggested_filename == "fedsim.svg"
    page.get_by_role("button", name="Select none").click()
    assert "selected" not in shown(page)


def test_the_keyboard_does_all_of_it(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    page.locator("#scatter").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#tip strong").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip strong").inner_text() != first
    page.keyboard.press(" ")
    assert shown(page).endswith("1 selected")
    with page.expect_popup() as opened:
        page.keyboard.press("Enter")
    assert opened.value.url.endswith("/report.html")


def test_the_command_that_repeats_a_run_is_copied(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    row = page.locator("#table tbody tr").first
    row.get_by_role("button").click()
    row.get_by_text("Copied").wait_for()
    page.locator("#search").focus()
    page.keyboard.press("Control+V")
    assert page.locator("#search").input_value().startswith("python -m fedsim population.num_clients=")


def test_dragging_along_an_axis_keeps_the_runs_that_cross_there(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    page.locator("#parallel").scroll_into_view_if_needed()
    box = page.locator("#parallel").bounding_box()
    find = """(key) => { const axis = lines.axes.find((one) => one.column.key === key);
        return [axis.x, down(axis.share(0.8)), down(axis.share(1))]; }"""
    x, low, high = page.evaluate(find, "accuracy")
    page.mouse.move(box["x"] + x, box["y"] + low)
    page.mouse.down()
    page.mouse.move(box["x"] + x, box["y"] + high - 40, steps=4)
    page.mouse.up()
    kept = shown(page)
    expected = page.evaluate("COLUMNS.get('accuracy').values.filter((value) => value >= 0.8).length")
    assert kept.startswith(f"{expected} of 45 runs") and 0 < expected < 45
    assert ink(tab.picture("explore_brushed", "#parallel")) > 0.01
    page.mouse.click(box["x"] + x, box["y"] + (low + high) / 2)
    assert shown(page).startswith("45 runs")


def test_a_hostile_name_does_not_run(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    assert page.locator("#table").get_by_text(ODD).count() >= 1  # it is there, as text
    for axis in ("x", "colour", "facet"):
        page.locator(f'[data-axis="{axis}"]').select_option("config.privacy.mechanism")
        shown(page)
    assert page.locator("#scatter .legendtext").get_by_text("<img", exact=False).count() == 1
    page.locator("#table tbody tr").get_by_text(ODD).first.hover()
    page.evaluate("(name) => pointAt(RUNS.findIndex((run) => run.name === name))", ODD)
    shown(page)
    assert page.locator("#tip strong").inner_text() == ODD
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_click_in_the_table_opens_a_report_in_an_oddly_named_folder(tab: Tab, explored: Path) -> None:
    page = tab.open(explored)
    with page.expect_popup() as opened:
        page.locator("#table tbody a").get_by_text(ODD).first.click()
    opened.value.wait_for_load_state()
    assert opened.value.title() == "report of 10 1.0 0"


def test_one_run_of_an_older_fedsim_is_a_page(tab: Tab, tmp_path: Path) -> None:
    make_run(tmp_path / "run", clients=5, rounds=3, accuracy=None)
    explore([str(tmp_path)])
    page = tab.open(tmp_path / "explore.html")
    assert shown(page) == "1 run"
    assert "This is one run" in page.locator("#notes").inner_text()


def test_mixed_experiments_are_named_and_can_be_parted(tab: Tab, tmp_path: Path) -> None:
    make_run(tmp_path / "a", clients=5, rounds=3, experiment="one")
    make_run(tmp_path / "b", clients=5, rounds=3, experiment="other", accuracy=None, task="regression")
    explore([str(tmp_path)])
    page = tab.open(tmp_path / "explore.html")
    assert "Runs of 2 experiments" in page.locator("#notes").inner_text()
    assert "1 run left out: no " in page.locator("#scatter-said").inner_text()
    page.locator('[data-key="experiment"] .chip').filter(has_text="other").click()
    assert shown(page) == "1 of 2 runs"
    page.locator("#curve").select_option("accuracy")
    shown(page)
    assert "1 run without accuracy by round left out" in page.locator("#curves-said").inner_text()


def test_thousands_of_runs_are_filtered_at_once(tab: Tab, tmp_path: Path) -> None:
    import pandas as pd
    from test_explore import Tables, rounds_of

    from fedsim.studies.explore import write_page

    count = 3000
    names = [f"runs/{n}" for n in range(count)]
    random = numpy_generator(0, 0, count, "many runs")
    columns = {"accuracy": random.random(count), "config.client.lr": 10 ** random.uniform(-3, 0, count)}
    columns["config.seed"] = np.arange(count) % 10
    write_page(Tables(pd.DataFrame({"run": names} | columns), rounds_of(names, 20)), tmp_path / "explore.html")
    page = tab.open(tmp_path / "explore.html")
    assert shown(page) == "3,000 runs"
    took = page.evaluate(
        "() => { const from = performance.now(); pick('config.seed', 3, true); drawAll(); return performance.now() - from; }"
    )
    assert shown(page).startswith("300 of 3,000 runs")
    assert took < 3000  # milliseconds; a few hundred where nothing else runs
    page.evaluate("() => resetFilters()")
    assert ink(tab.picture("explore_many", "#scatter")) > 0.02


def test_a_runs_report_is_drawn(tab: Tab, study: Path, scheme: str) -> None:
    page = tab.open(study / "clients=10,epsilon=1.0,seed=1" / "report.html")
    assert page.locator("img").count() >= 4
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    picture = tab.picture(f"run_report_{scheme}")
    assert distinct(picture) > 200 and ink(picture) > 0.05


def test_a_studys_report_is_drawn(tab: Tab, study: Path, tmp_path: Path, scheme: str) -> None:
    from fedsim.report import main as report

    report([str(study), f"out={tmp_path / 'out'}"])
    page = tab.open(tmp_path / "out" / "report.html")
    assert page.locator("img, svg").count() >= 2
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture = tab.picture(f"study_report_{scheme}")
    assert distinct(picture) > 200 and ink(picture) > 0.05
    assert page.evaluate("window.hacked") is None
