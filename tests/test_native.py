"""The native kernels against the reference engine, bit for bit: every instruction set, panels or not, any threads."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caq import native, program
from caq.engine import Engine
from caq.errors import CaqError, ConfigError, DataError, SchemaError
from caq.graph import Assignment, Graph, Op, Shape
from caq.kernels import reference as reference_kernels
from caq.model import Model, OperatingPoint
from caq.native import NativePlan, Tables
from caq.plan import build_plan
from caq.program import Program
from caq.scaling import InputScaling
from tests import models

SOAK = bool(os.environ.get("CAQ_SOAK"))
WIDTHS = (2, 3, 4, 5, 6, 8)
ISAS = [name for name, reason in program.isa_names().items() if not reason]
SIGNED, RELU, WIDE = (-128, 127), (0, 255), (-(2**15), 2**15 - 1)
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


class Net:
    """A graph, an operation at a time; each gives the number of the tensor that it writes."""

    def __init__(self, *shape: int) -> None:
        self.shapes: list[Shape] = [(shape[0], shape[1], shape[2])]
        self.ops: list[Op] = []

    def add(self, kind: str, *inputs: int, codes: tuple[int, int] | None = None, **fields: object) -> int:
        if codes is not None:
            fields |= {"low": codes[0], "high": codes[1]}
        op = Op(kind, inputs, f"{kind}{len(self.ops)}", **fields)  # type: ignore[arg-type]
        (h, w, c), (top, bottom, left, right) = self.shapes[inputs[0]], op.padding
        h = (h + top + bottom - op.dilation[0] * (op.kernel[0] - 1) - 1) // op.stride[0] + 1
        w = (w + left + right - op.dilation[1] * (op.kernel[1] - 1) - 1) // op.stride[1] + 1
        if kind == "concat":
            c = sum(self.shapes[t][2] for t in inputs)
        self.shapes.append(op.shape if kind == "reshape" else (h, w, op.channels or c))  # type: ignore[arg-type]
        self.ops.append(op)
        return len(self.ops)

    def conv(self, source: int, channels: int, k: int = 1, *, codes: tuple[int, int] = SIGNED, **fields: object) -> int:
        """As large as its input, if nothing else is said."""
        fields = {"kernel": (k, k), "padding": ((k - 1) // 2, k // 2) * 2} | fields
        return self.add("conv", source, channels=channels, codes=codes, **fields)

    def depthwise(self, source: int, k: int = 3, **fields: object) -> int:
        channels = self.shapes[source][2]
        return self.conv(source, channels, k, groups=channels, **fields)  # type: ignore[arg-type]

    def head(self, source: int) -> int:
        """The whole tensor to a few 16-bit outputs."""
        flat = self.add("reshape", source, shape=(1, 1, math.prod(self.shapes[source])))
        return self.conv(flat, 5, codes=WIDE)

    def model(self, seed: int) -> Model:
        graph = Graph(self.shapes[0], tuple(self.ops), (2, 4, 7, 8))
        return models.from_graph(graph, np.random.default_rng(seed))


def residual_of_two_convs(n: Net) -> None:
    a = n.conv(0, 16)
    b, c = n.conv(a, 24, 3, codes=RELU), n.conv(a, 24, 1)
    n.head(n.add("add", c, b, codes=RELU))


def residual_of_the_convs_own_input(n: Net) -> None:
    a = n.conv(0, 16, 3)
    n.head(n.add("add", n.conv(a, 16, 3), a, codes=SIGNED))


def residual_of_the_networks_input(n: Net) -> None:
    n.head(n.add("add", 0, n.conv(0, 3, 3), codes=(-90, 100)))


def residual_into_a_halo(n: Net) -> None:
    a = n.conv(0, 16)
    n.head(n.conv(n.add("add", a, n.conv(a, 16, 3), codes=SIGNED), 8, 3))


def residual_of_a_depthwise(n: Net) -> None:
    a = n.conv(0, 32)
    n.head(n.add("add", a, n.depthwise(a), codes=SIGNED))


def three_terms(n: Net) -> None:
    a = n.conv(0, 7, codes=RELU)
    b, c = n.conv(a, 7, 3), n.conv(a, 7)
    n.head(n.add("add", a, b, c, codes=SIGNED))


def the_same_term_twice(n: Net) -> None:
    a = n.conv(0, 7)
    twice = n.add("add", a, a, codes=SIGNED)
    n.head(n.add("add", twice, a, twice, codes=RELU))


def adds_in_place(n: Net) -> None:
    """Terms that die in an add which no conv does, as a clamp stands before it."""
    a = n.conv(0, 6)
    b, c = n.add("clamp", a, codes=SIGNED), n.add("clamp", a, codes=(-20, 90))
    n.head(n.add("clamp", n.add("add", b, c, codes=SIGNED), codes=(-100, 30)))


def read_at_several_widths(n: Net) -> None:
    a = n.conv(0, 12, codes=RELU)
    parts = [n.conv(a, 5, k) for k in (1, 3, 5)]
    parts.append(n.add("max_pool", a, kernel=(3, 3), padding=(1, 1, 1, 1)))
    n.head(n.add("concat", *parts, codes=SIGNED))


def narrowed_by_whoever_writes(n: Net) -> None:
    """Every kind of step before a layer that is its only reader."""
    a = n.conv(0, 6, codes=RELU)
    a = n.conv(n.add("max_pool", a, kernel=(2, 2), padding=(0, 1, 0, 1)), 6, 3)
    a = n.conv(n.add("avg_pool", a, kernel=(2, 2), padding=(0, 1, 0, 1), codes=SIGNED), 6, 3)
    a = n.conv(n.add("clamp", a, codes=RELU), 6, 3)
    a = n.conv(n.add("concat", a, a, codes=RELU), 6, 3)
    a = n.conv(n.add("add", a, a, codes=RELU), 6, 3)
    n.head(a)


def reshapes_that_rename(n: Net) -> None:
    a = n.conv(0, 1)
    h, w, _ = n.shapes[0]
    flat = n.add("reshape", a, shape=(1, 1, h * w))
    b = n.conv(flat, h * w, codes=RELU)
    image = n.add("reshape", b, shape=(w, h, 1))
    n.head(n.add("concat", image, n.conv(image, 2), codes=RELU))


def reshape_to_a_padded_layer(n: Net) -> None:
    """It moves no code, but the layer wants a halo."""
    h, w, _ = n.shapes[0]
    b = n.conv(n.add("reshape", n.conv(0, 1), shape=(1, 1, h * w)), h * w)
    n.head(n.conv(n.add("reshape", b, shape=(h, w, 1)), 3, 3))


def reshapes_that_move(n: Net) -> None:
    h, w, _ = n.shapes[0]
    a = n.conv(0, 6)
    b = n.add("reshape", a, shape=(w * 2, h, 3))
    n.head(n.conv(n.add("reshape", n.conv(b, 6, 3), shape=(h, w * 4, 3)), 4, 3))


def reshaped_input(n: Net) -> None:
    h, w, c = n.shapes[0]
    n.head(n.conv(n.add("reshape", 0, shape=(c, h, w)), 4, 3))


def outputs_with_positions(n: Net) -> None:
    n.conv(n.conv(0, 9, 3), 4, 3, codes=WIDE)


def output_of_8_bits(n: Net) -> None:
    n.conv(n.conv(0, 9), 20, 3, codes=RELU)


def output_of_a_reshape(n: Net) -> None:
    h, w, _ = n.shapes[0]
    n.add("reshape", n.conv(0, 3, codes=WIDE), shape=(1, 1, h * w * 3))


def output_of_a_renaming(n: Net) -> None:
    h, w, _ = n.shapes[0]
    n.add("reshape", n.conv(0, 1, codes=SIGNED), shape=(1, 1, h * w))


def output_of_max_pool(n: Net) -> None:
    n.add("max_pool", n.conv(0, 70), kernel=(3, 2), stride=(2, 1), padding=(1, 1, 1, 1), dilation=(1, 2))


def output_of_add(n: Net) -> None:
    a = n.conv(0, 5)
    n.add("add", a, n.conv(a, 5), codes=WIDE)


def output_of_add_of_8_bits(n: Net) -> None:
    a = n.conv(0, 5)
    n.add("add", a, n.conv(a, 5), codes=RELU)


def output_of_avg_pool(n: Net) -> None:
    n.add("avg_pool", n.conv(0, 70), kernel=(2, 3), padding=(0, 1, 1, 1), codes=WIDE)


def output_of_clamp(n: Net) -> None:
    n.add("clamp", n.conv(0, 5), codes=WIDE)


def output_of_concat(n: Net) -> None:
    a = n.conv(0, 5)
    n.add("concat", a, n.conv(a, 2, codes=RELU), 0, codes=WIDE)


def grouped_16_bits(n: Net) -> None:
    n.conv(n.conv(0, 12, codes=RELU), 18, 3, groups=3, codes=WIDE)


def depthwise_16_bits(n: Net) -> None:
    n.depthwise(n.conv(0, 20), codes=WIDE)


def channel_multiplier(n: Net) -> None:
    n.head(n.conv(n.conv(0, 6), 18, 3, groups=6))


def one_channel(n: Net) -> None:
    n.head(n.depthwise(n.conv(0, 1)))


def many_taps(n: Net) -> None:
    n.head(n.depthwise(n.conv(0, 20), 9, stride=(2, 1)))


def most_taps(n: Net) -> None:
    n.head(n.depthwise(n.conv(0, 16), 8))


def strided_convs(n: Net) -> None:
    a = n.conv(0, 33, 3, stride=(2, 3), dilation=(1, 2), codes=RELU)
    n.head(n.conv(a, 17, 2, stride=(3, 1)))


SPECIAL: list[Callable[[Net], None]] = [
    residual_of_two_convs, residual_of_the_convs_own_input, residual_of_the_networks_input, residual_into_a_halo,
    residual_of_a_depthwise, three_terms, the_same_term_twice, adds_in_place, read_at_several_widths,
    narrowed_by_whoever_writes, reshapes_that_rename, reshape_to_a_padded_layer, reshapes_that_move, reshaped_input,
    outputs_with_positions, output_of_8_bits, output_of_a_reshape, output_of_a_renaming, output_of_max_pool,
    output_of_add, output_of_add_of_8_bits, output_of_avg_pool, output_of_clamp, output_of_concat, grouped_16_bits,
    depthwise_16_bits, channel_multiplier, one_channel, many_taps, most_taps, strided_convs,
]  # fmt: skip


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


def random_model(seed: int) -> Model:
    """Operations of any kind over any earlier tensors; what nobody has read is put together at the end."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            return random_net(rng).model(seed)
        except SchemaError:  # a window larger than its input, a pool that sees padding only
            continue


