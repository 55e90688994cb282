"""`caq simulate` and `caq fleet` as they are called."""

import json
from pathlib import Path

import numpy as np
import pytest

from caq import artifact
from caq.costs import load_profile
from simulators.device import PROFILES

TRAINED = Path(__file__).parents[2] / "policies" / "trained"

DAY = ("--step", "3600", "--rate", "0.01")


@pytest.fixture
def simulate(files, call, tmp_path):
    def run(*options):
        return call("simulate", files.artifact, "--report", tmp_path / "r.html", *options)

    return run


def test_policies_side_by_side(simulate, files, tmp_path):
    result = simulate(*DAY, "--policy", "fixed:w8a8,fixed:w2a2,threshold", "--json").json
    model, profile = artifact.load(files.artifact), load_profile("bit-serial")
    points = {point["name"]: point for point in result["points"]}
    assert list(points) == [point.name for point in model.points]
    for point in model.points:
        found = points[point.name]
        assert found["accuracy"] == point.score
        assert found["energy_j"] == profile.cost(model.graph, point.assignment).energy_j
    wide, narrow, rules = (result["policies"][name] for name in ("fixed:w8a8", "fixed:w2a2", "threshold"))
    for found in (wide, narrow, rules):
        assert found["requests"] == found["served"] + found["dropped"] + found["waiting"] > 500
        assert found["observed"] is None
    assert wide["inference_j"] == pytest.approx(wide["served"] * points["w8a8"]["energy_j"])
    assert narrow["accuracy"] == pytest.approx(points["w2a2"]["accuracy"])
    assert rules["switches"] == len(rules["switch_list"]) and sum(rules["point_shares"].values()) == pytest.approx(1)
    page = (tmp_path / "r.html").read_text()
    assert page.count("<img") == 6 and "fixed:w2a2" in page and "generated" in page


def test_the_oracle_is_the_best(simulate, tmp_path):
    """On a day on which energy decides; `fixed` are all the points there are."""
    names = ["oracle", "fixed:w8a8", "fixed:w4a4", "fixed:w2a2", "lyapunov:1.0:1"]
    table = simulate("--policy", ",".join(names), "--rate", "20", "--step", "1800", "--charge", "0.4", "--json").json
    rewards = {name: table["policies"][name]["reward"] for name in names}
    assert max(rewards, key=rewards.get) == "oracle"


def test_the_same_seed_says_the_same(simulate, tmp_path):
    def once(*options):
        result = simulate(*DAY, *options, "--json").json
        return result, (tmp_path / "r.html").read_bytes()

    assert once() == once()
    assert once()[0]["policies"] != once("--seed", "1")[0]["policies"]


def test_executed(simulate, files):
    """The labels are what w8a8 says, so that it is always right."""
    result = simulate(*DAY, "--policy", "fixed:w8a8,fixed:w2a2", "--execute", "--data", files.data, "--json").json
    wide, narrow = result["policies"]["fixed:w8a8"], result["policies"]["fixed:w2a2"]
    assert wide["observed"]["accuracy"] == 1.0 and wide["observed"]["executed"] == wide["served"]
    assert narrow["observed"]["low"] <= narrow["observed"]["accuracy"] <= narrow["observed"]["high"]
    assert narrow["observed"]["accuracy"] < 1


def test_predicted_and_observed_agree(call, tmp_path):
    """Policies with the real runtime on the shipped digits: what is looked up is what is seen, within a point."""
    pytest.importorskip("sklearn")
    options = ("--policy", "pacing,threshold", "--rate", "3", "--step", "600", "--charge", "0.3", "--day", "5")
    real = ("--execute", "--data", "digits", "--report", tmp_path / "r.html", "--json")
    found = call("simulate", PROFILES / "digits.caq", *options, *real).json["policies"]
    for policy in found.values():
        assert policy["observed"]["executed"] == policy["served"] > 50_000
        assert policy["observed"]["accuracy"] == pytest.approx(policy["accuracy"], abs=0.01)
    assert sum(share > 0 for share in found["threshold"]["point_shares"].values()) > 1


def test_the_learned_price_as_it_was_trained(call, tmp_path):
    """An hour at the camera's own rate of requests, at last on the charger: no fallback, accuracy as predicted."""
    pytest.importorskip("sklearn")
    trace, price = tmp_path / "hour.csv", TRAINED / "camera-price.npz"
    trace.write_text("t_s,charging\n" + "".join(f"{t},{int(t > 2400)}\n" for t in range(0, 3600, 60)))
    options = ("--trace", trace, "--start-hour", "12", "--charge", "0.3", "--policy", f"learned:{price},price:{price}")
    real = ("--execute", "--data", "digits", "--report", tmp_path / "r.html", "--json")
    one, other = call("simulate", PROFILES / "digits.caq", *options, *real).json["policies"].values()
    assert one == other and one["observed"]["executed"] == one["served"] > 50_000
    assert one["observed"]["accuracy"] == pytest.approx(one["accuracy"], abs=0.01)
    assert one["point_shares"]["w4a4"] < 0.9  # the fallback


def test_text(simulate, files):
    called = simulate(*DAY, "--trace", files.trace, "--step", "60", "--charge", "0.15")
    assert called.code == 0
    assert "threshold" in called.out and "memory_available is unknown in 4 of 4 steps" in called.out
    assert "wrote" in called.out


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("t_s,charging\n60,0\n0,0\n", "line 3, column t_s: the time 0 s stands there out of order"),
        ("t_s,charging\n0,0\n60,nan\n", "line 3, column charging: NaN"),
        ("t_s,state_of_charge\n0,0.5\n60,1.2\n", "line 3, column state_of_charge: 1.2 is not 0..1"),
        ("t_s,chargign\n0,0\n", "line 1: unknown column 'chargign'; did you mean 'charging'"),
        ("", "is empty"),
        ("t_s,charging\n0,0\n60,1\n", "has no state_of_charge to begin with"),
    ],
)
def test_bad_traces(simulate, tmp_path, rows, words):
    path = tmp_path / "bad.csv"
    path.write_text(rows)
    called = simulate("--trace", path)
    assert called.code == 1 and str(path) in called.err and words in called.err
    assert not (tmp_path / "r.html").exists()


