from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caq.errors import ConfigError
from simulators.battery import Battery, BatteryParameters, scaled
from simulators.parameters import load_battery

SIMPLE = BatteryParameters(
    title="simple",
    source="made up",
    capacity_ah=2.0,
    cutoff_v=3.0,
    max_v=4.2,
    state_of_charge=(0.0, 1.0),
    ocv_v=(3.2, 4.2),
    r0_ohm=0.1,
    r1_ohm=0.05,
    r1_over_charge=(1.0, 1.0),
    tau1_s=60.0,
    reference_temperature_c=25.0,
    activation_k=0.0,
    capacity_fade_per_cycle=0.0,
    resistance_growth_per_cycle=0.0,
)
NASA = load_battery("nasa-18650")


def test_a_step_by_hand():
    battery = Battery(SIMPLE)
    state, voltage = battery.step_current(battery.start(np.array([0.5])), 2.0, 25.0, 60.0)
    polarization = 2.0 * 0.05 * (1 - np.exp(-1))
    assert voltage[0] == pytest.approx(3.7 - 2.0 * 0.1 - polarization)
    assert state.polarization_v[0] == pytest.approx(polarization)
    assert state.state_of_charge[0] == pytest.approx(0.5 - 2.0 * 60 / 3600 / 2.0)


@given(
    power=st.floats(-15, 15),
    charge=st.floats(0.05, 0.95),
    celsius=st.floats(-10, 60),
    duration=st.sampled_from([1.0, 60.0]),
)
@settings(max_examples=60, deadline=None)
def test_power_is_voltage_times_current(power, charge, celsius, duration):
    battery = Battery(NASA)
    before = battery.start(np.array([charge]))
    after, voltage = battery.step(before, power, celsius, duration)
    current = (before.state_of_charge - after.state_of_charge) * before.capacity_ah * 3600 / duration
    assert np.isfinite(voltage).all() and 0 < voltage[0] <= NASA.max_v + 1e-9
    if power < 0 and voltage[0] > NASA.max_v - 1e-9:  # the charger holds the voltage, and delivers less
        assert power <= voltage[0] * current[0] <= 1e-9
    elif after.state_of_charge[0] > 0 and voltage[0] > NASA.cutoff_v:
        assert voltage[0] * current[0] == pytest.approx(power, abs=1e-6)


def test_one_long_step_polarizes_as_many_short_ones():
    battery = Battery(replace(SIMPLE, ocv_v=(3.7, 3.7 + 1e-9)))
    start = battery.start(np.array([0.9]))
    once, voltage = battery.step_current(start, 1.5, 25.0, 90.0)
    often = start
    for _ in range(90):
        often, last = battery.step_current(often, 1.5, 25.0, 1.0)
    assert once.polarization_v[0] == pytest.approx(often.polarization_v[0], rel=1e-9)
    assert voltage[0] == pytest.approx(last[0], rel=1e-9)
    assert once.state_of_charge[0] == pytest.approx(often.state_of_charge[0], rel=1e-9)


def test_a_load_beyond_the_battery_halves_its_voltage_and_cuts_off():
    battery = Battery(SIMPLE)
    state, voltage = battery.step(battery.start(np.array([0.5, 0.5])), np.array([1.0, 1000.0]), 25.0, 1.0)
    assert battery.cut_off(state, voltage).tolist() == [False, True]
    assert voltage[1] == pytest.approx(3.7 / 2)


def test_an_empty_battery_is_cut_off_whatever_its_voltage():
    battery = Battery(SIMPLE)
    state, voltage = battery.step(battery.start(np.array([1e-6])), 0.1, 25.0, 60.0)
    assert voltage[0] > SIMPLE.cutoff_v and state.state_of_charge[0] == 0
    assert battery.cut_off(state, voltage)[0]


def test_a_charger_fills_the_battery_and_never_exceeds_its_voltage():
    battery = Battery(NASA)
    state = battery.start(np.array([0.2]))
    highest, charges = 0.0, [0.2]
    for _ in range(400):
        state, voltage = battery.step(state, -6.0, 25.0, 60.0)
        highest = max(highest, voltage[0])
        charges.append(state.state_of_charge[0])
    assert highest == pytest.approx(NASA.max_v) and charges[-1] > 0.99
    assert (np.diff(charges) >= 0).all()
    assert np.diff(charges)[100] < np.diff(charges)[0] / 2  # tapers


def test_cold_and_age_cost_voltage_and_time():
    battery = Battery(NASA)
    fresh = battery.start(np.full(3, 0.6), resistance_factor=np.array([1.0, 1.0, 2.0]))
    _, voltage = battery.step(fresh, 5.0, np.array([25.0, 0.0, 25.0]), 60.0)
    assert voltage[0] > voltage[1] + 0.05 and voltage[0] > voltage[2] + 0.05