def random_net(rng: np.random.Generator) -> Net:
    channels = [1, 2, 3, 4, 7, 8, 12, 16, 17, 24, 32, 33, 48, 64, 66, 80]
    n = Net(*(int(v) for v in rng.choice([1, 2, 3, 5, 6, 8, 9, 13], 2)), int(rng.integers(1, 5)))
    n.conv(0, int(rng.choice(channels)), 3, codes=RELU)
    for _ in range(int(rng.integers(2, 9))):
        source = int(rng.integers(0, len(n.shapes))) if rng.integers(3) == 0 else len(n.ops)
        (h, w, c), codes = n.shapes[source], [SIGNED, RELU, (-100, 90)][rng.integers(3)]
        kernel = [int(v) for v in rng.integers(1, 4, 2)]
        window = {
            "kernel": tuple(kernel),
            "stride": tuple(int(v) for v in rng.integers(1, 3, 2)),
            "padding": tuple(int(rng.integers(0, k)) for k in kernel for _ in range(2)),
            "dilation": tuple(int(v) for v in rng.integers(1, 3, 2)),
        }

        def others(like: slice) -> list[int]:
            same = [t for t, s in enumerate(n.shapes) if s[like] == (h, w, c)[like]]  # noqa: B023
            return [int(t) for t in rng.choice(same, int(rng.integers(2, 4)))]

        kind = rng.choice(["conv", "same", "depthwise", "grouped", "add", "add", "pool", "clamp", "concat", "reshape"])
        if kind == "conv":
            n.conv(source, int(rng.choice(channels)), codes=codes, **window)
        elif kind == "same":
            n.conv(source, c, int(rng.integers(1, 5)), codes=codes)
        elif kind == "depthwise":
            n.depthwise(source, codes=codes, **window)
        elif kind == "grouped":
            groups = int(rng.choice([g for g in (1, 2, 3, 4) if c % g == 0]))
            n.conv(source, groups * int(rng.integers(1, 20)), groups=groups, codes=codes, **window)
        elif kind == "add":
            n.add("add", *others(slice(3)), codes=codes)
        elif kind == "concat":
            n.add("concat", *others(slice(2)), codes=codes)
        elif kind == "pool":
            pool = str(rng.choice(["max_pool", "avg_pool"]))
            n.add(pool, source, codes=codes if pool == "avg_pool" else None, **window)
        elif kind == "clamp":
            n.add("clamp", source, codes=codes)
        else:
            n.add("reshape", source, shape=tuple(int(v) for v in rng.permutation([h, w, c])))
    read = {t for op in n.ops for t in op.inputs}
    idle = [t for t in range(len(n.shapes)) if t not in read]
    flat = [n.add("reshape", t, shape=(1, 1, max(1, math.prod(n.shapes[t])))) for t in idle]
    while len(flat) > 1:
        flat = [n.add("concat", *flat[:8], codes=SIGNED), *flat[8:]]
    if rng.integers(4):
        n.conv(flat[0], 3, codes=WIDE)
    return n


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


