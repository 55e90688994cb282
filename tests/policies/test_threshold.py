import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caq.context import Context, Quality, Reading
from caq.errors import ConfigError
from caq.governor import Decision
from policies import ThresholdPolicy
from policies.threshold import PHONE
from tests.fake_engine import NAMES, point

POINTS = [point(name, at) for at, name in enumerate(NAMES)]


def choose(policy, current="balanced", **values):
    return policy.select(Context.from_values(**values), POINTS, current)


def rules(*rules, otherwise="full", **more):
    return ThresholdPolicy.from_dict({"rules": list(rules), "otherwise": otherwise, **more})


def below(threshold, hysteresis=0.0, to="saver", **more):
    return {"point": to, "when": {"state_of_charge": {"below": threshold, "hysteresis": hysteresis}}, **more}


@pytest.mark.parametrize(
    ("values", "chosen", "urgent", "words"),
    [
        ({"state_of_charge": 0.1, "charging": False}, "saver", False, "state_of_charge 0.1 is below 0.2"),
        ({"state_of_charge": 0.2, "charging": False}, "balanced", False, "below 0.5"),
        ({"state_of_charge": 0.5, "charging": False}, "full", False, "no rule applies"),
        ({"state_of_charge": 0.1, "charging": True}, "full", False, "charging is true"),
        ({"state_of_charge": 0.9, "charging": True, "temperature_c": 46}, "saver", True, "46 °C is above 45"),
        ({"state_of_charge": 0.9, "charging": False, "memory_pressure": 0.2}, "saver", True, "memory_pressure"),
        (
            {"state_of_charge": 0.9, "charging": True, "memory_available": 0.09},
            "saver",
            True,
            "memory_available 0.09 is",
        ),
        ({"state_of_charge": 0.9, "charging": True, "memory_available": 0.1}, "full", False, "charging is true"),
        ({"charging": False}, "balanced", False, "counts as fulfilled"),
        ({"charging": False}, "balanced", False, "rule 3 is skipped, memory_available is missing"),
        ({}, "balanced", False, "rule 4 is skipped, charging is missing"),
    ],
)
def test_the_packaged_rules(values, chosen, urgent, words):
    decision = choose(ThresholdPolicy.from_yaml(PHONE), **values)
    assert (decision.point, decision.urgent) == (chosen, urgent)
    assert words in decision.reason


def test_the_packaged_rules_let_go_of_memory_late():
    policy = ThresholdPolicy.from_yaml(PHONE)
    chosen = [choose(policy, charging=True, memory_available=left).point for left in (0.09, 0.14, 0.16, 0.11, 0.1)]
    assert chosen == ["saver", "saver", "full", "full", "full"]


@pytest.mark.parametrize(
    ("values", "trims"),
    [
        ({"memory_pressure": 0.2}, True),
        ({"memory_available": 0.05}, True),
        # The first rule decides, but memory is short all the same.
        ({"temperature_c": 50, "memory_available": 0.05}, True),
        ({"temperature_c": 50, "memory_available": 0.5, "memory_pressure": 0.0}, False),
        ({"state_of_charge": 0.1}, False),
        ({}, False),
    ],
)
def test_the_packaged_rules_give_memory_back_when_it_is_short(values, trims):
    assert choose(ThresholdPolicy.from_yaml(PHONE), **values).trim is trims


def test_a_rule_gives_memory_back_until_its_hysteresis_ends():
    policy = ThresholdPolicy.from_yaml(PHONE)
    asked = [choose(policy, memory_available=left).trim for left in (0.2, 0.09, 0.14, 0.16, 0.12)]
    assert asked == [False, True, True, False, False]


@pytest.mark.parametrize(("behaviour", "trims"), [("match", True), ("skip", False), ("hold", False)])
def test_a_missing_value_gives_memory_back_only_where_it_counts_as_fulfilled(behaviour, trims):
    policy = rules(below(0.2, trim=True, when_missing=behaviour))
    assert choose(policy).trim is trims


def test_fields_are_what_the_rules_read():
    found = ThresholdPolicy.from_yaml(PHONE).fields
    assert found == ("temperature_c", "memory_pressure", "memory_available", "charging", "state_of_charge")
    assert rules(below(0.2), below(0.1)).fields == ("state_of_charge",)


def test_the_first_match_wins():
    policy = rules(below(0.5, to="balanced"), below(0.2, to="saver"))
    assert choose(policy, state_of_charge=0.1).point == "balanced"


