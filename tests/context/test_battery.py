from types import SimpleNamespace

import psutil
import pytest

from caq.context import Quality
from caq.context.battery import BatterySource, psutil_battery
from caq.context.power import PowerSource
from tests.context.trees import plant, supply


def sense(root):
    readings = BatterySource(root).read()
    return readings["state_of_charge"], readings["charging"]


def test_energy_is_divided_by_energy(tmp_path):
    # The charge pair says 0.9: a source that mixes the units gives neither.
    files = {"energy_now": 20_000_000, "energy_full": 40_000_000, "charge_now": 900, "charge_full": 1000}
    plant(tmp_path, supply("BAT0", type="Battery", status="Discharging", **files))
    charge, charging = sense(tmp_path)
    assert charge.value == 0.5
    assert charge.quality is Quality.MEASURED
    assert charging.value is False


def test_charge_counts_where_energy_has_no_full(tmp_path):
    files = {"energy_now": 20_000_000, "charge_now": 900_000, "charge_full": 1_000_000, "capacity": 12}
    plant(tmp_path, supply("axp20x-battery", type="Battery", status="Charging", **files))
    charge, charging = sense(tmp_path)
    assert charge.value == pytest.approx(0.9)
    assert charging.value is True


@pytest.mark.parametrize(
    "broken",
    [
        {"energy_now": 30, "energy_full": 0},
        {"energy_now": 50, "energy_full": 40},
        {"energy_now": -1, "energy_full": 40},
        {"energy_now": "", "energy_full": 40},
        {"energy_now": "unknown", "energy_full": 40},
    ],
)
def test_capacity_serves_where_the_pair_is_broken(tmp_path, broken):
    plant(tmp_path, supply("BAT0", type="Battery", status="Discharging", capacity=73, **broken))
    assert sense(tmp_path)[0].value == 0.73


def test_a_little_more_than_full_is_full(tmp_path):
    plant(tmp_path, supply("BAT0", type="Battery", status="Full", energy_now=41, energy_full=40))
    assert sense(tmp_path)[0].value == 1.0


def test_the_keyboards_battery_is_not_the_devices(tmp_path):
    plant(tmp_path, supply("a-keyboard", type="Battery", scope="Device", status="Discharging", capacity=3))
    charge, _ = sense(tmp_path)
    assert charge.value is None
    assert "no battery" in charge.reason
    plant(tmp_path, supply("z-odd_name", type="Battery", scope="System", status="Charging", capacity=80))
    charge, charging = sense(tmp_path)
    assert charge.value == 0.8
    assert charging.value is True


def test_an_empty_bay_is_no_battery(tmp_path):
    plant(tmp_path, supply("BAT1", type="Battery", present=0, capacity=0))
    assert sense(tmp_path)[0].value is None


def test_two_batteries_are_one_by_energy(tmp_path):
    plant(tmp_path, supply("BAT0", type="Battery", status="Unknown", energy_now=10, energy_full=10))
    plant(tmp_path, supply("BAT1", type="Battery", status="Discharging", energy_now=0, energy_full=30))
    charge, charging = sense(tmp_path)
    assert charge.value == 0.25
    assert charging.value is False


@pytest.mark.parametrize(("online", "charging"), [(1, True), (0, False)])
def test_the_plug_settles_what_the_battery_does_not_say(tmp_path, online, charging):
    plant(tmp_path, supply("BAT0", type="Battery", status="Not charging", capacity=80))
    plant(tmp_path, supply("AC", type="Mains", online=online))
    assert sense(tmp_path)[1].value is charging


def test_an_unknown_status_without_a_plug_is_missing(tmp_path):
    plant(tmp_path, supply("BAT0", type="Battery", status="Unknown", capacity=80))
    reading = sense(tmp_path)[1]
    assert reading.value is None
    assert "Unknown" in reading.reason


def test_a_machine_without_power_supplies_is_told_so(tmp_path):
    charge, charging = sense(tmp_path)
    assert charge.value is charging.value is None
    assert "power_supply" in charge.reason


def test_capacity_outside_its_range_is_missing(tmp_path):
    plant(tmp_path, supply("BAT0", type="Battery", status="Discharging", capacity=255))
    charge, _ = sense(tmp_path)
    assert charge.value is None
    assert "outside" in charge.reason


def answering(**fields):
    return lambda: SimpleNamespace(**fields)


def raising(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("battery", "charge", "charging"),
    [
        (answering(percent=50, secsleft=psutil.POWER_TIME_UNKNOWN, power_plugged=False), 0.5, False),
        (answering(percent=50, secsleft=psutil.POWER_TIME_UNKNOWN, power_plugged=None), 0.5, None),
        (answering(percent=50, secsleft=psutil.POWER_TIME_UNLIMITED, power_plugged=None), 0.5, True),
        (answering(percent=255, secsleft=psutil.POWER_TIME_UNKNOWN, power_plugged=True), None, True),
        (lambda: None, None, None),
        (raising(FileNotFoundError("no such folder")), None, None),
        (raising(NotImplementedError("not here")), None, None),
    ],
)
def test_psutil_and_its_sentinels(tmp_path, monkeypatch, battery, charge, charging):
    monkeypatch.setattr(psutil, "sensors_battery", battery, raising=False)
    readings = BatterySource(tmp_path, psutil_battery).read()
    assert readings["state_of_charge"].value == charge
    assert readings["charging"].value is charging
    assert all(reading.reason for reading in readings.values() if reading.value is None)


def test_psutil_without_the_function(tmp_path, monkeypatch):
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert BatterySource(tmp_path, psutil_battery).read()["state_of_charge"].value is None


@pytest.mark.parametrize(
    ("files", "power_w"),
    [
        ({"power_now": 7_500_000}, 7.5),
        ({"current_now": -2_000_000, "voltage_now": 3_800_000}, 7.6),
        # energy_now is no partner of current_now.
        ({"current_now": 2_000_000, "energy_now": 40_000_000}, None),
    ],
)
def test_power_of_a_discharging_battery(tmp_path, files, power_w):
    plant(tmp_path, supply("BAT0", type="Battery", status="Discharging", **files))
    assert PowerSource(tmp_path).read()["power_w"].value == (power_w and pytest.approx(power_w))


def test_the_power_of_a_charging_battery_is_not_the_devices(tmp_path):
    plant(tmp_path, supply("BAT0", type="Battery", status="Charging", power_now=7_500_000))
    assert PowerSource(tmp_path).read()["power_w"].value is None