def test_recorded_requests(simulate, tmp_path):
    requests, trace = tmp_path / "requests.csv", tmp_path / "day.csv"
    requests.write_text("t_s\n" + "".join(f"{10 * i}\n" for i in range(400)))
    trace.write_text("t_s,state_of_charge,charging\n0,0.9,0\n60,0.9,0\n120,0.9,0\n180,0.9,0\n")
    whole = simulate("--requests", requests, "--step", "3600", "--policy", "fixed:w8a8", "--json").json
    assert whole["policies"]["fixed:w8a8"]["requests"] == 400
    assert any("400 of 400" in note for note in whole["notes"])
    part = simulate("--requests", requests, "--trace", trace, "--policy", "fixed:w8a8", "--json").json
    assert part["policies"]["fixed:w8a8"]["requests"] == 24  # in four minutes
    both = simulate("--requests", requests, "--rate", "1")
    assert both.code == 2 and "give one of them" in both.err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "line 1 must be the header 't_s'"),
        ("time\n1\n", "line 1 must be the header 't_s'"),
        ("t_s\n\n", "no requests"),
        ("t_s\n1\nsoon\n", "line 3: 'soon' is not a number"),
        ("t_s\n1\nnan\n", "line 3: must be a finite number"),
        ("t_s\n-1\n", "line 2: must be a finite number"),
        ("t_s\n5\n\n4\n", "line 4: 4 s is before the request above it, 5 s"),
        ("t_s\n90000\n", "all 1 come after the day"),
    ],
)
def test_bad_requests(simulate, tmp_path, rows, words):
    path = tmp_path / "requests.csv"
    path.write_text(rows)
    called = simulate("--requests", path)
    assert called.code == 1 and words in called.err
    assert str(path) in called.err or "after the day" in words


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--policy", "fixed:w9"), 1, "no operating point 'w9'"),
        (("--policy", "treshold"), 1, "no policy 'treshold'; did you mean 'threshold'"),
        (("--policy", "threshold,threshold"), 1, "each once"),
        (("--policy", "lyapunov:1"), 1, "lyapunov:TARGET:V"),
        (("--policy", "learned"), 1, "learned:FILE.npz"),
        (("--policy", "a,b,c,d,e,f"), 2, "at most 5"),
        (("--device", "camra"), 1, "did you mean 'camera'"),
        (("--profile", "bit-serious"), 1, "did you mean 'bit-serial'"),
        (("--points", "w8a8,w7"), 1, "no operating point 'w7'"),
        (("--execute",), 2, "--execute and --data belong together"),
        (("--charge", "1.5"), 2, "a number from 0 to 1"),
        (("--step", "7"), 1, "whole minutes"),
    ],
)
def test_wrong_arguments(simulate, options, code, words):
    called = simulate(*options)
    assert called.code == code and words in called.err


@pytest.mark.parametrize("policy", ["price", "pacing"])
def test_what_is_shipped_is_the_camera_s(simulate, tmp_path, policy):
    other = tmp_path / "other.yaml"
    camera = (PROFILES / "devices" / "camera.yaml").read_text()
    other.write_text(camera.replace("battery_capacity_ah: {value: 0.1", "battery_capacity_ah: {value: 0.2"))
    called = simulate("--policy", policy, "--device", other)
    assert called.code == 1 and f"{policy}: what is shipped is the camera's" in called.err


GRID = """
title: two policies
policies: ['fixed:w4a4', threshold, 'lyapunov:1.0:1']
profiles:
- {name: camera, device: camera, points: camera}
seeds: [0]
devices: 3
chunk: 2
step_s: 3600
"""


def test_fleet(call, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    first = call("fleet", grid, "--out", tmp_path / "a", "--json").json
    assert [row["policy"] for row in first["rows"]] == ["fixed:w4a4", "threshold", "lyapunov:1.0:1"]
    assert first["rows"][0]["accuracy"] == pytest.approx(0.7248, abs=1e-4)
    assert first["rows"][1]["switches"] > first["rows"][0]["switches"] == 1
    assert (tmp_path / "a" / "report.html").read_text().count("<img") == 2
    again = call("fleet", grid, "--out", tmp_path / "b", "--workers", "2", "--json").json
    assert first["sha256"] == again["sha256"] and first["rows"] == again["rows"]
    with np.load(tmp_path / "a" / "camera-0-2.npz") as file:
        assert file["result"].shape[2] == 1
    assert json.loads((tmp_path / "a" / "grid.json").read_text())["devices"] == 3


def test_fleets_that_cannot_be(call, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("w4a4", "w4a5"))
    called = call("fleet", grid, "--out", tmp_path / "a")
    assert called.code == 1 and "no operating point 'w4a5'; did you mean" in called.err
    grid.write_text(GRID.replace("devices: 3", "devices: many"))
    called = call("fleet", grid, "--out", tmp_path / "b")
    assert called.code == 1 and "grid.yaml: devices: must be a whole number" in called.err
    assert call("fleet", grid, "--out", tmp_path / "b", "--ray", "--workers", "2").code == 2
    grid.write_text(GRID.replace("devices: 3", "devices: 2"))
    assert call("fleet", grid, "--out", tmp_path / "a").code == 0  # nothing of the other grid was finished there
