"""The battery's fit on made-up cells of which everything is known; on the real ones if CAQ_DATA has them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caq.errors import TraceError
from simulators.fit import battery, circuit, li_ion
from simulators.fit.__main__ import main
from simulators.fit.circuit import Own
from simulators.parameters import load_battery
from tests.simulators.recordings import CELL, CELLS, FADE, GROWTH, discharge_arrays, save_discharges

ARRAYS = discharge_arrays()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_discharges(tmp_path_factory.mktemp("data"), ARRAYS)


@pytest.fixture(scope="module")
def discharges(folder):
    found, skipped = li_ion.read(folder)
    assert not skipped
    return found


def truth(discharges):
    new = np.array(list(CELLS.values()))[discharges.cell]
    n = discharges.cycle
    return Own(new[:, 0] * (1 - FADE) ** n, new[:, 1] * (1 + GROWTH) ** n)


def test_the_grid(discharges):
    assert discharges.names == ("A", "B") and discharges.cycle.tolist() == [0, 1, 2] * 2
    np.testing.assert_allclose(discharges.load_a, 2.0)
    np.testing.assert_allclose(discharges.duration_s[: li_ion.LOAD_STEPS].sum(0), discharges.cutoff_s, rtol=1e-6)
    np.testing.assert_allclose(discharges.voltage_v[li_ion.LOAD_STEPS - 1], li_ion.CUTOFF_V, atol=1e-3)
    rest = discharges.voltage_v[li_ion.LOAD_STEPS + li_ion.TAIL_STEPS :]
    assert np.isfinite(rest[:5]).all() and np.isnan(rest[-1]).all()  # records end after 200 s, the grid after 400


def test_a_discharge_that_stops_early_is_said_to(tmp_path):
    arrays = {**ARRAYS, "voltage_mv": ARRAYS["voltage_mv"].copy()}
    first = slice(0, ARRAYS["cycle_offsets"][1])
    arrays["voltage_mv"][first] = np.maximum(arrays["voltage_mv"][first], 2800)
    found, skipped = li_ion.read(save_discharges(tmp_path, arrays))
    assert len(found.cell) == 5
    assert skipped == [f"A discharge 0 (rows 0 to {first.stop - 1}): stops above 2.7 V, or starts below"]


def test_capacity_and_resistance_of_a_discharge_are_found(discharges):
    found = circuit.fit_own(CELL, discharges)
    np.testing.assert_allclose(found.capacity_ah, truth(discharges).capacity_ah, rtol=0.01)
    np.testing.assert_allclose(found.resistance_factor, truth(discharges).resistance_factor, rtol=0.03)


def test_the_circuit_is_fitted(discharges):
    some = discharges.select(np.array([0, 5]))
    textbook, fitted = (circuit.fit(some, rounds).rmse_v for rounds in (0, 2))
    assert fitted < textbook / 2


def test_the_time_to_the_cut_off(discharges):
    for held in (False, True):
        found = battery.time_to_cutoff(CELL, discharges, truth(discharges), held)
        np.testing.assert_allclose(found, discharges.cutoff_s, rtol=0.005)
    more = battery.time_to_cutoff(CELL, discharges, Own(*(v * 1.1 for v in truth(discharges))), False)
    assert (more > discharges.cutoff_s * 1.03).all()


def test_what_is_left_out_is_not_seen(discharges, monkeypatch):
    seen = []
    ageing = battery.Ageing(1.9, 1.07, FADE, GROWTH)

    def fit(others):
        seen.append(set(others.cell.tolist()))
        return battery.Population(CELL, {}, ageing)

    monkeypatch.setattr(battery, "fit", fit)
    folds = [found for _, found in battery.leave_out(discharges, discharges.cell)]
    assert seen == [{1}, {0}]
    assert [fold["population"].cell for fold in folds] == ["A", "B"]
    for fold in folds:
        assert list(fold) == list(battery.CASES)
        assert fold["previous_discharge"].discharges.cycle.tolist() == [1, 2]
        # The cells age by exactly this, so what one discharge tells holds for the next, and the mean cell does not.
        for case in ("first_discharge", "previous_discharge", "own_discharge"):
            assert np.abs(fold[case].cutoff_error).max() < 0.01 and fold[case].rmse_v.max() < 0.01
        assert np.abs(fold["population"].cutoff_error).min() > 0.02
    report = battery.report({"cell": folds, "condition": folds})
    assert report["by_cell"]["B"]["previous_discharge"]["discharges"] == 2
    assert report["cell"]["population"]["time_to_cutoff_error_percent"]["median"] > 2


def test_too_little_to_leave_out(discharges):
    with pytest.raises(TraceError, match="at one temperature"):
        next(battery.leave_out(discharges, discharges.ambient_c))
    with pytest.raises(TraceError, match="cell A: ageing needs two"):
        battery.fit(discharges.select(np.array([0, 3, 4])))


def changed(name, row, value):
    array = ARRAYS[name].astype(np.float64)
    array[row] = value
    return {name: array}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed("t_s", 7, np.nan), "t_s, row 7: must be finite"),
        (changed("t_s", 7, 5.0), "t_s, row 7: must increase"),
        (changed("voltage_mv", 9, 6000), "voltage_mv, row 9: must be from 0 to 5000 mV, not 6000"),
        (changed("current_ma", 9, -30_000), "current_ma, row 9"),
        (changed("temp_c_x100", 9, 20_000), "temp_c_x100, row 9"),
        (changed("cycle_cell", 2, 9), "cycle_cell, row 2: must be below 2"),
        (changed("cycle_offsets", 1, 10**6), "cycle_offsets, row 2: must not decrease"),
        (changed("cycle_offsets", -1, 10**6), "cycle_offsets: must go from 0 to"),
        ({"t_s": ARRAYS["t_s"][:-1]}, "voltage_mv: has"),
        ({"ambient_c": ARRAYS["ambient_c"][:-1]}, "ambient_c: has 5 rows for 6"),
        ({"t_s": ARRAYS["t_s"][None]}, "t_s: must be numbers in 1 dimensions"),
        ({"t_s": np.array(["a"])}, "t_s: must be numbers"),
        ({"current_ma": ARRAYS["current_ma"] * 0}, "no discharge reaches"),
    ],
)
def test_bad_recordings_name_file_and_row(tmp_path, change, named):
    with pytest.raises(TraceError, match=rf"discharge\.npz: .*{named}"):
        li_ion.read(save_discharges(tmp_path, {**ARRAYS, **change}))


def test_files_that_are_none(tmp_path, folder):
    with pytest.raises(TraceError, match="cannot be read"):
        li_ion.read(tmp_path)
    for content in (b"", b"PK\x03\x04 not a zip", b"text", (folder / li_ion.FILE).read_bytes()[:-200]):
        path = tmp_path / li_ion.FILE
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(TraceError, match=r"discharge\.npz: is no \.npz file"):
            li_ion.read(tmp_path)
    with pytest.raises(TraceError, match="no array 't_s'"):
        li_ion.read(save_discharges(tmp_path, {k: v for k, v in ARRAYS.items() if k != "t_s"}))
    np.savez(tmp_path / li_ion.FILE, **{**ARRAYS, "t_s": np.array([{}], object)})
    with pytest.raises(TraceError, match="plain arrays"):
        li_ion.read(tmp_path)


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(circuit, "fit", lambda discharges: circuit.Fitted(CELL, truth(discharges), 0.0))
    out, report = tmp_path / "cell.yaml", tmp_path / "report.json"
    arguments = ["battery", "--data", str(folder), "--out", str(out), "--report", str(report), "--no-check"]
    assert main(arguments) == 0
    found = load_battery(out)
    assert found.capacity_ah == pytest.approx(np.sqrt(2.0 * 1.8), rel=0.01)
    assert found.r0_ohm == pytest.approx(CELL.r0_ohm * np.sqrt(1.15), rel=0.03)
    assert found.capacity_fade_per_cycle == pytest.approx(FADE, abs=0.003)
    assert found.resistance_growth_per_cycle == pytest.approx(GROWTH, abs=0.01)
    assert json.loads(report.read_text()) == {}
    assert main([*arguments, "--ambient", "43"]) == 1
    assert main(["battery", "--data", str(tmp_path), "--out", str(out)]) == 1
    assert "discharge.npz: cannot be read" in capsys.readouterr().err


@pytest.mark.skipif("CAQ_DATA" not in os.environ, reason="CAQ_DATA is not set")
def test_the_real_cells():
    discharges, skipped = li_ion.read(Path(os.environ["CAQ_DATA"]))
    assert len(discharges.cell) == 830 and len(skipped) == 2
    shipped = replace(load_battery("nasa-18650"), capacity_fade_per_cycle=0.0, resistance_growth_per_cycle=0.0)
    some = discharges.select(np.arange(1, 830, 40))
    error = circuit.voltages(shipped, some, circuit.fit_own(shipped, some)) - some.voltage_v
    assert np.median(np.sqrt((error[: li_ion.LOAD_STEPS] ** 2).mean(0))) < 0.04
