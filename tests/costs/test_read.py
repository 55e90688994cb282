"""Profile files: what is read, and what is refused by name of file and field."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from caq.costs import load_profile, parse_profile, profile_names
from caq.costs.profile import SOURCES, TERMS
from caq.costs.read import SHIPPED
from caq.errors import ConfigError

GOOD: dict[str, Any] = yaml.safe_load("""
title: a device
clock: {value: 100, unit: MHz, source: board}
arithmetic: bit_serial
weights: packed
combine: max
tile: {outputs: 8, fan_in: 64}
memory:
  - level: SRAM
    capacity: {value: 64, unit: KiB, source: board}
    latency: {value: 0.5, unit: cycle, source: fit}
    energy: {value: 2, unit: pJ, source: fit}
  - level: flash
    capacity: {value: 1, unit: MiB, source: board}
    latency: {value: 3, unit: cycle, source: fit}
    energy: {value: 40, unit: pJ, source: fit}
latency:
  mac_conv: {value: 2, unit: cycle, source: fit}
  inference: {value: 1.5, unit: us, source: fit}
energy:
  power: {value: 30, unit: mW, source: fit}
  mac_conv: {value: 5, unit: pJ, source: fit}
sources:
  board: {kind: literature, text: its datasheet}
  fit: {kind: fitted, text: "on rows, 10 % off"}
""")


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with one field set, or removed where the value is ...; a number in the path is an index."""
    data = copy.deepcopy(GOOD)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    at: Any = data
    for key in parents:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return data


def test_figures_are_read_in_si_units(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    p = load_profile(path)
    assert p == parse_profile(GOOD, "mine", str(path)) and p.name == "mine"
    assert p.latency["mac_conv"].value == pytest.approx(2e-8)
    assert p.latency["inference"].value == pytest.approx(1.5e-6) and p.latency["inference"].source == "fit"
    assert p.energy["mac_conv"].value == pytest.approx(5e-12) and p.power.value == pytest.approx(0.03)
    assert [(level.name, level.capacity.value) for level in p.memory] == [("SRAM", 65536), ("flash", 2**20)]
    assert p.memory[1].latency.value == pytest.approx(3e-8) and p.memory[1].energy.value == pytest.approx(4e-11)
    assert p.tile == (8, 1, 64) and (p.arithmetic, p.weights, p.combine) == ("bit_serial", "packed", "max")
    assert p.sources["fit"] == ("fitted", "on rows, 10 % off")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("title", ..., "the file: the key 'title' is missing"),
        ("speed", 3, "the file: unknown key 'speed'"),
        ("latencies", {}, "did you mean 'latency'"),
        ("title", "", "title: must be a text"),
        ("arithmetic", "serial", "arithmetic: must be one of byte, bit_serial, not 'serial'"),
        ("weights", None, "weights: must be one of packed"),
        ("combine", ["max"], "combine: must be one of sum"),
        ("tile.rows", 2, r"tile: unknown key 'rows'"),
        ("tile.outputs", 0, "tile.outputs: must be an integer from 1"),
        ("tile.outputs", True, "tile.outputs: must be an integer from 1"),
        ("tile.outputs", 2.0, "tile.outputs: must be an integer from 1"),
        ("memory", [], "memory: needs at least one level"),
        ("memory", {}, "memory: must be a list"),
        ("memory.0.capacity.value", 0, r"memory\[0\].capacity.value: must be above 0"),
        ("memory.0.capacity.unit", "cycle", r"memory\[0\].capacity.unit: must be one of B, KiB"),
        ("memory.1.capacity.unit", "B", "memory: levels stand from the smallest"),
        ("memory.1.energy", ..., r"memory\[1\]: the key 'energy' is missing"),
        ("latency.mac", {"value": 1, "unit": "s", "source": "fit"}, "latency: unknown key 'mac'"),
        ("latency.mac_conv", 2, "latency.mac_conv: must be a mapping"),
        ("latency.mac_conv.source", ..., "latency.mac_conv: the key 'source' is missing"),
        ("latency.mac_conv.source", "paper", "latency.mac_conv.source: must be one of board, fit, not 'paper'"),
        ("latency.mac_conv.value", -1, "latency.mac_conv.value: must be at least 0, not -1"),
        ("latency.mac_conv.value", float("nan"), "latency.mac_conv.value: must be a finite number"),
        ("latency.mac_conv.value", float("inf"), "latency.mac_conv.value: must be a finite number"),
        ("latency.mac_conv.value", "2", "latency.mac_conv.value: must be a finite number, not '2'"),
        ("latency.mac_conv.value", True, "latency.mac_conv.value: must be a finite number"),
        ("latency.mac_conv.unit", "pJ", "latency.mac_conv.unit: must be one of s, ms, us, ns, ps, cycle"),
        ("energy.mac_conv.unit", "cycle", "energy.mac_conv.unit: must be one of J"),
        ("energy.power", ..., "energy: the key 'power' is missing"),
        ("energy.power.unit", "kW", "energy.power.unit: must be one of W, mW"),
        ("clock", ..., "latency.*unit: cycles need a clock"),
        ("clock.value", 0, "clock.value: must be above 0"),
        ("sources", [], "sources: must be a mapping"),
        ("sources.fit.kind", "guessed", f"sources.fit.kind: must be one of {', '.join(SOURCES)}"),
        ("sources.fit.text", " ", "sources.fit.text: must be a text"),
        ("sources.other", {"kind": "assumed", "text": "x"}, "sources: no figure refers to other"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(ConfigError, match=message) as error:
        load_profile(file)
    assert str(error.value).startswith(f"{file}: ")


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "a: &x 1\nb: *x", "title: a\ntitle: b", "\x00", "a: {"])
def test_a_file_that_is_no_profile(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yml: "):
        load_profile(file)


def test_profiles_by_name() -> None:
    assert {"bit-serial", "cortex-m4", "cortex-m7", "host", "raspberry-pi-4"} == set(profile_names())
    with pytest.raises(ConfigError, match="no device profile 'cortex-m71'; did you mean 'cortex-m7'"):
        load_profile("cortex-m71")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_profile("nowhere.yaml")


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_figure_has_its_source(name: str) -> None:
    """That each names one is the reader's work; here: every MAC has a price, and fits say how wrong they are."""
    p = load_profile(name)
    assert {term for term in TERMS if term.startswith("mac_")} <= set(p.latency)
    for source in p.sources.values():
        assert source.kind != "fitted" or "error" in source.text
    kinds = {source.kind for source in p.sources.values()}
    assert kinds <= set(SOURCES) and (name not in ("cortex-m4", "cortex-m7", "host") or "fitted" in kinds)
    assert (SHIPPED / f"{name}.yaml").read_text().startswith("# ")
