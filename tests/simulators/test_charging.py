import numpy as np
import pytest

from caq.errors import ConfigError, TraceError
from simulators.battery import Battery
from simulators.charging import read_irradiance, recorded, scheduled, solar
from simulators.parameters import load_battery

HOURS = np.arange(48) * 3600.0
COLUMNS = np.array(["ghi_w_m2", "dni_w_m2", "dhi_w_m2", "air_temp_c"])


def test_windows_repeat_daily_and_wrap_midnight():
    watts = scheduled(HOURS, [(22 * 3600, 6 * 3600), (12 * 3600, 13 * 3600)], 7.5)
    plugged = np.flatnonzero(watts[:24])
    assert plugged.tolist() == [0, 1, 2, 3, 4, 5, 12, 22, 23]
    np.testing.assert_array_equal(watts[:24], watts[24:])
    assert set(watts.tolist()) == {0.0, 7.5}


@pytest.mark.parametrize("window", [(-1, 5), (0, 90_000), (5, 5), (float("nan"), 5)])
def test_other_windows_are_refused(window):
    with pytest.raises(ConfigError, match=r"windows_s\[1\]"):
        scheduled(HOURS, [(0, 1), window], 5.0)
    with pytest.raises(ConfigError, match="power_w"):
        scheduled(HOURS, [], -1.0)


def test_a_recorded_column_keeps_its_gaps():
    np.testing.assert_array_equal(recorded(np.array([0, 1, np.nan]), 5.0), [0.0, 5.0, np.nan])
    with pytest.raises(TraceError, match=r"row 2.*not 0\.5"):
        recorded(np.array([0, 1, 0.5]), 5.0)


def _year(tmp_path, **changes):
    table = np.zeros((8760, 4), np.float32)
    table[:, 0] = 800 * np.maximum(np.sin((np.arange(8760) % 24 - 6) / 12 * np.pi), 0)
    arrays = {"place": table, "columns": COLUMNS, **changes}
    np.savez(tmp_path / "solar.npz", **arrays)
    return tmp_path / "solar.npz"


def test_solar_power_follows_the_day(tmp_path):
    year = read_irradiance(_year(tmp_path), "place")
    watts = solar(year, HOURS + 1800, area_m2=0.02, efficiency=0.15)
    assert watts[:6].max() == 0 and watts[12] == pytest.approx(800 * 0.02 * 0.15)
    np.testing.assert_allclose(solar(year, HOURS + 365 * 86_400, 0.02, 0.15), solar(year, HOURS, 0.02, 0.15))
    between = solar(year, year.times_s[9:11].mean(keepdims=True), 1.0, 1.0)
    assert between[0] == pytest.approx(year.ghi_w_m2[9:11].mean())


def test_a_panel_carries_a_sensor_through_the_nights(tmp_path):
    year, battery = read_irradiance(_year(tmp_path), "place"), Battery(load_battery("sensor-500mah"))
    harvest = solar(year, np.arange(3 * 288) * 300.0, area_m2=0.004, efficiency=0.15)
    state = battery.start(np.full(2, 0.9))
    for watts in harvest:
        # 10 mW all day; the second one has no panel.
        state, voltage = battery.step(state, 0.01 - np.array([watts, 0.0]), 15.0, 300.0)
    assert state.state_of_charge[0] > 0.85 and battery.cut_off(state, voltage).tolist() == [False, False]
    assert state.state_of_charge[1] == pytest.approx(0.9 - 3 * 24 * 0.01 / 3.9 / 0.5, abs=0.03)


@pytest.mark.parametrize(("area", "efficiency", "named"), [(0, 0.1, "area_m2"), (1, 0, "efficiency"), (1, 2, "effic")])
def test_impossible_panels_are_refused(tmp_path, area, efficiency, named):
    with pytest.raises(ConfigError, match=named):
        solar(read_irradiance(_year(tmp_path), "place"), HOURS, area, efficiency)


def test_bad_years_name_file_and_row(tmp_path):
    table = np.zeros((8760, 4))
    table[17, 0] = -3
    with pytest.raises(TraceError, match=r"solar\.npz: place, row 17: ghi_w_m2"):
        read_irradiance(_year(tmp_path, place=table), "place")
    with pytest.raises(TraceError, match="no array 'elsewhere'"):
        read_irradiance(_year(tmp_path), "elsewhere")
    with pytest.raises(TraceError, match="'ghi_w_m2' is missing"):
        read_irradiance(_year(tmp_path, columns=np.array(["ghi", "b", "c", "air_temp_c"])), "place")
    with pytest.raises(TraceError, match="4 columns"):
        read_irradiance(_year(tmp_path, columns=COLUMNS[[0, 3]]), "place")