def test_a_cycle_ages_by_the_stated_rates():
    aging = replace(SIMPLE, capacity_fade_per_cycle=0.01, resistance_growth_per_cycle=0.02)
    battery = Battery(aging)
    state = battery.start(np.array([1.0]))
    for _ in range(100):
        state, _ = battery.step_current(state, 1.0, 25.0, 36.0)  # half of the capacity
    for _ in range(100):
        state, _ = battery.step_current(state, -1.0, 25.0, 36.0)  # charging does not age
    assert state.capacity_ah[0] == pytest.approx(2.0 * 0.99**0.5, rel=1e-4)
    assert state.resistance_factor[0] == pytest.approx(1.02**0.5, rel=1e-4)


def test_cells_in_series_share_the_power():
    one, three = Battery(SIMPLE), Battery(replace(SIMPLE, cells_in_series=3))
    a, single = one.step(one.start(np.array([0.7])), 2.0, 25.0, 60.0)
    b, pack = three.step(three.start(np.array([0.7])), 6.0, 25.0, 60.0)
    assert pack[0] == pytest.approx(3 * single[0])
    assert a.state_of_charge[0] == pytest.approx(b.state_of_charge[0])
    assert three.cut_off(b, np.array([8.9])).all() and not three.cut_off(b, np.array([9.1])).any()


def test_a_scaled_battery_does_the_same_at_the_scaled_load():
    large = scaled(NASA, NASA.capacity_ah * 2.5, "large")
    voltages = []
    for parameters, power in ((NASA, 4.0), (large, 10.0)):
        battery = Battery(parameters)
        state = battery.start(np.array([0.8]))
        for _ in range(30):
            state, voltage = battery.step(state, power, 20.0, 60.0)
        voltages.append([voltage[0], state.state_of_charge[0]])
    assert voltages[0] == pytest.approx(voltages[1])
    assert "scaled" in large.source and large.energy_j == pytest.approx(2.5 * NASA.energy_j)


def test_devices_do_not_affect_each_other():
    rng = np.random.default_rng(3)
    charge, power, celsius = rng.uniform(0.05, 1, 50), rng.uniform(-8, 20, 50), rng.uniform(-5, 55, 50)
    battery = Battery(NASA)
    together, voltages = battery.step(battery.start(charge), power, celsius, 60.0)
    for k in range(50):
        alone, voltage = battery.step(battery.start(charge[k : k + 1]), power[k], celsius[k], 60.0)
        assert voltage[0] == pytest.approx(voltages[k], rel=1e-12)
        assert [a[0] for a in alone] == pytest.approx([a[k] for a in together], rel=1e-12)


def test_float32_follows_float64_for_many_short_steps():
    single, double = Battery(NASA, np.float32), Battery(NASA)
    a, b = single.start(np.array([1.0])), double.start(np.array([1.0]))
    for _ in range(1_000):
        a, v = single.step(a, np.float32(0.05), np.float32(25), 1.0)
        b, w = double.step(b, 0.05, 25.0, 1.0)
    assert v.dtype == np.float32 and a.polarization_v.dtype == np.float32
    assert a.state_of_charge[0] == pytest.approx(b.state_of_charge[0], abs=1e-6)
    assert v[0] == pytest.approx(w[0], abs=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity_ah", 0.0),
        ("capacity_ah", float("nan")),
        ("cutoff_v", -1.0),
        ("max_v", 2.0),
        ("tau1_s", 0.0),
        ("r1_ohm", -0.1),
        ("state_of_charge", (0.0, 0.5)),
        ("state_of_charge", (0.5, 0.5)),
        ("ocv_v", (3.2, 3.2)),
        ("ocv_v", (3.2, 5.0)),
        ("ocv_v", (3.2, 3.5, 4.0)),
        ("r1_over_charge", (0.0, 1.0)),
        ("activation_k", 1e6),
        ("capacity_fade_per_cycle", 0.5),
        ("reference_temperature_c", -300.0),
        ("cells_in_series", 0),
    ],
)
def test_impossible_parameters_are_named(field, value):
    with pytest.raises(ConfigError, match=f"'simple': {field}"):
        replace(SIMPLE, **{field: value})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([0.5, 1.1],), r"state_of_charge\[1\]"),
        (([float("nan")],), r"state_of_charge\[0\]"),
        (([0.5, 0.5], [1.0, 0.0]), r"capacity_ah\[1\]"),
        (([0.5], None, -1.0), r"resistance_factor\[0\]"),
    ],
)
def test_impossible_starts_are_named(arguments, named):
    with pytest.raises(ConfigError, match=named):
        Battery(SIMPLE).start(*arguments)


def test_other_types_and_sizes_are_refused():
    with pytest.raises(ConfigError, match="dtype"):
        Battery(SIMPLE, np.float16)
    with pytest.raises(ConfigError, match="capacity_ah"):
        scaled(SIMPLE, 0.0, "none")
