"""The page to explore many runs, without a browser: what it holds, and that nothing in it can run or leave it."""

from __future__ import annotations

import json
import math
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from fake_run import make_run

from fedsim.explore import main, parse
from fedsim.studies.explore import page, write_page
from fedsim.studies.explore.columns import Column, columns_of
from fedsim.studies.explore.curves import FEWEST_POINTS, MOST_NUMBERS, curves_of
from fedsim.types import FedsimError, MissingPackageError

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


class Tables(NamedTuple):
    """Stands for a store."""

    runs: pd.DataFrame
    rounds: pd.DataFrame


def rounds_of(runs: list[str], rounds: int = 10, **columns: Any) -> pd.DataFrame:
    """A row a round of each run; accuracy is 0.1 at first and rises."""
    at = np.arange(1, rounds + 1)
    table = {"round": np.tile(at, len(runs)), "accuracy": np.tile(1 - 0.9 / at, len(runs))}
    return pd.DataFrame({"run": np.repeat(runs, rounds), **table, **columns})


def tables(**columns: list[Any]) -> Tables:
    """A run for each value of the columns, in folders `runs/0`, `runs/1`, ..."""
    count = len(next(iter(columns.values())))
    runs = [f"runs/{n}" for n in range(count)]
    return Tables(pd.DataFrame({"run": runs, **columns}), rounds_of(runs))


def by_key(columns: list[Column]) -> dict[str, Column]:
    return {column.key: column for column in columns}


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def data_of(html: str) -> dict[str, Any]:
    """What the page's own script will read."""
    elements = Elements(html)
    kinds = [attributes.get("type") for attributes in elements.named("script")]
    return json.loads(elements.scripts[kinds.index("application/json")])


def test_settings_are_what_differs_and_figures_what_was_measured() -> None:
    runs = tables(**{
        "experiment": ["a"] * 4,
        "seed": [0, 1, 0, 1],
        "accuracy": [0.9, 0.91, math.nan, 0.8],
        "epsilon": [None] * 4,
        "config.seed": [0, 1, 0, 1],
        "config.client.lr": [0.1, 0.1, 0.01, 0.01],
        "config.rounds": [5] * 4,
        "config.name": ["p", "q", "r", "s"],
        "config.logger.uri": ["p", "q", "r", "s"],
        "versions.torch": ["2.13", "2.13", "2.14", "2.14"],
    }).runs  # fmt: skip
    columns = by_key(columns_of(runs))
    assert [key for key, column in columns.items() if column.role == "setting"] == ["config.client.lr", "seed"]
    assert [key for key, column in columns.items() if column.role == "figure"] == ["accuracy"]
    assert columns["config.client.lr"].label == "client.lr"
    assert columns["accuracy"].values == [0.9, 0.91, None, 0.8]  # missing, never zero


def test_no_value_is_a_setting_where_the_same_part_was_chosen() -> None:
    target = "config.privacy._target_"
    same = tables(**{target: ["p.UserPrivacy"] * 2, "config.privacy.epsilon": [None, 4.0]}).runs
    other = tables(**{target: ["p.NoPrivacy", "p.UserPrivacy"], "config.privacy.epsilon": [None, 4.0]}).runs
    assert "config.privacy.epsilon" in by_key(columns_of(same))
    assert set(by_key(columns_of(other))) == {target}
    assert by_key(columns_of(other))[target].values == ["none", "user"]
    three = tables(
        **{target: ["p.NoPrivacy", "p.UserPrivacy", "p.UserPrivacy"], "config.privacy.epsilon": [None, 4.0, 8.0]}
    ).runs
    assert by_key(columns_of(three))["config.privacy.epsilon"].values == [None, 4, 8]


def test_a_target_that_says_no_more_than_a_name_is_left_out() -> None:
    runs = tables(**{"strategy": ["fedavg", "fedadam"], "config.strategy._target_": ["x.fedavg", "x.fedadam"]}).runs
    assert list(by_key(columns_of(runs))) == ["strategy"]
    differently = tables(**{
        "strategy": ["fedavg", "fedavg", "fedadam"],
        "config.strategy._target_": ["x.FedAvg", "y.FedAvgM", "x.FedAdam"],
    }).runs  # fmt: skip
    assert list(by_key(columns_of(differently))) == ["strategy", "config.strategy._target_"]


