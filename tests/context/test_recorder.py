import math

import numpy as np
import pytest

from caq.context import Context, RecordedContext, recording
from caq.context.recorder import Recorder
from caq.errors import TraceError

#: Of a moment at which nothing was known, its end missing.
ROW = "0" + "," * (len(recording.COLUMNS) - 1)


class Clock:
    """Both clocks of a machine; the monotonic one starts anywhere."""

    def __init__(self):
        self.now_s = 1000.0
        self.wall_s = 1.7e9

    def pass_(self, seconds):
        self.now_s += seconds
        self.wall_s += seconds

    def recorder(self, path, **options):
        return Recorder(path, clock=lambda: self.now_s, wall=lambda: self.wall_s, **options)


def context(charge):
    return Context.from_values(state_of_charge=charge, charging=False)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "day.csv"


def record(clock, path, charges, period_s=60, **options):
    with clock.recorder(path, **options) as recorder:
        for charge in charges:
            recorder.add(context(charge))
            clock.pass_(period_s)
        assert recorder.rows == len(charges)


def columns(path):
    return recording.read(path).columns


def test_rows_are_in_the_file_at_once(clock, path):
    with clock.recorder(path) as recorder:
        for rows, charge in enumerate((0.3, 0.1 + 0.2, None), 1):
            assert recorder.add(context(charge)) == 60 * (rows - 1)
            assert len(columns(path)["t_s"]) == rows
            clock.pass_(60)
    np.testing.assert_array_equal(columns(path)["state_of_charge"], [0.3, 0.1 + 0.2, math.nan])
    found = recording.read(path)
    assert found.metadata == {"generated": "false", "started": "2023-11-14T22:13:20.000+00:00"}
    assert RecordedContext.from_file(path).seek(60).charging.value is False


def test_what_is_stale_is_left_empty(clock, path):
    stale = RecordedContext({"t_s": [0], "cpu_load": [0.5]}).seek(1e6)
    assert stale.cpu_load.value == 0.5
    with clock.recorder(path) as recorder:
        recorder.add(stale)
    assert np.isnan(columns(path)["cpu_load"]).all()


def test_no_two_rows_at_one_time(clock, path):
    with clock.recorder(path) as recorder:
        recorder.add(context(0.5))
        recorder.add(context(0.4))
        assert recorder.rows == 1
    assert columns(path)["state_of_charge"].tolist() == [0.5]


def test_appending_keeps_the_gap(clock, path):
    record(clock, path, [0.9, 0.8])
    clock.pass_(3600)
    clock.now_s = 5.0  # the machine was started anew
    record(clock, path, [0.5, 0.4], append=True)
    assert columns(path)["t_s"].tolist() == [0, 60, 3720, 3780]
    assert path.read_text().count("t_s") == 1


def test_appending_after_the_wall_clock_went_back(clock, path):
    record(clock, path, [0.9, 0.8])
    clock.wall_s -= 1e6
    record(clock, path, [0.5, 0.4], append=True)
    assert columns(path)["t_s"].tolist() == [0, 60, 61, 121]


def test_appending_to_nothing_begins(clock, path):
    record(clock, path, [0.9], append=True)
    assert columns(path)["t_s"].tolist() == [0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("t_s,cpu_load\n0,0.5\n", "not written by a recorder"),
        ("", "is empty"),
        (recording.head(recording.COLUMNS, {}) + ROW + "\n", "no line '# started:"),
        (recording.head(recording.COLUMNS, {"started": "2026-11-21"}) + "0,0.5", "line 3 has 2 cells"),
        (
            recording.head(recording.COLUMNS, {"started": "2026-11-21"}) + ROW,
            "no end, as if cut off",
        ),
        (
            recording.head(recording.COLUMNS, {"generated": "true"}) + ROW,
            "not written by a recorder",
        ),
    ],
)
def test_what_cannot_be_gone_on_with_stays_as_it_is(text, words, path):
    path.write_text(text)
    with pytest.raises(TraceError, match=words) as caught:
        Recorder(path, append=True)
    assert str(path) in str(caught.value) and path.read_text() == text


def test_a_file_that_exists_is_refused(clock, path):
    path.write_text("mine")
    with pytest.raises(TraceError, match=r"day\.csv: exists already.*--append"):
        Recorder(path)
    assert path.read_text() == "mine"


def test_names_that_cannot_be(tmp_path):
    with pytest.raises(TraceError, match="recorded as CSV"):
        Recorder(tmp_path / "a.npz")
    with pytest.raises(TraceError, match="cannot be written"):
        Recorder(tmp_path / "none" / "a.csv")
