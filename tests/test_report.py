"""The HTML report and its pictures, made from run folders with plausible numbers."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_run import AUDIT, BASELINES, LEDGER, OF_EVERY_RUN, make_private, make_run, names, pixels

from fedsim.results.formats import DASH
from fedsim.results.plots import write_plots
from fedsim.results.privacy_words import NO_PRIVACY
from fedsim.results.report import write_report
from fedsim.types import FedsimError

EVIL = "<script>alert('mnist')</script>"


class Page(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.words: list[str] = []
        self.style: list[str] = []
        self.classes: list[str] = []
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_style = tag == "style"
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.addresses.append(value or "")
            if name == "class":
                self.classes += (value or "").split()
            if name == "alt":
                self.alts.append(value or "")
            assert not name.startswith("on"), "an event handler"

    def handle_data(self, data: str) -> None:
        (self.style if self._in_style else self.words).append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 clients x 10 classes, some failures, both baselines, plots and report written."""
    folder = make_run(tmp_path_factory.mktemp("report") / "plain", failing=0.05, baselines=BASELINES)
    write_plots(folder)
    write_report(folder)
    return folder


def edit_summary(folder: Path, **changes: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_plot_is_drawn_large_and_not_blank(plain: Path) -> None:
    assert sorted(path.stem for path in (plain / "plots").iterdir()) == sorted(OF_EVERY_RUN)
    for path in (plain / "plots").iterdir():
        image = pixels(path.read_bytes())
        assert image.shape[1] >= 800 and image.shape[0] >= 400
        ink = (image[..., :3].min(-1) < 0.9).mean()
        assert 0.01 < ink < 0.9, path.name


def test_a_folder_that_is_no_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match=r"no summary\.json"):
        write_report(tmp_path)


def test_the_report_shows_the_runs_own_numbers(plain: Path) -> None:
    summary = json.loads((plain / "summary.json").read_text())
    text = Page((plain / "report.html").read_text()).text
    for value in (
        f"{100 * summary['accuracy']:.1f}%",
        f"{100 * summary['best_accuracy']:.1f}%",
        f"at round {summary['best_round']}",
        f"{summary['loss']:.4g}",
        f"{100 * summary['federated']['accuracy_worst10']:.1f}%",
        f"{summary['failures']['count']} of 500 client-rounds",
        "RuntimeError: out of memory",
        summary["dataset"]["fingerprint"],
        "torch 2.13.0",
        "A Processor 3000",
        "413 MB",
        "79,510",
        "client.lr=0.1",
        "rounds: 50",
        summary["command"],
        NO_PRIVACY,
    ):
        assert value in text, value


def test_the_report_asks_for_nothing_from_any_network(plain: Path) -> None:
    html = (plain / "report.html").read_text()
    page = Page(html)
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", "".join(page.style))
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html and "@media print" in html


def test_the_pictures_in_the_report_are_those_of_the_run(plain: Path) -> None:
    page = Page((plain / "report.html").read_text())
    embedded = {base64.b64decode(address.split(",", 1)[1]) for address in page.addresses}
    assert embedded == {path.read_bytes() for path in (plain / "plots").iterdir()}
    assert all(page.alts) and len(set(page.alts)) == len(OF_EVERY_RUN)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=12, rounds=5, experiment=EVIL, command=f"python '{EVIL}'")
    summary = json.loads((folder / "summary.json").read_text())
    edit_summary(
        folder,
        dataset=summary["dataset"] | {"name": EVIL, "source": '"><img src=//evil>', "classes": [EVIL] * 10},
        failures={"count": 1, "clients": 1, "first_reason": "</pre><script>x</script>"},
        versions={"<b>torch</b>": "<i>1</i>"},
    )
    (folder / ".hydra" / "overrides.yaml").write_text(f"- dataset={EVIL}\n")
    page = Page(write_report(folder).read_text())
    assert "script" not in page.tags and "b" not in page.tags and "i" not in page.tags
    assert page.tags.count("img") == len(list((folder / "plots").iterdir()))
    assert EVIL in page.text and "<b>torch</b>" in page.text


def test_passwords_of_tracking_servers_are_not_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=12, rounds=2)
    (folder / ".hydra" / "config.yaml").write_text("logger:\n  tracking_uri: https://me:secret@host/x\n")
    html = write_report(folder).read_text()
    assert "secret" not in html and "://***@host/x" in html


def test_nulls_show_as_dashes_and_never_as_zero(tmp_path: Path) -> None:
    nothing = dict.fromkeys(
        (
            "accuracy",
            "best_accuracy",
            "best_round",
            "macro_f1",
            "ece",
            "loss",
            "peak_memory_mb",
            "bytes_up",
            "bytes_down",
            "client_rounds_per_second",
            "seconds",
            "num_parameters",
            "host",
        )
    )
    folder = make_run(tmp_path / "run", federated=False, clients=12, rounds=3, **nothing)
    html = write_report(folder).read_text()
    tiles = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", html))
    assert set(tiles.values()) == {DASH} and len(tiles) == 8
    facts = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', html))
    for name in (
        "Time, whole run",
        "Time, a round",
        "Peak memory",
        "Sent up, devices to server",
        "Processor",
        "Memory",
    ):
        assert facts[name] == DASH, name
    assert "None" not in html and "nan" not in Page(html).text.lower().split()
    assert "nothing was measured on clients" in html


