"""`caq calibrate`: what is measured, resuming from a state, and the picture."""

from __future__ import annotations

import numpy as np
import pytest

from caq import artifact
from tests.calibration.streams import drifted, source


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    model, x, y = source()
    artifact.save(model, folder / "x.caq")
    names = np.array(model.label_names)
    train, test, target = slice(0, 100), slice(100, 140), slice(140, 240)
    x_test, y_test = np.concatenate([x[test], drifted(x[target])]), np.concatenate([y[test], y[target]])
    domain = np.where(np.arange(140) < 40, 1, 2)
    arrays = {"x_train": x[train], "y_train": y[train], "x_test": x_test, "y_test": y_test, "label_names": names}
    domains = {"domain_train": np.ones(100, np.int64), "domain_test": domain}
    np.savez(folder / "x.npz", kind=np.array("image"), **arrays, **domains)
    np.savez(folder / "plain.npz", kind=np.array("image"), **arrays)
    return folder


def arguments(made, *more):
    return ("calibrate", made / "x.caq", "--data", made / "x.npz", "--source-domains", 1, "--target-domain", 2, *more)


@pytest.mark.parametrize("method", ["ladder", "sets", "bn", "none"])
def test_every_set_is_measured_after_every_batch(made, call, method):
    before = (made / "x.caq").read_bytes()
    found = call(*arguments(made, "--batches", 3, "--method", method, "--core-size", 40, "--json"))
    assert found.code == 0 and (made / "x.caq").read_bytes() == before
    rows = found.json["rows"]
    assert [row["batch"] for row in rows] == [0, 1, 2, 3]
    assert found.json["samples"] == {"source_test": 40, "target_test": 50}
    assert all(set(row["target"]) == {"w2a2", "w4a4", "w8a8", "mixed"} for row in rows)
    assert rows[0]["source"]["w8a8"] == 1.0  # labels are what w8a8 says
    changed = rows[0]["target"] != rows[-1]["target"]
    assert changed == any(record["promoted"] for record in found.json["history"])
    assert {record["what"] for record in found.json["history"]} == {
        "ladder": {"head", "domain"},
        "sets": {"head"},
        "bn": {"statistics"},
        "none": set(),
    }[method]
    if method == "bn":
        assert changed


def test_a_state_is_resumed(made, call, tmp_path):
    whole = call(*arguments(made, "--batches", 4, "--state", tmp_path / "whole", "--json")).json
    # As if power went after two of four batches: the stream of four is what both see.
    from caq.calibration.calibrator import Calibrator

    first = Calibrator.partial_fit
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Calibrator, "partial_fit", lambda self, x, y: first(self, x, y) if self.steps < 2 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(*arguments(made, "--batches", 4, "--state", tmp_path / "cut", "--json"))
    resumed = call(*arguments(made, "--batches", 4, "--state", tmp_path / "cut", "--json")).json
    assert resumed["resumed_after"] == 2 and [row["batch"] for row in resumed["rows"]] == [2, 3, 4]
    for ours, theirs in zip(resumed["rows"], whole["rows"][2:], strict=True):
        assert ours["target"] == theirs["target"] and ours["source"] == theirs["source"]


def test_the_picture_is_drawn(made, call, tmp_path):
    pytest.importorskip("matplotlib")
    found = call(*arguments(made, "--batches", 2, "--unlabelled", "--picture", tmp_path / "p.png"))
    assert found.code == 0 and "w2a2" in found.out and "promoted" in found.out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--data", "plain.npz"), "domain_train"),
        (("--target-domain", 1), "source and the target"),
        (("--target-domain", 7), "domains: \\[1, 2\\]"),
        (("--batches", 60), "batches are asked for"),
    ],
)
def test_what_cannot_stream_is_refused(made, call, change, message):
    change = tuple(made / part if part == "plain.npz" else part for part in change)
    found = call(*arguments(made, *change))
    assert found.code == 1
    import re

    assert re.search(message, found.err)
