"""record: what the sensors say is in the file, also when the recording is killed."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from caq.cli import record
from caq.context import ContextMonitor, RecordedContext, Source, missing, sensed
from caq.context import recording as files_of

#: Two comments and the names of the columns.
HEAD_LINES = 3


class Sensors:
    """One more hundredth of the charge is gone at each poll; no temperature."""

    name = "test"
    fields = ("state_of_charge", "charging", "temperature_c")

    def __init__(self):
        self.polls = 0

    def read(self):
        self.polls += 1
        return {
            "state_of_charge": sensed("state_of_charge", 1 - self.polls / 100, "test"),
            "charging": sensed("charging", True, "test"),
            "temperature_c": missing("temperature_c", "test", "no such sensor"),
        }


@pytest.fixture
def sensors(monkeypatch):
    source: Source = Sensors()
    monkeypatch.setattr(record, "ContextMonitor", partial(ContextMonitor, sources=[source]))
    return source


def test_what_is_recorded_is_replayed(sensors, tmp_path, call, files):
    path = tmp_path / "day.csv"
    called = call("record", "--out", path, "--period", "0.02", "--duration", "0.4")
    assert called.code == 0
    assert called.out.count("temperature_c: left empty: no such sensor") == 1
    found = files_of.read(path)
    assert list(found.columns) == list(files_of.COLUMNS) and not found.generated
    charge = found.columns["state_of_charge"]
    assert 3 <= len(charge) <= 20 and 0.9 < charge[0] < 0.99 and (np.diff(charge) <= 0).all() and charge[-1] < charge[0]
    assert (found.columns["charging"] == 1).all() and np.isnan(found.columns["temperature_c"]).all()
    replay = call("run", files.artifact, "--data", files.data, "--trace", path, "--json").json
    assert replay["context"] == f"{path} (recorded)" and replay["inferences"] == len(charge)
    assert RecordedContext.from_file(path).read().state_of_charge.value == charge[0]


def test_json(sensors, tmp_path, call):
    path = tmp_path / "day.csv"
    found = call("record", "--out", path, "--period", "0.05", "--duration", "0.1", "--json").json
    assert found["rows"] == 2 and found["missing"]["temperature_c"] == "no such sensor"
    assert found["last_t_s"] == files_of.read(path).columns["t_s"][-1]


def test_a_file_that_exists_is_refused_or_appended_to(sensors, tmp_path, call):
    path = tmp_path / "day.csv"
    argv = ("record", "--out", path, "--period", "0.05", "--duration", "0.1")
    assert call(*argv).code == 0
    before = path.read_text()
    again = call(*argv)
    assert again.code == 1 and "exists already" in again.err and "--append" in again.err
    assert path.read_text() == before
    assert call(*argv, "--append").code == 0
    assert path.read_text().startswith(before) and len(files_of.read(path).columns["t_s"]) == 4


@contextmanager
def recording_forever(path):
    """A process that has recorded three rows and goes on."""
    # A shell may have started the tests with this signal ignored, which its children inherit.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from caq.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "record", "--out", str(path), "--period", "0.02"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (path.exists() and path.read_text().count("\n") >= HEAD_LINES + 3) and process.poll() is None:
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def test_a_killed_recording_reads_to_its_last_row(tmp_path):
    path = tmp_path / "day.csv"
    with recording_forever(path) as process:
        process.kill()
        process.wait()
        assert len(files_of.read(path).columns["t_s"]) >= 3


def test_control_c_ends_a_recording(tmp_path):
    path = tmp_path / "day.csv"
    with recording_forever(path) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert f"{len(files_of.read(path).columns['t_s'])} rows in" in out