def test_all_conditions_must_hold():
    both = {"state_of_charge": {"below": 0.5}, "charging": {"is": False}}
    policy = rules({"point": "saver", "when": both})
    assert choose(policy, state_of_charge=0.4, charging=False).point == "saver"
    assert choose(policy, state_of_charge=0.4, charging=True).point == "full"
    assert choose(policy, state_of_charge=0.6, charging=False).point == "full"


def test_a_band():
    policy = rules({"point": "saver", "when": {"cpu_load": {"above": 0.2, "below": 0.4}}})
    chosen = [choose(policy, cpu_load=load).point for load in (0.2, 0.3, 0.4)]
    assert chosen == ["full", "saver", "full"]


@pytest.mark.parametrize(
    ("condition", "values", "chosen"),
    [
        ({"below": 50, "hysteresis": 5}, [50, 49, 54.9, 50, 55, 50], "fsssff"),
        ({"above": 50, "hysteresis": 5}, [50, 51, 45.1, 50, 45, 50], "fsssff"),
        ({"above": 50}, [51, 50, 51], "sfs"),
    ],
)
def test_hysteresis(condition, values, chosen):
    policy = rules({"point": "saver", "when": {"temperature_c": condition}})
    points = "".join(choose(policy, temperature_c=value).point[0] for value in values)
    assert points == chosen


def test_the_reason_names_the_hysteresis():
    policy = rules(below(0.2, 0.05))
    choose(policy, state_of_charge=0.19)
    assert "hysteresis" in choose(policy, state_of_charge=0.22).reason
    policy.reset()
    assert choose(policy, state_of_charge=0.22).point == "full"


def test_a_rule_under_another_keeps_its_hysteresis():
    charging = {"point": "full", "when": {"charging": {"is": True}}}
    policy = rules(charging, below(0.2, 0.05), otherwise="balanced")
    assert choose(policy, state_of_charge=0.19, charging=True).point == "full"
    assert choose(policy, state_of_charge=0.22, charging=False).point == "saver"


@pytest.mark.parametrize(
    ("behaviour", "chosen", "words"),
    [("match", "saver", "fulfilled"), ("skip", "full", "skipped"), ("hold", "balanced", "holds balanced")],
)
@pytest.mark.parametrize("kind", ["missing", "stale"])
def test_when_missing(behaviour, chosen, words, kind):
    reading = Reading(0.9, "1", "a test", age_s=77, stale=True, reason="asleep")
    if kind == "missing":
        reading = Reading(None, "1", "a test", quality=Quality.MISSING, reason="asleep")
    context = Context.from_readings({"state_of_charge": reading})
    own = rules(below(0.2, when_missing=behaviour), when_missing="skip" if behaviour != "skip" else "match")
    for policy in (own, rules(below(0.2), when_missing=behaviour)):
        decision = policy.select(context, POINTS, "balanced")
        assert decision.point == chosen
        assert all(word in decision.reason for word in (words, f"state_of_charge is {kind}", "asleep"))


def test_what_is_missing_does_not_matter_if_another_condition_fails():
    both = {"state_of_charge": {"below": 0.5}, "charging": {"is": False}}
    policy = rules({"point": "saver", "when": both, "when_missing": "match"})
    decision = choose(policy, charging=True)
    assert decision == Decision("full", "no rule applies")


def test_a_missing_value_leaves_the_hysteresis_as_it_was():
    policy = rules(below(0.2, 0.05))
    choose(policy, state_of_charge=0.19)
    choose(policy, state_of_charge=None)
    assert choose(policy, state_of_charge=0.22).point == "saver"


def test_the_default_maps_its_points_by_cost():
    costly_first = [point("w8", 64), point("w2", 4), point("w4", 16)]
    policy = ThresholdPolicy.default(costly_first)
    chosen = [
        policy.select(Context.from_values(charging=False, state_of_charge=charge), costly_first, "w8").point
        for charge in (0.9, 0.4, 0.1)
    ]
    assert chosen == ["w8", "w4", "w2"]
    by_name = ThresholdPolicy.default([point("full", 1), point("balanced", 2), point("saver", 3)])
    assert by_name.rules == ThresholdPolicy.from_yaml(PHONE).rules
    assert set(ThresholdPolicy.default([point("only")]).rules.points) == {"only"}
    by_mapping = ThresholdPolicy.default({p.name: p for p in costly_first})
    assert by_mapping.rules == policy.rules
    for bad in ([], {}, ["w8", "w2"], {"w8": 64}, None, 3):
        with pytest.raises(ConfigError, match="pass the points of a model or an engine"):
            ThresholdPolicy.default(bad)
    with pytest.raises(ConfigError, match="from_yaml"):
        ThresholdPolicy("rules.yaml")