# --- threads


@pytest.mark.soak
def test_switches_while_three_infer():
    """One thread switches, over plans that are resident and plans that were trimmed: no output is anything between."""
    switches = 1_000_000 if SOAK else 3000
    engine = Engine(models.model(0, widths=WIDTHS))
    x = samples(engine.model, 1)[0]
    offline = {}
    for name in engine.points:
        engine.select(name)
        offline[name] = engine.run(x).tobytes()
    assert len(set(offline.values())) > len(offline) // 2
    engine = Engine(engine.model)
    done = threading.Event()
    failures: list[object] = []
    seen: list[dict[str, int]] = [dict.fromkeys(offline, 0) for _ in range(3)]

    def infer(count: dict[str, int]) -> None:
        try:
            while not done.is_set():
                y, name = engine.run_at(x)
                count[name] += 1
                if y.tobytes() != offline[name]:
                    failures.append(name)
        except CaqError as e:
            failures.append(e)

    def met(count: dict[str, int]) -> int:
        return sum(c > 0 for c in count.values())

    threads = [threading.Thread(target=infer, args=(count,)) for count in seen]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        names = list(offline)
        rng = np.random.default_rng(0)
        deadline = time.monotonic() + 60
        i = 0
        # No fewer than it takes until all three have met several points.
        while i < switches or (any(met(count) < 2 for count in seen) and time.monotonic() < deadline):
            for at in rng.integers(0, len(names), 1000):
                engine.select(names[at])
                i += 1
                if i % 16 == 0:
                    engine.trim()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert not failures
    assert all(met(count) > 1 for count in seen)


