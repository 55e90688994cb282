"""profile: do the figures add up? How long anything takes is not asserted."""

from dataclasses import replace

import numpy as np
import pytest

from caq import program, roofline
from caq.artifact import save
from caq.engine import Engine
from caq.errors import ConfigError
from caq.graph import Graph, Op
from caq.roofline import Machine, last_level_cache, measure_machine, profile
from tests import models
from tests.conditional_models import with_gate

ISAS = [name for name, reason in program.isa_names().items() if not reason]
FAST = ("--seconds", "0.01")
#: Slow enough at both that either bounds some steps of a small model.
A_MACHINE = Machine("any", 1e9, ((1000, 2e9), (100_000, 1e9)))


@pytest.fixture
def a_machine(monkeypatch):
    """Spares the measurement of this machine."""
    monkeypatch.setattr(roofline, "measure_machine", lambda isa: replace(A_MACHINE, isa=isa))


def profile_json(call, files, *options):
    return call("profile", files.artifact, "--json", *FAST, *options).json


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("point", ["w2a2", "mixed"])
def test_the_steps_add_up(point, isa, a_machine, files, call):
    found = profile_json(call, files, "--point", point, "--isa", isa)
    engine = Engine(files.artifact, isa=isa)
    engine.select(point)
    graph, program = engine.model.graph, engine.program
    cost = graph.cost(engine.plan.assignment)
    steps, totals, memory = found["steps"], found["totals"], found["memory"]
    assert (found["point"], found["isa"], found["lean"]) == (point, isa, False)
    assert [step["step"] for step in steps] == [program.name_of(i) for i in range(len(program.order))]
    assert sum(step["macs"] for step in steps) == totals["macs"] == cost.macs
    assert sum(step["plane_bytes"] for step in steps) == cost.weight_bytes
    assert sum(step["share"] for step in steps) == pytest.approx(1)
    assert sum(step["time_us"] for step in steps) == pytest.approx(totals["steps_us"])
    assert sum(step["roof_us"] for step in steps) == pytest.approx(totals["roof_us"])
    assert totals["run_us"] == pytest.approx(totals["inference_us"] + totals["call_us"])
    assert [step["widths"] for step in steps if step["widths"]] == [str(pair) for pair in engine.plan.assignment]
    assert 0 < sum(step["panel_bytes"] for step in steps) <= memory["panel_bytes"] == program.panel_bytes
    assert memory["tensors_lower_bound_bytes"] <= memory["tensors_peak_bytes"] <= memory["arena_bytes"]
    for step in steps:
        assert step["time_us"] > 0 and step["unpack_us"] == 0 and step["tensor_bytes"] > 0
        assert step["roof_share"] == pytest.approx(step["roof_us"] / step["time_us"])
        assert step["macs_per_s"] == pytest.approx(step["macs"] / step["time_us"] * 1e6)
        if step["widths"] is None:
            assert step["macs"] == step["plane_bytes"] == step["panel_bytes"] == 0 and step["bound"] == "memory"


def test_a_conditional_point_is_profiled_branch_by_branch(a_machine, tmp_path, call):
    model = with_gate(models.model(0), 0, 3)
    save(model, tmp_path / "m.caq")
    options = ("profile", tmp_path / "m.caq", "--point", "conditional", "--json", *FAST)
    for i, branch in enumerate(model.points[-1].branches):
        found = call(*options, "--branch", i).json
        assert [step["widths"] for step in found["steps"] if step["widths"]] == [str(p) for p in branch.assignment]
        assert found["branch"] == i and found["totals"]["gate_us"] > 0
    shares = model.points[-1].shares
    assert call(*options).json["branch"] == shares.index(max(shares))
    assert "branch 3: point 'conditional' has 3, counted from 0" in call(*options, "--branch", 3).err


def test_what_is_in_the_steps_of_a_tiny_model(a_machine):
    steps = profile(Engine(models.tiny(), isa="portable"), 0.01).steps
    assert [(s.name, s.kind, str(s.widths), s.macs) for s in steps] == [
        ("c", "conv", "w2a8", 4 * 2 * 4),
        ("p", "avg_pool", "None", 0),
        ("f", "linear", "w2a2", 4),
    ]
    # 3 x 3 to 2 x 2 x 2, to 2, to 2 of 16 bits; weights: 8 codes a byte, and blocks of 4 channels and 4 inputs.
    assert [s.tensor_bytes for s in steps] == [9 + 8, 8 + 2, 2 + 4]
    assert [s.plane_bytes for s in steps] == [2, 0, 2]
    assert [s.panel_bytes for s in steps] == [2 * 4 * 4, 0, 4 * 4]
    # At 1e9 MAC/s; bandwidths below the smallest size are that one's.
    assert [s.roof.bound for s in steps] == ["compute", "memory", "memory"]
    assert [s.roof.time_s for s in steps] == pytest.approx([32e-9, 10 / 2e9, (16 + 6) / 2e9])


