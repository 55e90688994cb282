"""Operating points' costs and devices: their tables, files and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import caq
from caq.costs import load_profile
from caq.errors import AssignmentError, ConfigError
from simulators.device import PROFILES, PointCosts, main, read_device, read_points, write_points
from tests import models


def costs(**columns: list[float]) -> PointCosts:
    given = {"accuracy": [0.9, 0.8], "latency_s": [2.0, 1.0], "energy_j": [4.0, 3.0], "resident_bytes": [9.0, 9.0]}
    arrays = {name: np.array(column) for name, column in (given | columns).items()}
    return PointCosts(("wide", "narrow"), "made up", **arrays)


def test_the_points_of_an_artifact_cost_what_the_profile_says() -> None:
    model, profile = models.tiny(), load_profile("bit-serial")
    found = PointCosts.of(model, profile)
    assert found.names == tuple(p.name for p in model.points)
    for i, point in enumerate(model.points):
        cost = profile.cost(model.graph, point.assignment)
        assert (found.latency_s[i], found.energy_j[i]) == (cost.latency_s, cost.energy_j)
        assert found.accuracy[i] == point.score
        assert found.resident_bytes[i] > cost.weight_bytes
    assert "modelled" in found.source and "measured" in found.source


def test_points_that_nobody_measured_are_refused() -> None:
    model = models.tiny()
    points = tuple(point._replace(samples=0) for point in model.points)
    object.__setattr__(model, "points", points)
    with pytest.raises(ConfigError, match="no measured accuracy"):
        PointCosts.of(model, load_profile("bit-serial"))


def test_what_another_point_beats_is_left_out() -> None:
    beaten = PointCosts(
        ("cheap", "dear", "good"),
        "made up",
        np.array([0.8, 0.7, 0.9]),
        np.array([1.0, 1.0, 2.0]),
        np.array([1.0, 2.0, 3.0]),
        np.array([5.0, 5.0, 5.0]),
    )
    assert beaten.efficient().names == ("good", "cheap")
    assert costs().efficient().names == ("wide", "narrow")


def test_points_are_chosen_by_name() -> None:
    one = costs().choose(["narrow"])
    assert one.names == ("narrow",) and one.energy_j.tolist() == [3.0]
    with pytest.raises(AssignmentError, match=r"'narow'; did you mean 'narrow'"):
        costs().choose(["narow"])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("accuracy", [0.9, 1.2], r"accuracy of 'narrow' must be 0..1, not 1.2"),
        ("energy_j", [0.0, 1.0], r"energy_j of 'wide' must be a finite number above 0"),
        ("latency_s", [1.0, float("nan")], r"latency_s of 'narrow'"),
        ("resident_bytes", [1.0], r"resident_bytes has shape \(1,\)"),
    ],
)
def test_impossible_costs_are_refused(column: str, values: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        costs(**{column: values})


def test_a_table_is_read_back(tmp_path: Path) -> None:
    write_points(tmp_path / "t.yaml", costs(), "two points")
    found = read_points(tmp_path / "t.yaml")
    assert found.names == ("wide", "narrow") and found.source == "made up"
    np.testing.assert_array_equal(found.energy_j, costs().energy_j)


def test_the_command_writes_a_table(tmp_path: Path) -> None:
    caq.save(models.tiny(), tmp_path / "t.caq")
    arguments = [str(tmp_path / "t.caq"), "--profile", "bit-serial", "--title", "tiny", "--out"]
    assert main([*arguments, str(tmp_path / "t.yaml"), "--all"]) == 0
    expected = PointCosts.of(caq.load(tmp_path / "t.caq"), load_profile("bit-serial"))
    found = read_points(tmp_path / "t.yaml")
    assert found.names == expected.names
    np.testing.assert_allclose(found.energy_j, expected.energy_j, rtol=1e-3)


@pytest.mark.parametrize("path", sorted((PROFILES / "points").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_tables_offer_a_real_choice(path: Path) -> None:
    table = read_points(path.stem)
    assert len(table) > 2 and table.efficient().names == table.names
    assert "measured" in table.source and "modelled" in table.source


@pytest.mark.parametrize("path", sorted((PROFILES / "devices").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_devices_say_where_their_figures_are_from(path: Path) -> None:
    device = read_device(path.stem)
    assert device.idle_power_w > 0 and device.charger_power_w > 0
    assert all(source.text for source in device.sources.values()) and len(device.sources) > 5


def test_files_are_refused_with_the_field(tmp_path: Path) -> None:
    good = yaml.safe_load((PROFILES / "devices" / "camera.yaml").read_text())

    def refused(change: dict[str, object]) -> str:
        (tmp_path / "d.yaml").write_text(yaml.safe_dump(good | change))
        with pytest.raises(ConfigError) as caught:
            read_device(tmp_path / "d.yaml")
        return str(caught.value)

    assert "unknown key 'idle_power'; did you mean 'idle_power_w'?" in refused({"idle_power": 1})
    assert "idle_power_w.value: must be a finite number" in refused({"idle_power_w": {"value": "x", "source": "guess"}})
    assert "restart_above.value: must be 0..1" in refused({"restart_above": {"value": 5, "source": "guess"}})
    assert "deadline_s.source: must be one of" in refused({"deadline_s": {"value": 5, "source": "nowhere"}})
    (tmp_path / "p.yaml").write_text("title: t\nsource: s\npoints: [{name: a}]\n")
    with pytest.raises(ConfigError, match=r"p.yaml: points\[0\]: the key 'accuracy' is missing"):
        read_points(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match="no devices 'camra'; did you mean 'camera'"):
        read_device("camra")