def test_what_is_no_finite_number_is_missing_and_kinds_do_not_mix() -> None:
    runs = tables(**{
        "loss": [math.inf, 0.5, math.nan],
        "config.client.shuffle": [True, False, None],
        "config.grid.workers": ["auto", 8, None],
        "config.layers": [[1, 2], [3], None],
    }).runs  # fmt: skip
    columns = by_key(columns_of(runs))
    assert columns["loss"].values == [None, 0.5, None]
    assert columns["config.client.shuffle"].values == ["true", "false", None]
    assert columns["config.grid.workers"].values == ["auto", "8", None]
    assert columns["config.layers"].values == ["[1, 2]", "[3]", None]


def test_rounds_that_were_asked_and_run_are_one_column_unless_they_differ() -> None:
    same = tables(**{"rounds": [5, 10], "config.rounds": [5, 10]}).runs
    assert [column.label for column in columns_of(same)] == ["rounds"]
    stopped = tables(**{"rounds": [5, 7], "config.rounds": [5, 10]}).runs
    assert [column.label for column in columns_of(stopped)] == ["config.rounds", "rounds"]


def test_curves_are_thinned_and_keep_their_ends() -> None:
    runs = ["a", "b"]
    curves = curves_of(rounds_of(runs, rounds=1000), runs)
    place, values = curves["of"]["accuracy"][1]
    rounds = curves["rounds"][place]
    assert len(values) == len(rounds) == curves["points"] == 200
    assert (rounds[0], rounds[-1]) == (1, 1000)
    assert values == pytest.approx([1 - 0.9 / at for at in rounds], rel=1e-3)
    assert len(curves["rounds"]) == 1  # shared


def test_curves_hold_measured_rounds_only() -> None:
    table = rounds_of(["a", "b"], rounds=4, loss=[math.nan, 2.0, math.inf, 1.0] + [math.nan] * 4)
    curves = curves_of(table, ["a", "b", "c"])
    (place, values), nothing, absent = curves["of"]["loss"]
    assert (curves["rounds"][place], values) == ([2, 4], [2.0, 1.0])
    assert nothing is None and absent is None
    assert curves["names"] == ["accuracy", "loss"]


def test_thousands_of_curves_have_fewer_points() -> None:
    runs = [str(n) for n in range(20_000)]
    table = rounds_of(runs[:3], rounds=300)
    curves = curves_of(table, runs)
    length = len(curves["of"]["accuracy"][0][1])
    assert length == curves["points"] == MOST_NUMBERS // 20_000 > FEWEST_POINTS


def test_the_page_is_closed(tmp_path: Path) -> None:
    out = write_page(tables(accuracy=[0.5, 0.6], **{"config.seed": [0, 1]}), tmp_path / "explore.html")
    elements = Elements(out.read_text())
    (policy,) = [one["content"] for one in elements.named("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    fetched = [(tag, name, value) for tag, attributes in elements.found for name, value in attributes.items()
               if name in ("src", "href", "action", "srcset", "data", "poster")]  # fmt: skip
    assert fetched == [("a", "href", "#table")]
    style = out.read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    own = elements.scripts[-1]
    assert "redraw" in own and "http" not in own


def test_nothing_in_a_run_is_read_as_html(tmp_path: Path) -> None:
    run = tmp_path / HOSTILE.replace("/", "\N{FRACTION SLASH}")
    run.mkdir()
    columns = {"experiment": [HOSTILE], "command": [HOSTILE], "accuracy": [0.5], "config.a.b": [HOSTILE]}
    hostile = Tables(pd.DataFrame({"run": [str(run)], **columns}), rounds_of([str(run)]))
    plain = tables(**{**columns, "experiment": ["a"], "command": [""], "config.a.b": [""]})
    there = [tag for tag, _ in Elements(write_page(hostile, tmp_path / "a.html").read_text()).found]
    assert there == [tag for tag, _ in Elements(write_page(plain, tmp_path / "b.html").read_text()).found]
    data = data_of((tmp_path / "a.html").read_text())
    assert data["title"] == data["runs"][0]["command"] == HOSTILE
    assert data["runs"][0]["name"] == run.name


def test_json_survives_its_place_in_a_script() -> None:
    value = {"a": ["</script>", "<!--", "&amp;", "\u2028", "é", None, 1e-9]}
    text = page.script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)
    with pytest.raises(ValueError, match="JSON"):
        page.script_json({"a": math.nan})


