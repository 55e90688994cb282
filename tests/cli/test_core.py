"""`caq core`: the core set goes into the file, is shown, survives other commands, and calibration starts from it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from caq import artifact
from tests.calibration.streams import drifted, source


@pytest.fixture
def made(tmp_path):
    model, x, y = source()
    artifact.save(model, tmp_path / "x.caq")
    arrays = {"x_train": x[:140], "y_train": y[:140], "x_test": drifted(x[140:]), "y_test": y[140:]}
    domains = {"domain_train": np.arange(140) % 2, "domain_test": np.full(100, 2)}
    names = np.array(model.label_names)
    np.savez(tmp_path / "x.npz", kind=np.array("image"), label_names=names, **arrays, **domains)
    np.savez(tmp_path / "plain.npz", kind=np.array("image"), label_names=names, **arrays)
    return tmp_path


def test_it_is_kept_in_the_file_and_shown(made, call):
    before = artifact.load(made / "x.caq")
    found = call("core", made / "x.caq", "--data", made / "x.npz", "--size", 30, "--json")
    assert found.code == 0, found.err
    after = artifact.load(made / "x.caq")
    assert artifact.dumps(after.replace(core=None)) == artifact.dumps(before)
    said = found.json["core"]
    assert said["samples"] == len(after.core.y) == 30 and found.json["drawn_from"] == 140
    assert said["by_class"] == np.bincount(after.core.y, minlength=3).tolist() and min(said["by_class"]) > 0
    assert said["misses_by_width"] == dict(zip("248", after.core.misses.sum(0).tolist(), strict=True))
    assert call("info", made / "x.caq", "--json").json["core"] == said
    assert "core set: 30 samples of 3 of 3 classes" in call("info", made / "x.caq").out
    # Another command that writes the file keeps it.
    points = tuple(p._replace(samples=100) for p in after.points)
    artifact.save(after.replace(points=points), made / "x.caq")
    argv = ("--data", made / "x.npz", "--samples", 20, "--steps", 2, "--budget", "low=0.2")
    assert call("search", made / "x.caq", *argv).code == 0
    assert (artifact.load(made / "x.caq").core.x == after.core.x).all()


def test_features_of_other_samples_are_kept_too(made, call):
    argv = ("core", made / "x.caq", "--data", made / "x.npz", "--size", 30, "--features", 50)
    found = call(*argv, "--json")
    assert found.code == 0, found.err
    model = artifact.load(made / "x.caq")
    row = model.features.to_rows(model.graph).shape[1]
    assert found.json["features"] == {"samples": 50, "bytes": 50 * row}
    assert call("info", made / "x.caq", "--json").json["features"] == found.json["features"]
    assert f"features: of 50 more samples, {50 * row} bytes" in call("info", made / "x.caq").out
    assert call("core", made / "x.caq", "--data", made / "x.npz", "--size", 30).code == 0
    assert artifact.load(made / "x.caq").features is None  # drawn anew, as was asked for


def test_calibration_starts_from_it(made, call):
    argv = ("calibrate", made / "x.caq", "--data", made / "x.npz", "--target-domain", 2, "--batches", 2)
    refused = call(*argv)
    assert refused.code == 1 and "there is no core set in it; make one with `caq core`" in refused.err
    assert "core set: none" in call("info", made / "x.caq").out
    assert call("core", made / "x.caq", "--data", made / "x.npz", "--bytes", 6000, "--domains", "1").code == 0
    found = call(*argv, "--json")
    assert found.code == 0, found.err
    assert found.json["source_domains"] is None and found.json["samples"]["source_test"] == 70
    assert len(found.json["rows"]) == 3
    sized = call(*argv, "--core-size", 9)
    assert sized.code == 1 and "taken as it is" in sized.err
    assert call(*argv, "--source-domains", "0,1", "--core-size", 20, "--json").json["source_domains"] == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--size", 141), "1 to 140 samples"),
        (("--bytes", 10), "1 to 140 samples are possible"),
        (("--size", 2), "3 classes need at least 3"),
        (("--size", 9, "--domains", "7"), r"no training sample of domains \(7,\); there are \[0, 1\]"),
        (("--size", 9, "--domains", "7", "--data", "plain.npz"), "domain_train is needed"),
        (("--size", 9, "--out", "none/y.caq"), "no file can be written there"),
        (("--size", 9, "--bytes", 9), "not allowed with"),
        (
            ("--size", 30, "--features", 111),
            "features 111: 1 to 110 samples are possible",
        ),
        ((), "one of the arguments --size --bytes is required"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_the_file_stays(made, call, change, message):
    before = (made / "x.caq").read_bytes()
    change = tuple(made / part if part == "plain.npz" else part for part in change)
    found = call("core", made / "x.caq", "--data", made / "x.npz", *change)
    assert found.code in (1, 2) and re.search(message, found.err), found.err
    assert (made / "x.caq").read_bytes() == before


def test_training_keeps_one(call, tmp_path):
    pytest.importorskip("torch")
    from caq import data

    digits = data.load("digits")
    np.savez(
        tmp_path / "few.npz",
        **{key: getattr(digits, key)[:100] for key in ("x_train", "y_train", "x_test", "y_test")},
    )
    argv = ("--data", tmp_path / "few.npz", "--model", "mlp", "--epochs", 1, "--widths", "8,2", "--budgets", "a=0.5")
    drawn = ("--core-size", 20, "--core-method", "count", "--core-features", 70)
    found = call("train", *argv, "--out", tmp_path / "x.caq", *drawn, "--json")
    assert found.code == 0, found.err
    assert found.json["features"]["samples"] == 70
    many = call("train", *argv, "--out", tmp_path / "z.caq", "--core-size", 20, "--core-features", 81)
    assert many.code == 1 and "at most 80" in many.err and not (tmp_path / "z.caq").exists()
    assert found.json["core"]["samples"] == 20 == len(artifact.load(tmp_path / "x.caq").core.y)
    few = call("train", *argv, "--out", tmp_path / "z.caq", "--core-bytes", 900, "--core-features", 100)
    assert few.code == 1 and re.search(r"at most 8\d samples", few.err)
    small = call("train", *argv, "--out", tmp_path / "y.caq", "--core-size", 20, "--core-bytes", 900)
    assert small.code == 0 and re.search(r"core set: 1\d samples", small.out)
