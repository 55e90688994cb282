"""Temperature, load, frequency, power and screen."""

import os
import shutil

import pytest

from caq.context import Quality, default_sources, probe
from caq.context.cpu import FrequencySource, LoadSource, ScreenSource
from caq.context.power import PowerSource
from caq.context.thermal import TemperatureSource
from tests.context.trees import plant


def zone(number, kind, temp):
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": kind, f"{folder}/temp": temp}


def temperature(source):
    return source.read()["temperature_c"]


def test_the_processors_zone_is_preferred(tmp_path):
    plant(tmp_path, zone(0, "battery", 30000) | zone(1, "cpu-thermal", 51500))
    assert temperature(TemperatureSource(tmp_path)).value == 51.5


def test_one_zone_is_pinned(tmp_path):
    source = TemperatureSource(plant(tmp_path, zone(0, "battery", 30000)))
    assert temperature(source).value == 30.0
    plant(tmp_path, zone(0, "battery", 31000) | zone(1, "cpu-thermal", 90000))
    assert temperature(source).value == 31.0


@pytest.mark.parametrize("nonsense", [-274000, 0, 255000, "", "N/A"])
def test_a_zone_that_talks_nonsense_is_not_pinned(tmp_path, nonsense):
    plant(tmp_path, zone(0, "cpu-thermal", nonsense) | zone(1, "acpitz", 40000))
    assert temperature(TemperatureSource(tmp_path)).value == 40.0


def test_a_zone_that_fails_in_mid_read_raises_rather_than_switching(tmp_path):
    source = TemperatureSource(plant(tmp_path, zone(0, "cpu-thermal", 50000) | zone(1, "acpitz", 40000)))
    assert temperature(source).value == 50.0
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").unlink()
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").mkdir()
    with pytest.raises(OSError):
        source.read()


def test_a_renumbered_zone_is_found_by_its_label(tmp_path):
    source = TemperatureSource(plant(tmp_path, zone(0, "cpu-thermal", 50000) | zone(1, "acpitz", 40000)))
    assert temperature(source).value == 50.0
    shutil.rmtree(tmp_path / "sys/class/thermal/thermal_zone0")
    plant(tmp_path, zone(7, "cpu-thermal", 52000))
    assert temperature(source).value == 52.0


def test_hwmon_serves_without_thermal_zones_but_not_one_wire_probes(tmp_path):
    base = "sys/class/hwmon"
    plant(tmp_path, {f"{base}/hwmon0/name": "w1_slave_temp", f"{base}/hwmon0/temp1_input": 12000})
    assert temperature(TemperatureSource(tmp_path)).value is None
    plant(tmp_path, {f"{base}/hwmon1/name": "k10temp", f"{base}/hwmon1/temp1_input": 48000})
    reading = temperature(TemperatureSource(tmp_path))
    assert reading.value == 48.0
    assert "k10temp" in reading.source


def load(source):
    return source.read()["cpu_load"]


def test_load_is_the_busy_share_between_two_readings(tmp_path):
    plant(tmp_path, {"proc/stat": "cpu  100 0 100 700 100 0 0 0 50 0", "proc/loadavg": "0.00 0.00 0.00 1/2 3"})
    source = LoadSource(tmp_path)
    first = load(source)
    assert (first.value, first.quality) == (0.0, Quality.ESTIMATED)
    plant(tmp_path, {"proc/stat": "cpu  160 0 115 720 105 0 0 0 99 0"})
    second = load(source)
    assert (second.value, second.quality) == (0.75, Quality.MEASURED)


def test_load_of_others_is_without_that_of_this_process(tmp_path):
    own_s = iter([5.0, 5.25])
    plant(tmp_path, {"proc/stat": "cpu  100 0 100 700 100"})
    source = LoadSource(tmp_path, own_s=lambda: next(own_s))
    assert source.read()["apps_load"].quality is Quality.MISSING
    plant(tmp_path, {"proc/stat": "cpu  160 0 115 720 105"})
    ticks = 0.25 * os.sysconf("SC_CLK_TCK")
    assert source.read()["apps_load"].value == pytest.approx(0.75 - ticks / 100)


def test_this_process_alone_is_no_load_of_others(tmp_path):
    own_s = iter([0.0, 10.0])
    plant(tmp_path, {"proc/stat": "cpu  0 0 0 100"})
    source = LoadSource(tmp_path, own_s=lambda: next(own_s))
    source.read()
    plant(tmp_path, {"proc/stat": "cpu  50 0 0 150"})
    second = source.read()
    assert (second["cpu_load"].value, second["apps_load"].value) == (0.5, 0.0)


