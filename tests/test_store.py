"""Many runs as tables: held against pandas and json reading the same files one by one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from helpers import resume, run_into, tiny
from pandas.testing import assert_frame_equal

from experiments.benchmarks import store as benchmark
from experiments.benchmarks import tables
from fedsim.results import find_runs, read
from fedsim.results.files import write_json, write_table
from fedsim.results.run import columns_of
from fedsim.results.store import Store
from fedsim.summary import configuration
from fedsim.types import FedsimError

ODD = ("it's", 'say "x"', "two words", "a*b", "[c]", "w?t", "seed=1,client.lr=0.1", "ünï", "per%cent", "semi;colon")


def make(folder: Path, number: int = 0, rounds: int = 3, config: Any = "own", **told: Any) -> Path:
    """A finished run's folder, by fedsim's own writers; `told` overrides keys of summary.json, `...` takes one away."""
    rows = [
        {"round": n, "accuracy": None if n == 1 else 0.1 * n + 0.01 * number, "num_failed": number}
        for n in range(1, rounds + 1)
    ]
    write_table(folder / "rounds.parquet", columns_of(rows))
    clients = {
        "client": pa.array([0, 1], pa.int32()),
        "user": pa.array(["ann", None]),
        "class_counts": pa.array([[1, 2], None], pa.list_(pa.int32())),
        "accuracy": pa.array([0.5, None], pa.float64()),
    }
    write_table(folder / "clients.parquet", clients)
    own = {
        "seed": number,
        "rounds": rounds,
        "client": {"_target_": "fedsim.training.LocalTraining", "lr": 0.1, "max_steps": None},
        "model": {"_target_": "fedsim.models.CNN", "channels": [16, 32]},
        "privacy": {"_target_": "fedsim.privacy.NoPrivacy", "budgets": {"me": 1.0}},
    }
    summary = {
        "experiment": "made",
        "seed": number,
        "rounds": rounds,
        "accuracy": 0.1 * rounds + 0.01 * number,
        "epsilon": None,
        "federated": {"accuracy_mean": 0.4, "num_clients": 2},
        "dataset": {"name": "digits", "classes": ["0", "1"]},
        "failures": {"count": 0, "first_reason": None},
        "baselines": {},
        "config": own if config == "own" else config,
    }
    write_json(folder / "summary.json", {k: v for k, v in (summary | told).items() if v is not ...})
    return folder


def begun(folder: Path) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    return folder


def stopped(folder: Path) -> Path:
    (folder / "checkpoints" / "round_000005").mkdir(parents=True)
    return folder


# Which folders are runs


def test_runs_are_found_at_and_below_the_folders_once_each_and_in_order(tmp_path: Path) -> None:
    b, a = make(tmp_path / "sweep" / "b"), make(tmp_path / "sweep" / "deep" / "er" / "a")
    make(tmp_path / "sweep" / ".submitit" / "log")
    inside = make(b / "without" / "exact")
    assert find_runs([tmp_path]) == [b, inside, a]
    assert find_runs(str(tmp_path / "sweep")) == [b, inside, a]
    assert find_runs([a, tmp_path / "sweep", str(tmp_path / "sweep" / ".." / "sweep" / "b"), b]) == [b, inside, a]


def test_baselines_are_runs_where_they_are_named(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    central = make(run / "baselines" / "central")
    assert find_runs([tmp_path]) == [run]
    assert find_runs([run, run / "baselines"]) == [run, central]
    assert find_runs(central) == [central]
    sweep = make(tmp_path / "baselines" / "0")  # a sweep of that name is no run's own folder
    assert find_runs(tmp_path) == [sweep, run]


def test_links_are_followed_and_lead_nowhere_twice(tmp_path: Path) -> None:
    run = make(tmp_path / "far" / "run")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "link").symlink_to(run, target_is_directory=True)
    (tmp_path / "study" / "circle").symlink_to(tmp_path / "study", target_is_directory=True)
    assert find_runs(tmp_path / "study") == [tmp_path / "study" / "link"]
    assert len(find_runs([tmp_path / "study", tmp_path / "far"])) == 1


def test_half_a_run_is_left_out_and_counted(tmp_path: Path) -> None:
    run, one, two = make(tmp_path / "run"), begun(tmp_path / "x" / "failed"), stopped(tmp_path / "x" / "killed")
    (begun(tmp_path / "dry") / "plan.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    store = read(tmp_path)
    assert store.folders == [run] and store.unfinished == [one, two]
    assert len(store.runs) == 1


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ([], "no folder is named"),
        (["nowhere"], "nowhere is not a folder"),
        (["notes"], "no finished run lies in notes; give"),
        (["notes", "half"], r"no finished run lies in notes or the 1 folders named after it \(of 1 that are not, half"),
    ],
)
def test_no_run_is_a_sentence(folders: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    begun(tmp_path / "half")
    with pytest.raises(FedsimError, match=words):
        read(folders)


# The tables


def test_runs_say_what_their_summaries_say(tmp_path: Path) -> None:
    folders = [make(tmp_path / f"{n}", n, audit={"verdict": "PASS"} if n else None) for n in range(3)]
    store = read(tmp_path)
    told = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    oracle = pd.json_normalize(told, max_level=1)
    for name in (
        "experiment",
        "seed",
        "rounds",
        "accuracy",
        "federated.accuracy_mean",
        "dataset.name",
        "failures.count",
    ):
        assert store.runs[name].tolist() == oracle[name].tolist(), name
    assert store.runs["run"].tolist() == [str(folder) for folder in folders]
    assert store.runs["dataset.classes"].tolist() == ['["0", "1"]'] * 3
    assert store.runs["config.client.lr"].tolist() == [0.1] * 3 and store.runs["config.seed"].tolist() == [0, 1, 2]
    assert store.runs["config.model.channels"].tolist() == ["[16, 32]"] * 3
    assert store.runs["config.privacy.budgets"].tolist() == ['{"me": 1.0}'] * 3
    assert store.runs["epsilon"].isna().all() and store.runs["epsilon"].dtype == float
    assert store.runs["audit.verdict"].isna().tolist() == [True, False, False] and "audit" not in store.runs
    assert list(store.runs)[:3] == ["run", "experiment", "seed"]
    first = [name.startswith("config.") for name in store.runs].index(True)
    assert all(name.startswith("config.") for name in list(store.runs)[first:])


def test_a_part_inside_of_a_part_has_columns_of_its_own(tmp_path: Path) -> None:
    optimizer = {"_target_": "torch.optim.AdamW", "betas": [0.9, 0.999]}
    make(tmp_path / "adam", config={"client": {"_target_": "x", "optimizer": optimizer}})
    make(tmp_path / "sgd", config={"client": {"_target_": "x", "optimizer": None}, "init": {"weights": None}})
    runs = read(tmp_path).runs
    assert runs["config.client.optimizer._target_"].tolist()[0] == "torch.optim.AdamW"
    assert runs["config.client.optimizer._target_"].isna().tolist() == [False, True]
    assert runs["config.client.optimizer.betas"].tolist()[0] == "[0.9, 0.999]"
    assert "config.client.optimizer" not in runs and runs["config.init.weights"].isna().all()


@pytest.mark.parametrize("name", ["rounds", "clients"])
def test_rows_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    folders = [make(tmp_path / odd, n, rounds=n + 1) for n, odd in enumerate(ODD)]
    store = read(folders, class_counts=True)
    frames = [pd.read_parquet(folder / f"{name}.parquet").assign(run=str(folder)) for folder in sorted(folders)]
    oracle = pd.concat(frames, ignore_index=True)
    oracle = oracle[["run", *oracle.columns.drop("run")]]
    assert_frame_equal(getattr(store, name), oracle, check_column_type=False)
    assert sorted(store.runs["run"]) == sorted(map(str, folders))
    assert store.sql(f"SELECT count(DISTINCT run) AS n FROM {name}")["n"][0] == len(ODD)


def test_class_counts_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    make(tmp_path / "run")
    assert list(read(tmp_path).clients) == ["run", "client", "user", "accuracy"]
    counts = read(tmp_path, class_counts=True).clients["class_counts"]
    assert counts[0].tolist() == [1, 2] and counts[1] is None


def test_what_a_version_did_not_write_is_missing(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old", federated=..., epsilon=...), make(tmp_path / "new", epsilon=2.0)
    write_table(old / "rounds.parquet", {"round": [1, 2], "accuracy": pa.nulls(2), "num_failed": [0.5, 1.0]})
    (old / "clients.parquet").unlink()
    write_table(new / "rounds.parquet", columns_of([{"round": 1, "accuracy": 0.5, "num_failed": 3, "ece": 0.1}]))
    store = read([tmp_path])
    assert store.runs["run"].tolist() == [str(new), str(old)]
    assert store.runs["epsilon"].tolist()[0] == 2.0 and math.isnan(store.runs["epsilon"][1])
    assert store.runs["federated.num_clients"].isna().tolist() == [False, True]
    assert store.rounds["ece"].isna().tolist() == [False, True, True]
    assert store.rounds["accuracy"].isna().tolist() == [False, True, True]
    assert store.rounds["num_failed"].tolist() == [3, 0.5, 1]
    assert set(store.clients["run"]) == {str(new)}
    found = store.sql("SELECT count(ece) AS n, count(*) AS rows, avg(ece) AS mean FROM rounds")
    assert found.iloc[0].tolist() == [1, 3, 0.1]


def test_runs_without_rounds_have_rows_of_their_own(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    write_table(run / "rounds.parquet", columns_of([]))
    store = read(run)
    assert list(store.rounds) == ["run"] and len(store.rounds) == 0
    (run / "rounds.parquet").unlink()
    assert len(read(run).rounds) == 0 and read(run).sql("FROM rounds").empty


def test_what_others_wrote_into_the_files_is_no_matter(tmp_path: Path) -> None:
    run = make(tmp_path / "run", run="elsewhere")
    pd.read_parquet(run / "rounds.parquet").set_index("round").to_parquet(run / "rounds.parquet", index=True)
    store = read(run)
    assert store.runs["run"].tolist() == [str(run)]
    assert sorted(store.rounds) == ["accuracy", "num_failed", "round", "run"] and store.rounds.index.tolist() == [
        0,
        1,
        2,
    ]


def test_a_mapping_of_ones_own_is_the_same_in_any_order(tmp_path: Path) -> None:
    for name, budgets in (("a", {"x": 1, "y": [{"p": 1, "q": 2}]}), ("b", {"y": [{"q": 2, "p": 1}], "x": 1})):
        make(tmp_path / name, config={"privacy": {"_target_": "x", "budgets": budgets}})
    assert read(tmp_path).runs["config.privacy.budgets"].nunique() == 1


def test_different_experiments_stand_beside_each_other(tmp_path: Path) -> None:
    make(tmp_path / "a", experiment="a", config={"grid": {"_target_": "x", "width": "auto"}}, macro_f1=0.5)
    make(tmp_path / "b", experiment="b", config={"grid": {"_target_": "x", "width": 8}})
    make(tmp_path / "c", experiment="b", config={"grid": {"_target_": "x", "width": None}})
    store = read(tmp_path)
    assert store.runs["config.grid.width"].tolist()[:2] == ["auto", 8]
    told = store.sql('SELECT experiment, "config.grid.width" AS width, macro_f1 FROM runs ORDER BY run')
    assert told["width"].tolist()[:2] == ["auto", "8"] and told["width"].isna().tolist() == [False, False, True]
    assert told["macro_f1"].isna().tolist() == [False, True, True]


def test_what_is_read_is_what_the_files_say_now(tmp_path: Path) -> None:
    run = make(tmp_path / "run", accuracy=0.1)
    status = os.stat(run / "summary.json")
    assert read(tmp_path).runs["accuracy"].tolist() == [0.1]
    make(run, accuracy=0.9, rounds=4)
    os.utime(run / "summary.json", ns=(status.st_atime_ns, status.st_mtime_ns))
    store = read(tmp_path)
    assert store.runs["accuracy"].tolist() == [0.9] and len(store.rounds) == 4


# Runs whose summary does not hold the configuration


def test_an_older_runs_configuration_is_hydras(tmp_path: Path) -> None:
    saved = {
        "seed": 3,
        "client": {"_target_": "x", "lr": 1e-05, "max_steps": None},
        "strategy": {
            "_target_": "y",
            "client_lr": "${client.lr}",
            "odd": "${nothing.there}",
            "round": "${strategy.round}",
        },
        "logger": {"tracking_uri": "https://me:secret@host"},
    }
    run = make(tmp_path / "old", config=...)
    assert [name for name in read(run).runs if name.startswith("config.")] == []
    (run / ".hydra").mkdir()
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(saved))
    runs = read(run).runs
    assert runs["config.client.lr"][0] == runs["config.strategy.client_lr"][0] == 1e-05
    assert runs["config.seed"][0] == 3 and runs["config.client.max_steps"].isna().all()
    assert runs["config.strategy.odd"][0] == "${nothing.there}"
    assert runs["config.strategy.round"][0] == "${strategy.round}"  # it names itself
    assert runs["config.logger.tracking_uri"][0] == "https://***@host"


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", b'{"experiment": ', "summary.json is corrupt"),
        ("summary.json", b"\xff\xfe", "summary.json is corrupt"),
        ("summary.json", b"", "summary.json is corrupt"),
        ("summary.json", b"[1]", "summary.json is not of a run of fedsim"),
        ("summary.json", b'{"accuracy": 1}', "summary.json is not of a run of fedsim"),
        (".hydra/config.yaml", b"a: [", "config.yaml is corrupt"),
        (".hydra/config.yaml", b"a: !!python/object/apply:os.getcwd []", "config.yaml is corrupt"),
        (".hydra/config.yaml", b"just text", "config.yaml is not the configuration of a run"),
        ("rounds.parquet", b"PAR1 no", "rounds.parquet is corrupt"),
        ("clients.parquet", b"", "clients.parquet is corrupt"),
    ],
)
def test_a_corrupt_file_is_named_in_a_sentence(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    make(tmp_path / "good")
    bad = begun(make(tmp_path / "bad one", config=...))
    (bad / name).write_bytes(content)
    with pytest.raises(FedsimError, match=words) as error:
        store = read(tmp_path)
        len(store.runs), len(store.rounds), len(store.clients)
    assert str(bad / name) in str(error.value) and "\n" not in str(error.value)


def test_columns_that_cannot_be_one_are_a_sentence(tmp_path: Path) -> None:
    make(tmp_path / "a")
    write_table(make(tmp_path / "b") / "rounds.parquet", {"round": ["one"]})
    with pytest.raises(FedsimError, match=r"rounds\.parquet differs between these runs") as error:
        len(read(tmp_path).rounds)
    assert "\n" not in str(error.value)


# SQL


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for number in range(6):
        make(tmp_path / "runs" / f"{number}", number, rounds=number + 2, strategy="fedavg" if number % 2 else "fedprox")
    return read(tmp_path / "runs")


def test_sql_finds_what_pandas_finds(store: Store) -> None:
    found = store.sql(
        """
        SELECT strategy, "config.client.lr" AS lr, avg(r.accuracy) AS mean, stddev(r.accuracy) AS spread, count(*) AS n
        FROM Runs JOIN ROUNDS r USING (run) GROUP BY ALL ORDER BY strategy
        """
    )
    joined = store.rounds.merge(store.runs[["run", "strategy", "config.client.lr"]], on="run")
    oracle = joined.groupby(["strategy", "config.client.lr"])["accuracy"].agg(["mean", "std", "size"]).reset_index()
    oracle.columns = found.columns
    assert_frame_equal(found, oracle, check_dtype=False)
    assert store.sql("SELECT count(*) AS n FROM clients WHERE accuracy IS NULL")["n"].tolist() == [6]
    assert set(store.sql("SHOW TABLES")["name"]) == {"runs", "rounds", "clients"}


def test_a_query_changes_nothing_for_the_next(store: Store) -> None:
    store.sql("DROP TABLE rounds")
    store.sql("DELETE FROM runs")
    assert store.sql("SELECT count(*) AS n FROM rounds")["n"][0] == len(store.rounds)
    assert store.sql("SELECT count(*) AS n FROM runs")["n"][0] == 6


@pytest.mark.parametrize(
    "query",
    [
        "COPY runs TO 'out.csv'",
        "COPY (SELECT 1) TO 'out.parquet'",
        "EXPORT DATABASE 'out'",
        "ATTACH 'out.db'",
        "ATTACH 'http://127.0.0.1:9/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "FROM read_text('seen.txt')",
        "FROM read_csv('seen.txt')",
        "FROM 'seen.txt'",
        "FROM glob('*')",
        "FROM read_parquet('runs/0/rounds.parquet')",
        "FROM read_csv('http://127.0.0.1:9/x.csv')",
        "FROM hidden",
        "SET enable_external_access = true",
        "SET temp_directory = 'out'",
        "SET lock_configuration = false",
        "SET profiling_output = 'out.json'",
        "SET log_query_path = 'out.log'",
        "CALL enable_logging(storage = 'file', storage_path = 'out')",
        "SELECT 1; COPY runs TO 'out.csv'",
    ],
)
def test_a_query_reaches_no_file_and_no_network(
    query: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = pd.DataFrame({"a": [1]})
    (tmp_path / "seen.txt").write_text("a\n1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedsimError, match="the query cannot be run") as error:
        store.sql(query)
    assert "\n" not in str(error.value) and len(hidden) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "seen.txt"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT acuracy FROM runs", "accuracy"),
        ("", "the query is empty"),
        (" ; -- nothing", "the query is empty"),
    ],
)
def test_a_wrong_query_is_a_sentence(query: str, words: str, store: Store) -> None:
    with pytest.raises(FedsimError, match=words) as error:
        store.sql(query)
    assert "\n" not in str(error.value)


# The summary of a real run


@pytest.mark.usefixtures("no_pictures")
def test_a_runs_summary_holds_its_configuration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    cfg = tiny("client.lr=0.25", "checkpoint.every=1", "+dataset.noise=0.5")
    first = run_into(run, cfg)
    told = json.loads((run / "summary.json").read_text())["config"]
    assert told == first["config"] and list(first)[-1] == "config"
    assert (told["client"]["lr"], told["dataset"]["noise"], told["resume"]) == (0.25, 0.5, None)
    grown = resume(run, rounds=3)
    assert grown["config"] == told | {"rounds": 3}
    runs = read(run).runs
    assert runs["config.client.lr"].tolist() == [0.25] and runs["config.rounds"].tolist() == [3]
    assert runs["accuracy"].tolist() == [grown["accuracy"]]
    before = runs[[name for name in runs if name.startswith("config.")]]
    write_json(run / "summary.json", {key: value for key, value in grown.items() if key != "config"})
    (run / ".hydra" / "config.yaml").rename(run / ".hydra" / "kept.yaml")
    assert not any(name.startswith("config.") for name in read(run).runs)
    (run / ".hydra" / "kept.yaml").rename(run / ".hydra" / "config.yaml")
    assert_frame_equal(read(run).runs[list(before)], before)  # Hydra's own file gives the same columns


def test_no_login_is_told() -> None:
    uris = {"tracking_uri": "https://me:secret@host", "more": ["x", {"uri": "http://u:p@h/a"}], "size": 2}
    told = configuration({"logger": uris, "resume": "/runs/a", "resume_rounds": 9, "seed": 0})
    blotted = {"tracking_uri": "https://***@host", "more": ["x", {"uri": "http://***@h/a"}], "size": 2}
    assert told == {"logger": blotted, "resume": None, "resume_rounds": None, "seed": 0}


@pytest.mark.usefixtures("no_pictures")
def test_trackers_are_told_the_configuration_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.results.loggers import NoLogger

    told: dict[str, Any] = {}
    monkeypatch.setattr(NoLogger, "finish", lambda self, summary: told.update(summary))
    run_into(tmp_path / "run", tiny("rounds=1"))
    assert told["rounds"] == 1 and "config" not in told


def test_results_import_nothing_before_they_read() -> None:
    heavy = "duckdb", "pandas", "pyarrow"
    code = f"import sys, fedsim.results as r; assert callable(r.read); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("no_pictures")
def test_the_benchmark_reads_what_it_wrote(tmp_path: Path) -> None:
    run_into(tmp_path / "real", tiny("rounds=1"))
    many = tmp_path / "many"
    benchmark.write_runs(many, tmp_path / "real", 3)
    assert [way(str(many)) for way in benchmark.WAYS.values()] == [[3, 300], [300], [3, 300]]
    assert read(many).runs["config.client.lr"].tolist() == [0.0, 0.01, 0.02]
    row = {"way": "x", "runs": 3, "rounds": 100, "seconds": [1.0, 0.9, 1.1], "ratio": [1.0, 1.0, 1.0]}
    (table,) = tables.TABLES["store"]({"rows": [row]})
    assert table.title == "Reading 3 runs of 100 rounds" and table.rows == [
        ["x", "1.00 (0.900 to 1.10)", "1.00 (1.00 to 1.00)"]
    ]
