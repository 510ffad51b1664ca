"""The pictures of audits, and the configurations that make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_audit_canary import audited
from test_audit_one_shot import estimated

from fedsim.audit.base import Audit
from fedsim.audit.pictures import audit_scores, draw_roc, draw_scores, inversion, lira_roc
from fedsim.make import make
from fedsim.paths import conf_dir
from fedsim.results.files import write_json
from fedsim.results.finished import Run

OPTIONS = ("none", "canary", "one_shot", "lira", "inversion")


def test_scores_are_drawn_with_claim_and_evidence_in_the_title(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {}, {}, {}, [], None)
    assert [draw(run) for draw in (audit_scores, lira_roc, inversion)] == [None, None, None]
    found = audited(1.0, canaries=300)
    write_json(tmp_path / "audit.json", found | {"kind": "canary"})
    figure = audit_scores(run)
    assert figure is not None and len(figure.axes) == 2
    title = figure.get_suptitle().replace("\n", " ")
    assert title.startswith("PASS: claimed at most") and f"{found['observed']:.3g} (95%)" in title
    figure.savefig(tmp_path / "scores.png")
    assert lira_roc(run) is None is inversion(run)


def test_an_estimate_is_called_one_in_its_picture() -> None:
    figure = draw_scores(estimated(2.0, canaries=50))
    assert figure is not None and "estimated, not bounded" in figure.get_suptitle()


def test_the_roc_has_log_axes_and_does_not_go_beyond_what_is_known() -> None:
    rates = np.linspace(0, 1, 50)
    roc = {"fpr": rates.tolist(), "tpr": np.sqrt(rates).tolist(), "auc": 0.66, "tpr_at_0.1%": 0.0, "tpr_at_1%": 0.1}
    audit: dict[str, Any] = {"kind": "lira", "shadows": 16, "roc": roc | {"members": 200, "others": 200}}
    figure = draw_roc(audit)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_xlim()[0] == pytest.approx(0.5 / 200)
    assert "10.0%" in figure.get_suptitle().replace("\n", " ") or "10%" in figure.get_suptitle()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_configuration_makes_an_audit(option: str) -> None:
    config = yaml.safe_load((conf_dir() / "audit" / f"{option}.yaml").read_text())
    made = make(config, "audit")
    assert isinstance(made, Audit)
    assert {key: getattr(made, key) for key in config if key != "_target_"} == {
        k: v for k, v in config.items() if k != "_target_"
    }


def test_no_configuration_is_forgotten() -> None:
    assert {path.stem for path in (conf_dir() / "audit").iterdir()} == set(OPTIONS)