def test_regression_report_speaks_of_loss_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", task="regression", clients=30)
    page = Page(write_report(folder).read_text())
    loss = json.loads((folder / "summary.json").read_text())["loss"]
    assert f"to a loss of {loss:.4g} on 1,000 test rows" in page.text
    assert "Macro F1" not in page.text


def test_clients_that_all_took_part_alike_are_told_in_words(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=7, rounds=3)
    people = pq.read_table(folder / "clients.parquet")
    alike = people.set_column(people.schema.get_field_index("participations"), "participations", [[3] * 7])
    pq.write_table(alike, folder / "clients.parquet")
    assert "participation" not in names(write_plots(folder))
    text = Page(write_report(folder).read_text()).text
    assert "Each of the 7 clients took part in every round." in text
    assert "the worst client has" in text and "tenth" not in text


def test_without_baselines_the_report_names_the_command_that_adds_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=12, rounds=2)
    assert "partition=dirichlet client.lr=0.1 baselines=true" in Page(write_report(folder).read_text()).text


def test_the_report_claims_what_privacy_json_says(tmp_path: Path) -> None:
    folder = make_private(make_run(tmp_path / "run", clients=12, rounds=4), LEDGER, AUDIT, alike=False)
    html = write_report(folder).read_text()
    page = Page(html)
    assert "is differentially private with ε = 7.985 at δ = 1e-5 for one client's whole data" in page.text
    assert NO_PRIVACY not in page.text and "Evidence" in page.text and "PASS" in page.text
    assert re.findall(r"<dt>Privacy ε</dt><dd>(.*?)<small>(.*?)</small>", html) == [
        ("7.985", "δ = 1e-5, for one client")
    ]
    assert "ε = 2.345" in page.text and AUDIT["words"][0] in page.text and "alarm" not in page.classes
    assert any("How ε was spent" in alt for alt in page.alts)
    (folder / "privacy.json").unlink()
    with pytest.raises(FedsimError, match=r"no privacy\.json"):
        write_report(folder)


def test_a_failed_audit_stops_the_report(tmp_path: Path) -> None:
    failed = AUDIT | {"verdict": "FAIL", "observed": 12.0}
    folder = make_private(make_run(tmp_path / "run", clients=12, rounds=4), LEDGER, failed)
    html = write_report(folder).read_text()
    page = Page(html)
    alarm = page.text.index(
        "The audit refutes the privacy claim: claimed at most ε = 7.985, observed at least 12 (95% conf"
    )
    assert alarm < page.text.index("In 4 rounds") and page.classes.count("alarm") == 2
    assert "is differentially private" not in page.text and "No guarantee is stated" in page.text
    assert re.findall(r"<dt>Privacy ε</dt><dd>(.*?)<small>", html) == ["refuted"]


def test_pictures_of_an_audit_are_shown(tmp_path: Path) -> None:
    bars = {"edges": [0.0, 1.0, 2.0], "in": [1, 9], "out": [9, 1]}
    audit = AUDIT | {"plot": {"run": bars}}
    folder = make_private(make_run(tmp_path / "run", clients=12, rounds=4), LEDGER, audit)
    assert "audit_scores" in names(write_plots(folder))
    page = Page(write_report(folder).read_text())
    assert any("canaries" in alt for alt in page.alts)


def test_hostile_privacy_stays_text(tmp_path: Path) -> None:
    ledger = {key: EVIL if isinstance(value, str) else value for key, value in LEDGER.items()}
    ledger |= {"caveats": [EVIL, 5], "<b>key</b>": "<i>value</i>", "unit": "<b>unit</b>"}
    audit = AUDIT | {"words": [EVIL, "</li><script>"], "kind": EVIL}
    for verdict in ("PASS", "FAIL"):
        folder = make_private(make_run(tmp_path / verdict, clients=12, rounds=2), ledger, audit | {"verdict": verdict})
        page = Page(write_report(folder).read_text())
        assert not {"script", "b", "i"} & set(page.tags) and EVIL in page.text and "<i>value</i>" in page.text


def test_what_secure_aggregation_cost_is_told_where_it_was_there(plain: Path, tmp_path: Path) -> None:
    assert "Secure aggregation" not in Page((plain / "report.html").read_text()).text
    folder = make_run(tmp_path / "run", clients=12, rounds=2)
    table = pq.read_table(folder / "rounds.parquet")
    for name, values in (("bytes_up", [1500, 1500]), ("bytes_down", [0, 0]), ("seconds", [1.5, 2.0])):
        table = table.append_column(f"secure_aggregation_{name}", [values])
    pq.write_table(table, folder / "rounds.parquet")
    facts = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', write_report(folder).read_text()))
    assert facts["Secure aggregation, sent up"] == "3 kB" and facts["Secure aggregation, time"] == "3.5 s"
    assert "Secure aggregation, sent down" not in facts


@pytest.mark.slow
def test_a_browser_shows_the_report(plain: Path, tmp_path: Path) -> None:
    import shutil
    import subprocess

    browser = shutil.which("chromium") or pytest.skip("needs chromium (apt install chromium)")
    shot = tmp_path / "report.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000", f"--screenshot={shot}"]
    subprocess.run([browser, *flags, (plain / "report.html").as_uri()], check=True, capture_output=True, timeout=60)
    assert pixels(shot.read_bytes())[..., :3].std() > 0.05
