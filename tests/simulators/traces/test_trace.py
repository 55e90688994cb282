import math

import numpy as np
import pytest

from caq.errors import ConfigError, TraceError
from simulators.traces import Trace, read, resample, split, write

NAN = math.nan


def trace(times_s=(0, 60, 120, 600), charge=(0.9, 0.8, NAN, 0.5)):
    return Trace(np.array(times_s), {"state_of_charge": np.array(charge)}, "phone-03.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.npz"])
def test_read_and_write(name, tmp_path):
    path = tmp_path / name
    write(path, Trace(np.array([0, 1]), {"cpu_load": np.array([NAN, 1.0])}, "me", True, {"seed": "4"}))
    found = read(path)
    np.testing.assert_array_equal(found.times_s, [0, 1])
    np.testing.assert_array_equal(found.columns["cpu_load"], [NAN, 1])
    assert found.generated and found.metadata["seed"] == "4" and found.source == str(path)


def test_errors_name_file_and_row(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("t_s,state_of_charge\n0,0.5\n60,1.5\n")
    with pytest.raises(TraceError, match=r"bad\.csv: line 3, column state_of_charge: 1\.5 is not 0\.\.1"):
        read(path)
    with pytest.raises(TraceError, match=r"phone-03\.csv: row 1, column t_s: .* out of order"):
        trace((1, 0), (0.5, 0.5))


def test_a_device_is_named_by_the_comment_or_the_file():
    assert trace().device == "phone-03"
    assert Trace(np.array([0]), {"cpu_load": np.array([0])}, "x.csv", metadata={"device": "abc"}).device == "abc"


def test_what_is_given_stays_apart():
    charge = np.array([0.5])
    held = Trace(np.array([0.0]), {"state_of_charge": charge}, "me")
    charge[0] = 0.9
    assert held.columns["state_of_charge"][0] == 0.5
    with pytest.raises(ValueError):
        held.columns["state_of_charge"][0] = 1


def test_resampling_holds_values_and_keeps_gaps():
    found = resample(trace(), 30)
    # Median interval 60 s, so a value lives for 180 s, but for the missing one of 120 s.
    expected = [0.9, 0.9, 0.8, 0.8, *[NAN] * 16, 0.5]
    np.testing.assert_array_equal(found.times_s, np.arange(21) * 30)
    np.testing.assert_array_equal(found.columns["state_of_charge"], expected)
    gap = resample(trace((0, 60, 120, 600), (0.9, 0.8, 0.7, 0.5)), 60, max_gap_s=120).columns["state_of_charge"]
    np.testing.assert_array_equal(gap, [0.9, 0.8, 0.7, 0.7, 0.7, *[NAN] * 5, 0.5])


def test_resampling_onto_its_own_step_changes_nothing():
    even = trace((10, 20, 30), (0.3, NAN, 0.1))
    again = resample(even, 10)
    np.testing.assert_array_equal(again.times_s, even.times_s)
    np.testing.assert_array_equal(again.columns["state_of_charge"], even.columns["state_of_charge"])


@pytest.mark.parametrize("options", [{"step_s": 0}, {"step_s": NAN}, {"step_s": 1, "max_gap_s": -1}])
def test_wrong_steps(options):
    with pytest.raises(ConfigError, match="_s must be a finite number above 0"):
        resample(trace(), **options)


def test_a_split_is_stable_and_about_as_large_as_asked():
    devices = [f"phone-{number:04d}" for number in range(2000)]
    found = split(devices, held_out=0.3, seed=1)
    assert sorted(found.train + found.held_out) == devices
    assert len(found.held_out) / 2000 == pytest.approx(0.3, abs=0.03)
    fewer = split(devices[:100], held_out=0.3, seed=1)
    assert set(fewer.held_out) <= set(found.held_out) and set(fewer.train) <= set(found.train)
    assert split(devices, held_out=0.3, seed=2) != found
    # The hash is of the text alone: the same on every machine and Python.
    assert split("abcdefgh").held_out == ("f", "h")


@pytest.mark.parametrize(
    ("devices", "options", "words"),
    [
        (["a", "a"], {}, "'a' stands there twice"),
        (["a", "b"], {"held_out": 1.0}, "held_out must be"),
        (["a"], {"held_out": 0.999}, "no train device among 1"),
        ([], {}, "no held-out device among 0"),
    ],
)
def test_wrong_splits(devices, options, words):
    with pytest.raises(ConfigError, match=words):
        split(devices, **options)
