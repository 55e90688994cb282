"""The native kernels against the reference engine, bit for bit: every instruction set, panels or not, any threads."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caq import native, program
from caq.engine import Engine
from caq.errors import ConfigError, DataError, SchemaError
from caq.graph import Assignment
from caq.kernels import reference as reference_kernels
from caq.model import Model, OperatingPoint
from caq.native import NativePlan, Tables
from caq.plan import build_plan
from caq.program import Program
from caq.scaling import InputScaling
from tests import models
from tests.native_graphs import RELU, SIGNED, SPECIAL, Net, random_model

SOAK = bool(os.environ.get("CAQ_SOAK"))
WIDTHS = (2, 3, 4, 5, 6, 8)
ISAS = [name for name, reason in program.isa_names().items() if not reason]
Samples = NDArray[np.generic]


# --- comparing


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch):
    """As many threads as tests ask for, whatever this machine has."""
    monkeypatch.setattr(program, "cpus", lambda: 4)


def samples(m: Model, count: int, seed: int = 0) -> Samples:
    if m.scaling.dtype == "int16":
        rng = np.random.default_rng(seed)
        return rng.integers(-(2**15), 2**15, (count, *m.sample_shape)).astype(np.int16)
    return models.samples(m, count, seed)


def as_int16(m: Model) -> Model:
    """The model of float32 samples, fed with what those become at once."""
    s = m.scaling
    return m.replace(scaling=InputScaling("int16", s.step, s.multiplier, s.offset, s.shift, np.ones_like(s.resolution)))


def soil(program: Program, rng: np.random.Generator) -> None:
    """Leaves any bytes in the arena that the next inference gets: it must not depend on them."""
    arena = program.borrow_arena()
    arena[0 : len(arena)] = rng.bytes(len(arena))
    program.arenas.append(arena)


def disagreements(m: Model, count: int = 3, assignments: int = 3, seed: int = 0) -> list[str]:
    """Where native engines differ from the reference, over all points and some random assignments."""
    rng = np.random.default_rng(seed)
    x = samples(m, count, seed)
    reference = Engine(m, kernels="reference")
    work: list[tuple[str, Assignment, int | None]] = [(p.name, p.assignment, p.parameter_set) for p in m.points]
    work += [("random", models.mixed(m.graph, rng), None) for _ in range(assignments)]
    wanted = [reference.run_plan(reference.build(a, own), x) for _, a, own in work]
    found = []
    for isa in ISAS:
        for lean, threads in ((False, 1), (True, 1), (bool(seed % 2), 2 + seed % 3)):
            engine = Engine(m, isa=isa, lean=lean, threads=threads)
            assert engine.program is not None and engine.threads == threads
            if threads > 1:
                engine.program.pointer.team.grain = 1  # else all these steps are too small
            for (name, a, own), y in zip(work, wanted, strict=True):
                plan = engine.build(a, own)
                soil(engine.program, rng)
                many = engine.run_plan(plan, x)
                soil(engine.program, rng)
                one = engine.run_plan(plan, x[0])
                if not (np.array_equal(many, y) and np.array_equal(one, y[0])):
                    found.append(
                        f"{isa}{' lean' * lean} x{threads} {name} {','.join(map(str, a))}: {np.sum(many != y)} differ"
                    )
    return found


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("seed", range(30))
def test_models_of_every_operation(seed, dtype):
    m = models.model(seed, "uint8" if dtype == "uint8" else "float32", WIDTHS)
    assert disagreements(as_int16(m) if dtype == "int16" else m, seed=seed) == []


# --- graphs that tests.models does not make


@pytest.mark.parametrize("shape", [(5, 7, 3), (9, 4, 3), (1, 13, 3)], ids=str)
@pytest.mark.parametrize("build", SPECIAL, ids=lambda build: build.__name__)
def test_special_graphs(build, shape):
    net = Net(*shape)
    build(net)
    for seed in range(2):
        assert disagreements(net.model(seed), seed=seed) == []


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("channels", [8, 16, 24, 32, 64, 72, 130])
def test_depthwise(channels, dilation, stride):
    net = Net(7, 11, 3)
    a = net.conv(0, channels, codes=RELU)
    b = net.depthwise(a, stride=(stride, stride), dilation=(dilation, dilation), codes=(-100, 127))
    net.head(net.depthwise(b, 2, codes=RELU))
    assert disagreements(net.model(channels), count=2) == []


@pytest.mark.parametrize("channels", [1, 4, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 96, 128, 130])
def test_residual_of_any_channels(channels):
    """A tile's pixels lie together in the output, and not in the residual, or the other way around."""
    net = Net(5, 7, 3)
    a = net.conv(0, channels)
    b = net.add("add", net.conv(a, channels, 3), a, codes=SIGNED)  # from a halo, into none
    c = net.add("add", b, net.conv(b, channels), codes=SIGNED)  # without halos
    d = net.add("add", net.conv(c, channels), c, codes=RELU)  # into a halo, if not from one
    net.head(net.conv(d, 4, 3))
    assert disagreements(net.model(channels), count=2) == []