def test_kinds_of_layers(a_machine):
    ops = (
        Op("conv", (0,), "first", channels=2, kernel=(3, 3), padding=(1, 1, 1, 1)),
        Op("conv", (1,), "groups", channels=2, kernel=(3, 3), groups=2),
        Op("conv", (2,), "points", channels=4),
        Op("max_pool", (3,), "", kernel=(2, 2)),
        Op("conv", (4,), "last", channels=3),
    )
    model = models.from_graph(Graph((4, 4, 2), ops, (2, 8)), np.random.default_rng(0))
    found = {step.name: step.kind for step in profile(Engine(model), 0.01).steps}
    kinds = {"first": "conv", "groups": "depthwise", "points": "pointwise", "max_pool": "max_pool", "last": "linear"}
    assert found == kinds


@pytest.mark.parametrize("isa", ISAS)
def test_panels_of_narrow_weights(isa):
    graph = Graph((1, 1, 64), (Op("conv", (0,), "l", channels=16),), (2, 3, 4, 5, 8))
    program = Engine(models.from_graph(graph, np.random.default_rng(0)), isa=isa).program
    packed = [256, 512, 512, 1024, 1024] if isa == "avx512vnni" else [1024] * 5
    assert [program.panel_bytes_of(0, width) for width in graph.widths] == packed


def test_lean_shows_the_unpacking(monkeypatch, files, call):
    machine = replace(A_MACHINE, macs_per_s=1e15)  # so that the bytes alone count
    monkeypatch.setattr(roofline, "measure_machine", lambda isa: machine)
    full, lean = profile_json(call, files), profile_json(call, files, "--lean")
    assert lean["lean"] and lean["memory"]["panel_bytes"] == 0
    assert lean["memory"]["arena_bytes"] > full["memory"]["arena_bytes"]
    for step, with_panel in zip(lean["steps"], full["steps"], strict=True):
        assert (step["unpack_us"] > 0) == (step["widths"] is not None)
        assert step["panel_bytes"] == with_panel["panel_bytes"]
        # What it has to read besides: the planes.
        moved = step["plane_bytes"] + step["panel_bytes"] + step["tensor_bytes"]
        assert step["roof_us"] == pytest.approx(1e6 * machine.roof(step["macs"], moved).time_s)
    assert lean["totals"]["roof_us"] > full["totals"]["roof_us"]
    assert sum(step["unpack_us"] for step in lean["steps"]) == pytest.approx(lean["totals"]["unpack_us"])
    text = call("profile", files.artifact, "--lean", *FAST).out
    assert "unpacking" in text and "unpacking" not in call("profile", files.artifact, *FAST).out


@pytest.mark.parametrize("lean", [False, True])
def test_an_engine_answers_the_same_after_a_profile(lean, a_machine):
    engine = Engine(models.model(3), lean=lean)
    x = models.samples(engine.model, 2)
    wanted = engine.run(x)
    profile(engine, 0.01)
    np.testing.assert_array_equal(engine.run(x), wanted)


def test_text(a_machine, files, call):
    out = call("profile", files.artifact, "--point", "w4a4", *FAST).out
    assert f"{files.artifact} at w4a4, {ISAS[-1]}, one core\n" in out
    assert "Engine.run" in out and "measured: 1.0 GMAC/s" in out


def test_only_native_kernels_are_profiled():
    with pytest.raises(ConfigError, match="only native"):
        profile(Engine(models.tiny(), kernels="reference"))


def test_the_roof():
    machine = Machine("any", 100.0, ((10, 10.0), (1000, 30.0)))
    assert machine.roof(200, 10) == (2.0, "compute")
    assert machine.roof(50, 10) == (1.0, "memory")
    assert machine.roof(0, 100) == (pytest.approx(100 / 20), "memory")  # halfway, over the logarithm
    assert machine.roof(0, 5) == (0.5, "memory") and machine.roof(0, 3000) == (100.0, "memory")


@pytest.mark.parametrize(
    ("cache", "sizes"), [(2**10, [2**14, 2**16]), (2**16, [2**14, 2**16, 2**17]), (2**17, [2**14, 2**16, 2**18])]
)
def test_matrices_grow_beyond_the_last_cache(cache, sizes, monkeypatch):
    monkeypatch.setattr(roofline, "last_level_cache", lambda: cache)
    machine = measure_machine("portable")
    assert machine.isa == "portable" and machine.macs_per_s > 0
    # A matrix of 8-bit weights, and a vector in and out.
    fan_in = [size // 64 for size in sizes]
    assert [size for size, _ in machine.bandwidths] == [s + f + s // f for s, f in zip(sizes, fan_in, strict=True)]
    assert all(rate > 0 for _, rate in machine.bandwidths)


def test_last_level_cache(tmp_path):
    assert last_level_cache(tmp_path) == 2**25  # if nothing is known
    for index, text in enumerate(["32K", "1024K", "", "?"]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(text + "\n")
    assert last_level_cache(tmp_path) == 2**20