@pytest.mark.parametrize("text", ["a </script> b", "a </SCRIPT b", "<!-- <script>"])
def test_a_script_that_would_end_itself_is_refused(text: str) -> None:
    with pytest.raises(FedsimError, match="cannot be put into HTML"):
        page._script(text)


def test_links_lead_to_reports_from_where_the_page_lies(tmp_path: Path) -> None:
    folders = [tmp_path / "sweep" / name for name in ("plain", "javascript:alert(1)", "a b#c?d%20", "without")]
    for folder in folders:
        folder.mkdir(parents=True)
        if folder.name != "without":
            (folder / "report.html").write_text("x")
    names = [str(folder) for folder in folders]
    out = write_page(Tables(pd.DataFrame({"run": names}), rounds_of(names)), tmp_path / "pages" / "explore.html")
    links = [run["href"] for run in data_of(out.read_text())["runs"]]
    assert links[-1] is None
    for link, folder in zip(links[:-1], folders, strict=False):
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
        assert (out.parent / unquote(parts.path)).resolve() == folder / "report.html"


def test_a_run_keeps_its_id_when_others_come(tmp_path: Path) -> None:
    def ids(count: int) -> list[str]:
        found = tables(accuracy=[0.5] * count)
        return [run["id"] for run in page.page_data(found, tmp_path)["runs"]]

    assert ids(5)[:3] == ids(3)
    assert len(set(ids(50))) == 50


def test_credentials_are_no_part_of_the_page(tmp_path: Path) -> None:
    secret = "https://me:secret@host/x"
    found = tables(**{"config.dataset.url": [secret, "b"], "command": [f"python -m fedsim url={secret}", ""]})
    assert "secret" not in write_page(found, tmp_path / "explore.html").read_text()


def test_without_plotly_the_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'fedsim-flower\[explore\]'"):
        write_page(tables(accuracy=[1.0]), tmp_path / "explore.html")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_page_into_the_folder_and_counts_half_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "sweep" / f"seed={seed}", rounds=5, clients=3, seed=seed, config={"seed": seed})
    (tmp_path / "sweep" / "half" / ".hydra").mkdir(parents=True)
    main([str(tmp_path / "sweep")])
    out = tmp_path / "sweep" / "explore.html"
    assert capsys.readouterr().out.startswith(f"{out}: 2 runs, 1 left out that is not finished, ")
    data = data_of(out.read_text())
    assert [run["name"] for run in data["runs"]] == ["seed=0", "seed=1"]
    assert data["left_out"] == ["half"]
    assert data["title"] == "fedavg_mnist"
    assert next(column for column in data["columns"] if column["key"] == "seed")["values"] == [0, 1]
    assert data["runs"][0]["command"].startswith("python -m fedsim ")


def test_texts_stand_in_the_order_of_a_person() -> None:
    column = Column("a", "a", "setting", ["s10", "s2", "0.5", "b", None, "10", "2"])
    assert page._packed(column)["levels"] == ["0.5", "2", "10", "b", "s2", "s10"]
    assert page._packed(column)["values"] == [5, 4, 0, 3, None, 2, 1]


def test_mixed_experiments_can_be_told_apart(tmp_path: Path) -> None:
    found = tables(experiment=["a", "b", "b"], accuracy=[0.5, 0.6, None])
    data = page.page_data(found, tmp_path)
    assert data["title"] == "a, b"
    (names,) = [column for column in data["columns"] if column["key"] == "experiment"]
    assert (names["role"], names["levels"], names["values"]) == ("setting", ["a", "b"], [0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no finished run lies in ."),
        ([".", "out=page.txt"], "out=page.txt is not a name for a page; give one that ends in .html"),
        ([".", "ot=page.html"], "did you mean out?"),
        (["out=page.html"], "no folder is named"),
        ([".", "out=a.html", "out=b.html"], "given twice"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    told = capsys.readouterr().err
    assert stopped.value.code == 1 and sentence in told and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_where_the_page_goes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sweep", "run", "a=b"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert parse(["sweep"]).out == Path("sweep/explore.html")
    assert parse(["run"]).out == Path("explore.html")
    assert parse(["sweep", "run"]).out == Path("explore.html")
    assert parse(["a=b"]) == ((Path("a=b"),), Path("a=b/explore.html"))