@pytest.mark.soak
def test_random_graphs():
    for seed in range(20000 if SOAK else 120):
        assert disagreements(random_model(seed), count=2, assignments=1, seed=seed) == [], seed


# --- which instruction set


def test_the_environment_chooses_the_instruction_set(monkeypatch):
    names = list(program.isa_names())
    for name in ISAS:
        monkeypatch.setenv("CAQ_ISA", name)
        chosen = Engine(models.tiny()).program
        assert chosen is not None and names[chosen.isa] == name
        given = Engine(models.tiny(), isa="portable").program
        assert given is not None and names[given.isa] == "portable"
    monkeypatch.setenv("CAQ_ISA", "")
    assert names[program.choose_isa()] == ISAS[-1]
    monkeypatch.delenv("CAQ_ISA")
    assert names[program.choose_isa()] == ISAS[-1]


def test_instruction_sets_that_do_not_run_here(monkeypatch):
    monkeypatch.setattr(
        program, "isa_names", lambda: {"portable": "", "avx2": "this CPU does not have it", "neon": "not built"}
    )
    assert program.choose_isa() == 0
    for name, reason in {"avx2": "this CPU does not have it", "neon": "not built", "sse9": "unknown"}.items():
        monkeypatch.setenv("CAQ_ISA", name)
        with pytest.raises(ConfigError, match=f"^instruction set '{name}': {reason}; choose one of portable$"):
            Engine(models.tiny())
    assert Engine(models.tiny(), kernels="reference").program is None