def _compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.mark.soak
@pytest.mark.parametrize("team", [1, 2, 4])
@pytest.mark.parametrize("isa", ISAS)
def test_threads_under_thread_sanitizer(isa, team, thread_program):
    inferences = 100_000 if SOAK else 500
    command = [*thread_program, isa, str(inferences), str(team)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600 if SOAK else 120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot run under this kernel's address layout")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(rf"{isa}: {inferences} inferences, (\d+) shared, \d+ switches, 0 wrong\n", done.stdout)
    assert found is not None and (int(found[1]) > 0) == (team > 1)


@pytest.fixture(scope="session")
def thread_program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """tests/native/threads.c and the kernels, built with ThreadSanitizer."""
    cc, here = _compiler(), Path(__file__).parent / "native" / "threads.c"
    kernels = Path(native.__file__).parent / "kernels"
    folder = tmp_path_factory.mktemp("tsan")
    empty = folder / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    if subprocess.run(
        [cc, "-fsanitize=thread", empty, "-o", folder / "empty"], capture_output=True, check=False
    ).returncode:
        pytest.skip("the compiler has no ThreadSanitizer")
    flags = ["-std=c11", "-O1", "-g", "-fsanitize=thread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    sources = [here, *sorted(kernels.glob("*.c"))]
    sources = [s for s in sources if s.name != "_native.c"]  # what cffi writes
    program = folder / "threads"
    subprocess.run([cc, *flags, f"-I{kernels}", *sources, "-pthread", "-lm", "-o", program], check=True)
    return [str(program)]


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