def test_counters_that_step_back_are_not_a_load(tmp_path):
    plant(tmp_path, {"proc/stat": "cpu 100 0 100 700 100", "proc/loadavg": "0.00 0.00 0.00 1/2 3"})
    source = LoadSource(tmp_path)
    load(source)
    plant(tmp_path, {"proc/stat": "cpu 90 0 90 600 90"})
    assert load(source).quality is Quality.ESTIMATED


def test_without_proc_stat_the_load_average_stands_in(tmp_path):
    assert load(LoadSource(tmp_path)).value is None
    assert load(LoadSource(tmp_path, lambda: 1e9)).value == 1.0
    assert load(LoadSource(tmp_path, lambda: None)).reason


def frequency(root):
    return FrequencySource(root).read()["cpu_frequency_hz"]


def test_frequency_of_the_fastest_core(tmp_path):
    assert frequency(tmp_path).value is None
    plant(tmp_path, {"proc/cpuinfo": "processor: 0\ncpu MHz\t\t: 2400.5\n"})
    assert (frequency(tmp_path).value, frequency(tmp_path).quality) == (2400.5e6, Quality.ESTIMATED)
    base = "sys/devices/system/cpu/cpufreq"
    plant(tmp_path, {f"{base}/policy0/scaling_cur_freq": 600000, f"{base}/policy4/scaling_cur_freq": 1800000})
    assert (frequency(tmp_path).value, frequency(tmp_path).quality) == (1.8e9, Quality.MEASURED)


def test_screen(tmp_path):
    assert ScreenSource(tmp_path).read()["screen_brightness"].value is None
    base = "sys/class/backlight/panel"
    plant(tmp_path, {f"{base}/brightness": 64, f"{base}/max_brightness": 256})
    assert ScreenSource(tmp_path).read()["screen_brightness"].value == 0.25


def power(source):
    return source.read()["power_w"]


@pytest.mark.parametrize("files", [{"power1_input": 2_500_000}, {"curr1_input": 500, "in1_input": 5000}])
def test_power_of_a_monitor_on_the_rail(tmp_path, files):
    base = "sys/class/hwmon/hwmon3"
    plant(tmp_path, {"sys/class/hwmon/hwmon0/name": "amdgpu", "sys/class/hwmon/hwmon0/power1_input": 99_000_000})
    plant(tmp_path, {f"{base}/name": "ina219"} | {f"{base}/{name}": value for name, value in files.items()})
    assert power(PowerSource(tmp_path)).value == 2.5


def rapl(domain, name, energy_uj, span_uj=1_000_000_000):
    base = f"sys/class/powercap/{domain}"
    return {f"{base}/name": name, f"{base}/energy_uj": energy_uj, f"{base}/max_energy_range_uj": span_uj}


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def test_rapl_adds_packages_but_not_their_parts(tmp_path):
    clock = Clock()
    plant(tmp_path, rapl("intel-rapl:0", "package-0", 1_000_000) | rapl("intel-rapl:0:0", "core", 1_000_000))
    source = PowerSource(tmp_path, clock)
    assert "two readings" in power(source).reason
    clock.now_s = 2.0
    plant(tmp_path, rapl("intel-rapl:0", "package-0", 21_000_000) | rapl("intel-rapl:0:0", "core", 9_000_000))
    reading = power(source)
    assert (reading.value, reading.quality) == (10.0, Quality.ESTIMATED)


def test_the_platforms_counter_holds_the_packages(tmp_path):
    clock = Clock()
    plant(tmp_path, rapl("intel-rapl:0", "package-0", 0) | rapl("intel-rapl:1", "psys", 0))
    source = PowerSource(tmp_path, clock)
    power(source)
    clock.now_s = 1.0
    plant(tmp_path, rapl("intel-rapl:0", "package-0", 5_000_000) | rapl("intel-rapl:1", "psys", 8_000_000))
    assert power(source).value == 8.0


def test_a_wrapped_counter(tmp_path):
    clock = Clock()
    plant(tmp_path, rapl("intel-rapl:0", "package-0", 999_000_000))
    source = PowerSource(tmp_path, clock)
    power(source)
    clock.now_s = 1.0
    plant(tmp_path, rapl("intel-rapl:0", "package-0", 4_000_000))
    assert power(source).value == pytest.approx(5.0)


def test_a_long_interval_may_have_wrapped_twice(tmp_path):
    clock = Clock()
    source = PowerSource(plant(tmp_path, rapl("intel-rapl:0", "package-0", 0)), clock)
    power(source)
    clock.now_s = 1e4
    assert power(source).value is None


def test_a_counter_for_root_only_says_so(tmp_path):
    plant(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0"})
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()
    assert "root" in power(PowerSource(tmp_path)).reason


def test_an_empty_machine_is_served(tmp_path):
    rows = probe(tmp_path, interval_s=0.0)
    assert {row.what for row in rows} == {name for source in default_sources(tmp_path) for name in source.fields}
    assert all(row.value is None and row.quality == "missing" and row.reason for row in rows)