# --- what a call accepts


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_samples_that_the_fast_way_does_not_take(dtype):
    found = (models.model(seed, "uint8" if dtype == "uint8" else "float32") for seed in range(100))
    m = next(m for m in found if m.sample_shape[2] == 3)
    engine = Engine(as_int16(m) if dtype == "int16" else m)
    m = engine.model
    x = samples(m, 1)[0]
    wanted = engine.run(x)
    plan = engine.plan
    assert isinstance(plan, NativePlan)
    np.testing.assert_array_equal(plan.run_sample(x), wanted)
    read_only = x.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(plan.run_sample(read_only), wanted)
    slow = [
        np.asfortranarray(x),
        np.repeat(x, 2, 0)[::2],
        x[::-1].copy()[::-1],
        x[None],
        x.view(type("Mine", (np.ndarray,), {})),
    ]
    for other in slow:
        assert plan.run_sample(other) is None
        np.testing.assert_array_equal(engine.run(other).reshape(wanted.shape), wanted)
    for bad in (x.astype(np.float64), x.astype(x.dtype.newbyteorder(">")) if dtype != "uint8" else x.astype(np.int8)):
        assert plan.run_sample(bad) is None
        with pytest.raises(DataError, match=f"must be a {dtype} array, not"):
            engine.run(bad)
    for shape in (x[:-1], x[..., 0], x.reshape(-1), x[None, None]):
        assert plan.run_sample(shape) is None
        with pytest.raises(DataError, match="samples of shape"):
            engine.run(shape)
    with pytest.raises(DataError, match="samples of shape"):
        engine.run(x.tolist()[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(value):
    engine = Engine(models.model(0, "float32"))
    x = samples(engine.model, 4)
    wanted = engine.run(x)
    spoilt = x.copy()
    spoilt[2].flat[-1] = spoilt[3].flat[0] = value
    for count, bad in ((2, spoilt), (1, spoilt[2]), (1, np.asfortranarray(spoilt[2]))):
        with pytest.raises(DataError, match=f"samples: {count} value.* NaN or infinite"):
            engine.run(bad)
    np.testing.assert_array_equal(engine.run(x), wanted)
    np.testing.assert_array_equal(engine.run(x[0]), wanted[0])


def test_gray_images_without_a_channel():
    engine = Engine(models.tiny())
    x = samples(engine.model, 3)
    wanted = engine.run(x)
    assert engine.plan.run_sample(x[0, ..., 0]) is None
    np.testing.assert_array_equal(engine.run(x[0, ..., 0]), wanted[0])
    np.testing.assert_array_equal(engine.run(x[..., 0]), wanted)


# --- plans


def test_trim_frees_the_other_plans():
    m = models.model(2)
    x = samples(m, 2)
    engine = Engine(m)
    wanted, plans = {}, {}
    for name in engine.points:
        engine.select(name)
        wanted[name] = engine.run(x)
        plans[name] = weakref.ref(engine.plan)
    assert engine.program is not None and engine.plan.weight_bytes == engine.program.panel_bytes > 0
    held = plans["w4a4"]()
    engine.trim()
    assert [name for name, plan in plans.items() if plan() is not None] == ["w4a4", engine.point]
    np.testing.assert_array_equal(engine.run_plan(held, x), wanted["w4a4"])
    for name in (*engine.points, *reversed(engine.points)):
        before = plans[name]()
        engine.select(name)
        assert before in (None, held, engine.plan)
        np.testing.assert_array_equal(engine.run(x), wanted[name])
        engine.trim()


def test_a_plan_outlives_its_engine():
    engine = Engine(models.model(2))
    x = samples(engine.model, 2)
    plan, wanted = engine.plan, engine.run(x)
    del engine
    np.testing.assert_array_equal(plan.run(x), wanted)


def test_lean_plans_hold_no_weights():
    m = models.model(2)
    fast, lean = Engine(m), Engine(m, lean=True)
    assert fast.plan.weight_bytes > 0 == lean.plan.weight_bytes
    assert lean.program.arena_bytes > fast.program.arena_bytes


@pytest.mark.parametrize("isa", ISAS)
def test_scratch_is_for_64_channels_at_a_time(isa):
    """However many channels a layer has; only the room for requantization grows with them, by 24 bytes."""

    def scratch(channels: int) -> int:
        n = Net(4, 4, 32)
        n.conv(0, channels, 3)
        program = Program(n.model(0), lean=True, isa=isa)
        return int(native.lib.caq_scratch_bytes(program.isa, program.pointer))

    weights = 64 * 32 * 9
    assert weights < scratch(64) < 2 * weights + 1000
    assert scratch(640) <= max(scratch(64), weights + 64 + 24 * 640)


@pytest.mark.parametrize("lean", [False, True])
def test_a_narrow_reader(lean):
    m = models.model(4, widths=WIDTHS)
    narrow = m.replace(planes=m.planes[:2].copy())
    x = samples(m, 3)
    reference = Engine(m, kernels="reference")
    for isa in ISAS:
        engine = Engine(narrow, max_width=2, isa=isa, lean=lean)
        assert set(engine.points) == {"w2a2"}
        np.testing.assert_array_equal(engine.run(x), reference.run(x))


def test_refused_parameters_are_named_as_the_reference_names_them():
    m = models.model(0)
    p = m.parameters
    exponents, ratios, bias = p.gain_exponent.copy(), p.ratios.copy(), p.bias_exponent.copy()
    exponents[:, 1] = 60
    ratios[2] = 2.0**-20
    bias[:, 3] = 20
    steps = p.steps.copy()
    clamp = next(i for i, op in enumerate(m.graph.ops) if op.kind == "clamp")
    steps[clamp + 1] = 2.0**-40
    add = next(i for i, op in enumerate(m.graph.ops) if op.kind == "add")
    tiny = p.steps.copy()
    tiny[add + 1] = 2.0**-40
    cases = {
        "layer .* at w8a8: .* out of range": p.replace(gain_exponent=exponents),
        "layer .* at w4a4: input: .* out of range": p.replace(ratios=ratios),
        "layer .* at w2a2: .* out of range": p.replace(bias_exponent=bias),
        "clamp .* out of range": p.replace(steps=steps),
        "add .* inputs' steps": p.replace(steps=tiny),
    }
    for words, parameters in cases.items():
        bad = m.replace(parameters=parameters)

        def reference(point: OperatingPoint) -> None:
            build_plan(bad.graph, bad.parameters, bad.planes, point.assignment, point.parameter_set)  # noqa: B023

        def native_plan(point: OperatingPoint, **options: Any) -> None:
            program = Program(bad, **options)  # noqa: B023
            NativePlan(program, Tables(program, point.assignment, point.parameter_set))

        wanted = [refusal(reference, point) for point in m.points]
        assert any(re.match(words, message) for message in wanted), wanted
        for options in ({"isa": isa, "lean": lean} for isa in ISAS for lean in (False, True)):
            assert [refusal(native_plan, point, **options) for point in m.points] == wanted


def refusal(make: Callable[..., None], *args: object, **options: object) -> str:
    try:
        make(*args, **options)
    except SchemaError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("step", [1e-6, 0.003, 0.05, 0.7, 30.0])
def test_softmax(step):
    rng = np.random.default_rng(0)
    codes = rng.integers(-300, 300, (200, 12)).astype(np.int16)
    codes[:4] = [[0] * 12, [-32768] * 11 + [32767], [5] * 6 + [4] * 6, rng.integers(-32768, 32768, 12)]
    factor = reference_kernels.softmax_factor(step)
    found = native.softmax(codes, factor)
    np.testing.assert_array_equal(found, reference_kernels.softmax(codes, factor))
    real = np.exp((codes.astype(float) - codes.max(1, keepdims=True)) * step)
    assert np.abs(found / 65535 - real / real.sum(1, keepdims=True)).max() < 2e-4


def test_probabilities_of_an_engine():
    m = models.tiny()
    x = np.random.default_rng(0).integers(0, 256, (5, *m.sample_shape)).astype(np.uint8)
    engine, slow = Engine(m), Engine(m, kernels="reference")
    y = engine.run(x)
    p = engine.probabilities(y)
    assert p.dtype == np.float32 and p.shape == y.shape
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-4)
    np.testing.assert_array_equal(p, slow.probabilities(y))
    np.testing.assert_array_equal(p[0], engine.probabilities(y[0]))
    for wrong in (y.astype(np.int32), y[:, :1], y.tolist()):
        with pytest.raises(DataError, match="output codes"):
            engine.probabilities(wrong)
