from dataclasses import replace

import pytest

from caq.errors import ConfigError
from simulators.battery import BatteryParameters
from simulators.parameters import load_battery, load_thermal, names, write
from simulators.thermal import ThermalParameters

BATTERIES, BOARDS = names(BatteryParameters), names(ThermalParameters)


def test_what_is_shipped():
    assert BATTERIES == ["nasa-18650", "phone-4000mah", "sensor-500mah"]
    assert BOARDS == ["atlas-200", "camera", "phone", "raspberry-pi-4"]


@pytest.mark.parametrize("name", BATTERIES)
def test_batteries_are_plausible_and_round_trip(name, tmp_path):
    found = load_battery(name)
    assert 3.5 < found.energy_j / 3600 / found.capacity_ah < 4  # mean volts
    assert "NASA" in found.source
    write(found, tmp_path / "again.yaml", "written by a test")
    assert load_battery(tmp_path / "again.yaml") == found


@pytest.mark.parametrize("name", BOARDS)
def test_boards_are_plausible_and_round_trip(name, tmp_path):
    found = load_thermal(name)
    assert 10 < found.ambient_c < 35 and 2 < sum(found.resistance_k_per_w) < 30
    write(found, tmp_path / "again.yaml", "written by a test")
    assert load_thermal(tmp_path / "again.yaml") == found


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'phone-4000mah'"):
        load_battery("phone-4000")
    with pytest.raises(ConfigError, match="did you mean 'raspberry-pi-4'"):
        load_thermal("raspberry-pi-5")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("r0_ohm:", "r0_ohms:"), "unknown key 'r0_ohms'; did you mean 'r0_ohm'"),
        (("r0_ohm:", "r1_ohm: 1\nr0_ohm:"), "stands there twice"),
        (("max_v: 4.2", "max_v: much"), "max_v: must be a finite number"),
        (("max_v: 4.2", "max_v: 1.0"), "max_v: must be above cutoff_v"),
        (("max_v: 4.2\n", ""), "'max_v' is missing"),
        (("ocv_v: [", "ocv_v: [none, "), r"ocv_v\[0\]"),
        (("cells_in_series: 1", "cells_in_series: 1.5"), "cells_in_series: must be a whole number"),
    ],
)
def test_bad_files_are_named(tmp_path, change, named):
    path = tmp_path / "mine.yaml"
    write(replace(load_battery("nasa-18650"), title="mine"), path, "test")
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(ConfigError, match=f"mine.yaml.*{named}"):
        load_battery(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_thermal(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(load_battery("nasa-18650"), tmp_path / "no" / "folder.yaml", "test")
