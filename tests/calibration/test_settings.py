"""A background calibration's YAML, and its audit log."""

from __future__ import annotations

import json

import pytest

import caq
from caq.calibration.audit import AuditLog
from caq.calibration.config import LIMITS, CalibratorConfig
from caq.calibration.settings import Settings
from caq.errors import ConfigError
from caq.runtime import Runtime
from tests.calibration.streams import core_of, drifted, source

TEXT = """
state: kept
audit: audit.jsonl
queue: 40
rest: 2
pseudo_labels: 0.9
max_ms: 5000
max_bytes: 3000000
rungs: [statistics]
limits: {class: 0.3, factory: 0.02}
batch: 25
on_drift: false
forgetting: 0.03
"""


def written(tmp_path, text):
    path = tmp_path / "calibration.yaml"
    path.write_text(text)
    return path


def test_all_of_a_file_is_read(tmp_path):
    found = Settings.from_yaml(written(tmp_path, TEXT))
    assert (found.state, found.audit, found.queue) == (tmp_path / "kept", tmp_path / "audit.jsonl", 40)
    config = found.config
    assert (config.max_ms, config.max_bytes, config.rungs, config.batch) == (5000, 3_000_000, ("statistics",), 25)
    assert (config.limits.class_, config.limits.factory, config.limits.point) == (0.3, 0.02, LIMITS.point)
    assert found.rest == 2 and config.pseudo_labels == 0.9
    assert type(config.batch) is int and not config.on_drift and config.forgetting == 0.03
    assert Settings.from_yaml(written(tmp_path, "{}")) == Settings() and Settings().config == CalibratorConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batches: 20", "unknown key 'batches'; did you mean 'batch'?"),
        ("batch: 2.5", "batch: must be a whole number"),
        ("batch: many", "batch: must be a finite number"),
        ("on_drift: 1", "on_drift: must be true or false"),
        ("queue: 0", "queue: room for 1 sample"),
        ("rest: -1", "rest: seconds for each second"),
        ("pseudo_labels: 2", "pseudo_labels 2"),
        ("rungs: [biases, statistics]", "in this order"),
        ("rungs: [3]", r"rungs\[0\]: must be a text"),
        ("limits: {classes: 0.1}", "unknown key 'classes'"),
        ("limits: {class: 2}", "limits: .*0 to 1"),
        ("max_ms: 0", "max_ms 0"),
        ("state: 3", "state: must be a text"),
        ("- batch", "must be a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        Settings.from_yaml(written(tmp_path, text))
    assert "calibration.yaml" in str(error.value)


def test_a_runtime_calibrates_by_a_file(tmp_path):
    model, x, y = source()
    caq.save(model, tmp_path / "x.caq")
    calibration = Settings.from_yaml(written(tmp_path, TEXT)).open(tmp_path / "x.caq", core_of(model, x, y))
    with Runtime(tmp_path / "x.caq", calibration=calibration, auto=False) as runtime:
        for a, b in zip(drifted(x[:25]), y[:25], strict=True):
            runtime.learn_one(a, int(b))
        assert calibration.wait_idle(120)
    assert (tmp_path / "kept" / "a").exists()
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["what"] == "statistics" and entry["step"] == 1 and entry["time"].endswith("Z")
    assert [entry] == [{"time": entry["time"], **e} for e in calibration.history]


def test_an_audit_log_does_not_grow_for_ever(tmp_path):
    log = AuditLog(tmp_path / "a", max_bytes=300, clock=lambda: 0.0)
    for step in range(50):
        log({"step": step})
        assert all(path.stat().st_size < 360 for path in tmp_path.iterdir())
    lines = [json.loads(line) for name in ("a.1", "a") for line in (tmp_path / name).read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == list(range(steps[0], 50)) and len(steps) > 5 and lines[0]["time"] == "1970-01-01T00:00:00Z"
