"""The thermal fit on made-up runs of which everything is known; on the real ones if CAQ_DATA has them."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from caq.errors import MissingExtraError, TraceError
from simulators.fit import runs, thermal
from simulators.fit.__main__ import main
from simulators.parameters import load_thermal
from tests.simulators.recordings import BOARD, ROOMS, save_runs, thermal_arrays

ARRAYS = thermal_arrays()
FIRST = runs.BOARDS["atlas"][0]
COLUMNS = np.array(["TIME", "Main(mA)", "Main Voltage(V)", "TEMP"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_runs(tmp_path_factory.mktemp("data"), ARRAYS)


@pytest.fixture(scope="module")
def found(folder):
    return runs.read(folder, "atlas")


def test_the_grid(found):
    assert found.power_w.shape == found.temperature_c.shape == (299, 4)
    np.testing.assert_allclose(found.power_w[[0, -1], 1], [5.0, 2.5])
    np.testing.assert_allclose(found.start_c, np.array([*ROOMS, 21.0]) + 15)
    np.testing.assert_allclose(found.temperature_c[2], [ARRAYS[n][60, 2] for n in found.names], atol=0.05)


def test_the_board_is_found(found):
    fitted = thermal.fit(found.select([0, 1, 2]), thermal.BLANKS["atlas"])
    assert sum(fitted.resistance_k_per_w) == pytest.approx(7.0, rel=0.01)
    assert fitted.heat_capacity_j_per_k[1] == pytest.approx(150.0, rel=0.05)
    assert fitted.ambient_c == pytest.approx(np.mean(ROOMS), abs=0.2)
    assert fitted.idle_power_w == pytest.approx(2.5)
    left = thermal.predict(fitted, found.select([3]))
    after = left["first_half_hour"].error
    assert len(after) == 299 - 90 and np.median(np.abs(after)) < 0.05
    # The room of the last run is 1 K colder than the mean of the others.
    assert np.median(left["mean_room"].error) == pytest.approx(1.0, abs=0.1)


def test_without_scipy_the_extra_is_named(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"scipy.*caq\[sim\]"):
        thermal.fit(found, BOARD)


def test_what_is_left_out_is_not_seen(found, monkeypatch):
    seen = []

    def fit(others, blank):
        seen.append(others.names)
        return BOARD

    monkeypatch.setattr(thermal, "fit", fit)
    report = thermal.report(thermal.leave_out(found, BOARD))
    assert [set(found.names) - set(others) for others in seen] == [{name} for name in found.names]
    assert report["own_room"]["rmse_k"] < 0.05 and list(report["own_room"]["rmse_k_by_run"]) == list(found.names)
    with pytest.raises(TraceError, match="one run"):
        thermal.leave_out(found.select([0]), BOARD)


def infer(rows=400):
    table = np.stack([np.arange(rows), np.full(rows, 800.0), np.full(rows, 5.0), np.linspace(40, 60, rows)], axis=1)
    table[:3, 1:] = -1
    table[100:130, 3] = -1
    table[-50:, 3] = -1
    names = runs.BOARDS["pi_infer"]
    return {**dict.fromkeys(names, table), **{f"{name}_columns": COLUMNS for name in names}}


def test_missing_readings_stay_missing(tmp_path):
    found = runs.read(save_runs(tmp_path, infer()), "pi_infer")
    np.testing.assert_allclose(found.power_w, 4.0)
    assert found.start_c[0] == pytest.approx(40 + 3 * 20 / 399)  # the first row with both
    # A grid from row 3 on: readings around its second 120 are missing, and those after its end are not part of it.
    assert np.flatnonzero(np.isnan(found.temperature_c[:, 0])).tolist() == [5] and len(found.power_w) == 17


@pytest.mark.parametrize(
    ("row", "column", "value", "named"),
    [
        (3, 0, 0.0, f"{FIRST}, row 3: times must increase"),
        (4, 1, -2.0, f"{FIRST}, row 4: power must be from 0 to 100 W"),
        (5, 2, 200.0, f"{FIRST}, row 5: must be from -40 to 150 C"),
        (6, 2, np.nan, f"{FIRST}, row 6: must be finite"),
    ],
)
def test_bad_recordings_name_file_and_row(tmp_path, row, column, value, named):
    table = ARRAYS[FIRST].copy()
    table[row, column] = value
    with pytest.raises(TraceError, match=rf"thermal_power\.npz: {named}"):
        runs.read(save_runs(tmp_path, {**ARRAYS, FIRST: table}), "atlas")


def test_other_shapes_are_named(tmp_path):
    with pytest.raises(TraceError, match=f"{FIRST}: must have the columns"):
        runs.read(save_runs(tmp_path, {**ARRAYS, FIRST: ARRAYS[FIRST][:, :2]}), "atlas")
    with pytest.raises(TraceError, match=f"{FIRST}: less than 200 s"):
        runs.read(save_runs(tmp_path, {**ARRAYS, FIRST: ARRAYS[FIRST][:100]}), "atlas")
    bad = {**infer(), "gnd_pi_infer_yolov5lite_columns": np.array(["TIME", "a", "b", "TEMP"])}
    with pytest.raises(TraceError, match="yolov5lite_columns: must name 4 columns"):
        runs.read(save_runs(tmp_path, bad), "pi_infer")


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(thermal, "fit", lambda runs, blank: BOARD)
    out, report = tmp_path / "board.yaml", tmp_path / "report.json"
    assert main(["thermal", "--data", str(folder), "--board", "atlas", "--out", str(out), "--report", str(report)]) == 0
    assert sum(load_thermal(out).resistance_k_per_w) == 7.0
    assert json.loads(report.read_text())["first_half_hour"]["rmse_k"] < 0.2
    assert "first_half_hour" in capsys.readouterr().out
    assert main(["thermal", "--data", str(tmp_path), "--out", str(out)]) == 1
    assert "thermal_power.npz: cannot be read" in capsys.readouterr().err


@pytest.mark.skipif("CAQ_DATA" not in os.environ, reason="CAQ_DATA is not set")
@pytest.mark.parametrize(("board", "shipped"), [("pi", "raspberry-pi-4"), ("atlas", "atlas-200")])
def test_the_real_runs(board, shipped):
    found = runs.read(Path(os.environ["CAQ_DATA"]), board)
    for k in range(len(found.names)):
        error = thermal.predict(load_thermal(shipped), found.select([k]))["own_room"].error
        assert np.sqrt(np.mean(error**2)) < 1.0
