import json
import math

import pytest

from caq.context import FIELDS, Context, Quality, Reading, checked, sensed
from caq.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("state_of_charge", math.nan, "NaN"),
        ("state_of_charge", 1.01, "outside"),
        ("state_of_charge", -0.01, "outside"),
        ("power_w", math.inf, "infinite"),
        ("temperature_c", -274.0, "outside"),
        ("temperature_c", 255.0, "outside"),
        ("charging", 2, "only 0 and 1"),
        ("cpu_load", "busy", "not a number"),
        ("cpu_frequency_hz", 0, "outside"),
    ],
)
def test_a_value_that_cannot_be_true_is_missing_and_says_why(field, value, word):
    reading = sensed(field, value, "a test")
    assert reading.value is None
    assert reading.quality is Quality.MISSING
    assert word in reading.reason
    assert reading.source == "a test"


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_the_ends_of_the_range_are_values(value):
    assert sensed("state_of_charge", value, "a test").value == value


def test_a_load_a_little_above_full_is_full():
    assert sensed("cpu_load", 1.05, "a test").value == 1.0
    assert sensed("cpu_load", 1.2, "a test").value is None


def test_charging_is_a_bool():
    assert sensed("charging", 1, "a test").value is True
    assert sensed("charging", 0, "a test").value is False


def test_no_value_with_a_good_quality_is_missing():
    assert checked("power_w", Reading(None, "W", "a test")).quality is Quality.MISSING


def test_fields_that_nobody_gives_are_missing():
    context = Context.from_values(state_of_charge=0.4, charging=None)
    assert context.state_of_charge.value == 0.4
    assert context.state_of_charge.quality is Quality.SIMULATED
    assert context.charging.quality is Quality.MISSING
    assert context.temperature_c.quality is Quality.MISSING
    assert context.temperature_c.reason
    assert all(context.reading(name).unit == spec.unit for name, spec in FIELDS.items())


def test_a_stale_value_is_kept_but_is_no_value_to_act_upon():
    stale = Reading(0.4, "1", "a test", age_s=99.0, stale=True)
    context = Context.from_readings({"state_of_charge": stale})
    assert context.state_of_charge.value == 0.4
    assert context.value("state_of_charge") is None


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(ConfigError, match="state_of_charge"):
        Context.from_values(state_of_charg=0.4)
    with pytest.raises(ConfigError, match="temperature_c"):
        Context.from_values().value("temperature")


def test_the_dict_is_plain_json():
    plain = json.loads(json.dumps(Context.from_values(charging=True, time_s=3).to_dict()))
    assert set(plain) == set(FIELDS)
    assert plain["charging"]["value"] is True
    assert plain["charging"]["quality"] == "simulated"
    assert plain["power_w"]["value"] is None