def test_points_that_the_artifact_does_not_have():
    with pytest.raises(ConfigError, match="did you mean 'saver'"):
        rules(below(0.2, to="savr")).check(POINTS)


GOOD = {
    "rules": [{"point": "saver", "when": {"state_of_charge": {"below": 0.2, "hysteresis": 0.1}}}],
    "otherwise": "full",
}


def with_change(path, value):
    data = copy.deepcopy(GOOD)
    *way, last = path
    part = data
    for key in way:
        part = part[key]
    part[last] = value
    return data


RULE = ("rules", 0)
CHARGE = (*RULE, "when", "state_of_charge")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("rule",), [], ["unknown key 'rule'", "'rules'"]),
        (("rules",), {}, ["rules", "list"]),
        (("otherwise",), None, ["otherwise"]),
        (("when_missing",), "ignore", ["when_missing", "match, skip or hold"]),
        (RULE, "saver", ["rules[0]", "mapping"]),
        ((*RULE, "urgnt"), True, ["rules[0]", "urgnt", "'urgent'"]),
        ((*RULE, "urgent"), "yes", ["rules[0].urgent", "true or false"]),
        ((*RULE, "trim"), 1, ["rules[0].trim", "true or false"]),
        ((*RULE, "point"), 3, ["rules[0].point"]),
        ((*RULE, "when_missing"), [], ["rules[0].when_missing"]),
        ((*RULE, "when"), {}, ["rules[0].when", "condition"]),
        ((*RULE, "when", "state_of_charg"), {"below": 0.5}, ["rules[0].when", "'state_of_charge'"]),
        ((*RULE, "when", "charging"), {"below": 0.5}, ["charging", "'below'"]),
        ((*RULE, "when", "charging"), {"is": 1}, ["charging.is", "true or false"]),
        (CHARGE, {}, ["state_of_charge", "below or above"]),
        ((*CHARGE, "belov"), 0.2, ["belov", "'below'"]),
        ((*CHARGE, "below"), 20, ["state_of_charge.below", "20", "0..1"]),
        ((*CHARGE, "below"), True, ["state_of_charge.below", "number"]),
        ((*CHARGE, "below"), float("nan"), ["state_of_charge.below", "finite"]),
        ((*CHARGE, "below"), 10**400, ["state_of_charge.below", "finite"]),
        ((*CHARGE, "above"), 0.3, ["state_of_charge", "no value between"]),
        ((*CHARGE, "hysteresis"), -0.1, ["hysteresis", "at least 0"]),
        ((*CHARGE, "hysteresis"), 0.9, ["hysteresis", "never"]),
    ],
)
def test_bad_rules_name_the_source_and_the_field(path, value, words):
    ThresholdPolicy.from_dict(GOOD)
    with pytest.raises(ConfigError) as caught:
        ThresholdPolicy.from_dict(with_change(path, value), "my rules")
    assert all(word in str(caught.value) for word in ["my rules", *words])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: [", "not YAML"),
        ("", "mapping"),
        ("- 1", "mapping"),
        ("rules: &a []\notherwise: *a\n", "aliases"),
        ("otherwise: full\notherwise: saver\n", "twice"),
        ("otherwise: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("otherwise: full\nrules: " + "[" * 2000 + "]" * 2000, "nested"),
        ("otherwise: full\nrules: [{point: a, when: {cpu_load: {below: .inf}}}]", "finite"),
        ("#" * (1 << 20) + "\n", "larger"),
        (b"\xff\xff", "not YAML"),
    ],
)
def test_bad_files_name_the_file(tmp_path, text, words):
    path = tmp_path / "rules.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        ThresholdPolicy.from_yaml(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        ThresholdPolicy.from_yaml(tmp_path / "nowhere.yaml")


values = st.one_of(st.none(), st.floats(0, 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(values, st.one_of(st.none(), st.booleans()), values), max_size=20))
def test_every_decision_names_a_point_and_a_reason(contexts):
    policy = ThresholdPolicy.from_yaml(PHONE)
    for charge, charging, pressure in contexts:
        decision = choose(policy, state_of_charge=charge, charging=charging, memory_pressure=pressure)
        assert decision.point in NAMES
        assert decision.reason
        assert decision.urgent == (pressure is not None and "memory_pressure" in decision.reason.split(";")[0])
