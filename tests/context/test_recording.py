"""Files of recordings: what is written is read, and what is wrong is named. (CSV's errors: test_trace.py)"""

import io
import math
import zipfile

import numpy as np
import pytest

from caq.context import RecordedContext, recording
from caq.errors import TraceError

COLUMNS = {
    "t_s": np.array([0.0, 60.25, 3600.0]),
    "state_of_charge": np.array([0.1 + 0.2, math.nan, 1.0]),
    "charging": np.array([False, True, True]),
}


@pytest.mark.parametrize("name", ["day.csv", "day.npz", "day.txt"])
def test_what_is_written_is_read(name, tmp_path):
    path = tmp_path / name
    recording.write(path, COLUMNS, {"generated": "true", "seed": "5", "device": "a phone: mine"})
    found = recording.read(path)
    assert found.generated and dict(found.metadata) == {"generated": "true", "seed": "5", "device": "a phone: mine"}
    assert list(found.columns) == list(COLUMNS)
    for column, values in COLUMNS.items():
        np.testing.assert_array_equal(found.columns[column], values)
        assert found.columns[column].dtype == np.float64 and not found.columns[column].flags.writeable
    replay = RecordedContext.from_file(path)
    assert replay.generated and replay.seek(60.25).charging.value is True
    assert replay.read().state_of_charge.value is None


def test_csv_is_plain(tmp_path):
    path = tmp_path / "day.csv"
    recording.write(path, COLUMNS)
    lines = "t_s,state_of_charge,charging\n0,0.30000000000000004,0\n60.25,,1\n3600,1,1\n"
    assert path.read_text() == lines
    assert not recording.read(path).generated


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, ["empty"]),
        ({"t_s": [0.0, 1.0], "cpu_lod": [0, 0]}, ["unknown column 'cpu_lod'", "did you mean 'cpu_load'"]),
        ({"t_s": [0.0, 2.0, 1.0], "cpu_load": [0, 0, 0]}, ["row 2", "t_s", "out of order"]),
        ({"t_s": [0.0, math.nan], "cpu_load": [0, 0]}, ["row 1", "needs a time"]),
        ({"t_s": [0.0, 1.0], "state_of_charge": [0.5, 50]}, ["row 1", "state_of_charge", "50", "0..1"]),
        ({"t_s": [0.0, 1.0], "cpu_load": [0.5]}, ["cpu_load", "shape"]),
        ({"t_s": [], "cpu_load": []}, ["at least one row"]),
        ({"cpu_load": [0.5]}, ["no column t_s"]),
        ({"t_s": [0.0], "cpu_load": ["busy"]}, ["cpu_load", "numbers"]),
        ({"t_s": [0.0], "cpu_load": [1j]}, ["cpu_load", "numbers"]),
        ({"t_s": [0.0], "cpu_load": [0.1], "generated": "maybe"}, ["generated", "maybe"]),
    ],
)
def test_bad_arrays_in_a_file(arrays, words, tmp_path):
    path = saved(tmp_path / "bad.npz", **arrays)
    with pytest.raises(TraceError) as caught:
        recording.read(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "bad.npz"
    array = io.BytesIO()
    np.save(array, np.arange(3))
    pickled = io.BytesIO()
    np.savez(pickled, t_s=np.array([0, None]))
    whole = saved(tmp_path / "whole.npz", t_s=np.arange(500.0), cpu_load=np.zeros(500)).read_bytes()
    damaged = bytearray(whole)
    damaged[1500] ^= 0xFF
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("readme.txt", "no array")
    for content in (
        b"",
        b"t_s,cpu_load\n0,0\n",
        whole[:-50],
        damaged,
        array.getvalue(),
        pickled.getvalue(),
        other.getvalue(),
    ):
        path.write_bytes(content)
        with pytest.raises(TraceError, match=r"bad\.npz"):
            recording.read(path)
    with pytest.raises(TraceError, match=r"nowhere\.npz"):
        recording.read(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("name", ["day.csv", "day.npz"])
@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        ({"t_s": [0, 1], "cpu_load": [0.5]}, {}),
        ({"t_s": [0, 1], "cpu_load": [0.5, 1.5]}, {}),
        ({"t_s": [0], "cpu_load": [0.5]}, {"generated": "perhaps"}),
        ({"t_s": [0], "cpu_load": [0.5]}, {"note": "two\nlines"}),
        ({"t_s": [0], "cpu_load": [0.5]}, {"a:b": "c"}),
        ({"t_s": [0], "cpu_load": [0.5]}, {"t_s": "c"}),
    ],
)
def test_nothing_is_written_that_cannot_be_read(columns, metadata, name, tmp_path):
    with pytest.raises(TraceError, match=name):
        recording.write(tmp_path / name, columns, metadata)
    assert not list(tmp_path.iterdir())
