"""Twins and their gates: what reads them, what they are fitted to, what a restart and other rungs make of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import caq
from caq.calibration.biases import output_layer, with_output_biases
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import LADDER, WITHOUT_TWINS, CalibratorConfig
from caq.calibration.domains import TO_TWIN, Domain, DomainRung, fit_gate
from caq.calibration.guard import Limits
from caq.calibration.learnt import Learnt
from caq.calibration.sets import ROWS, coded, factory_head, logits, parameter_sets
from caq.calibration.state import State, from_bytes, to_bytes
from caq.calibration.twins import Calibration, Twins, gate_of, gate_shift, gate_tensor, layers_before, side_by_side
from caq.conditional import Branch, ConditionalGate
from caq.engine import Engine
from caq.errors import AssignmentError, ConfigError, StateFormatError
from caq.graph import Graph, Op
from tests import models
from tests.calibration.streams import core_of, drifted, source
from tests.conditional_models import with_gate

FREE = CalibratorConfig(guarded=False)


@pytest.fixture(scope="module")
def world():
    """A model, its samples, a core set, and a stream of drifted samples with its labels."""
    model, x, y = source()
    stream = models.samples(model, 160, seed=1)
    engine = Engine(model)
    engine.select("w8a8")
    return model, x, core_of(model, x, y), drifted(stream), engine.run(stream).argmax(1)


def fed(calibrator, x, y, batch=40):
    for start in range(0, len(x), batch):
        calibrator.partial_fit(x[start : start + batch], None if y is None else y[start : start + batch])
    return calibrator


def rung_of(model):
    plain, x = coded(model), model.encode(models.samples(model, 40))[0].astype(np.int16)
    return DomainRung(plain, parameter_sets(model), x, x, 64.0, None, 400)


def test_a_gate_reads_what_several_operations_do_and_little_is_before():
    first = Op("conv", (0,), "first", channels=4, kernel=(1, 1), low=0, high=255)
    wide = Op("conv", (1,), "wide", channels=8, kernel=(3, 3), padding=(1, 1, 1, 1), low=0, high=255)
    other = wide._replace(name="other")
    both = Op("add", (2, 3), low=0, high=255)
    last = Op("conv", (4,), "last", channels=3, kernel=(4, 4), low=-(2**15), high=2**15 - 1)
    assert gate_tensor(Graph((4, 4, 2), (first, wide, other, both, last), (2, 8))) == 1
    chain = (first, wide, last._replace(inputs=(2,)))
    assert gate_tensor(Graph((4, 4, 2), chain, (2, 8))) == 0
    large = first._replace(kernel=(3, 3), padding=(1, 1, 1, 1))  # most of the work is before it
    narrow = first._replace(inputs=(1,), name="narrow", channels=2)
    assert gate_tensor(Graph((4, 4, 2), (large, narrow, narrow._replace(name="n"), both, last), (2, 8))) == 0


def test_a_gate_tells_domains_apart_and_spares_the_source():
    rng = np.random.default_rng(0)
    deviations = np.array([30.0, 500.0, 0.0])  # the last channel never varies
    a = np.rint(rng.standard_normal((400, 3)) * deviations).astype(np.int64)
    for shift, least in ((4.0, 0.97), (0.5, 0.0)):
        b = np.rint((rng.standard_normal((400, 3)) + np.array([shift, 0, 0])) * deviations).astype(np.int64)
        weights, bias = fit_gate(a[:200], b[:200])
        assert weights.dtype == np.int8 and np.abs(weights).max() == 127 and type(bias) is int
        to_twin = a[:200] @ weights.astype(int) + bias > 0
        assert to_twin.mean() <= TO_TWIN
        assert (b[200:] @ weights.astype(int) + bias > 0).mean() >= least
        assert (a[200:] @ weights.astype(int) + bias > 0).mean() < TO_TWIN + 0.05
    same = fit_gate(a, a)  # nothing to tell
    assert (a @ same[0].astype(int) + same[1] > 0).mean() <= TO_TWIN
    weights, bias = fit_gate(a[:0], b)  # what cannot be spared for certain is not risked
    assert weights.shape == (3,) and not (b @ weights.astype(int) + bias > 0).any()


def test_of_samples_that_a_gate_never_saw_as_few_take_the_twin():
    rng, seen, unseen = np.random.default_rng(0), [], []
    for _ in range(40):  # as many channels and as few samples as a core set has
        source = np.rint(rng.standard_normal((470, 16)) * 100).astype(np.int64)
        stream = np.rint((rng.standard_normal((100, 16)) + 0.2) * 100).astype(np.int64)
        weights, bias = fit_gate(source[:70], stream)
        to_twin = source @ weights.astype(int) + bias > 0
        seen.append(to_twin[:70].mean())
        unseen.append(to_twin[70:].mean())
    assert abs(np.mean(unseen) - TO_TWIN) < 0.02 and np.mean(seen) < TO_TWIN - 0.03


@pytest.mark.parametrize("seed", [0, 2, 5])
@pytest.mark.parametrize("lean", [False, True])
def test_inputs_take_the_set_or_its_twin_and_get_its_bits(seed, lean):
    """In the engine that adopts them, by native kernels and the reference, and as the judge runs them."""
    model = models.model(seed)
    rung, sets, rng = rung_of(model), parameter_sets(model), np.random.default_rng(seed)
    x = models.samples(model, 60, seed=9)
    codes, count = model.encode(x)[0].astype(np.int16), len(model.parameters.gain)
    factory, gates = rung.nothing().twins.parameters, {}
    last = model.graph.layers[-1]
    twins = {name: getattr(factory, name).copy() for name in ("bias", "head")}
    twins["bias"][:, last.first_channel :] //= 2
    for which in sets:
        limit = 1 << (which.assignment[-1].weight - 1)
        twins["head"][which.row] = rng.integers(-limit, limit, twins["head"].shape[1])
    for which in sets[1:]:  # the first has none
        sums = rung.sums(which, codes)
        weights, _ = fit_gate(sums[:30], sums[30:])
        centred = -int(np.median(sums @ weights.astype(int)))  # so that both are taken
        gates[which] = gate_of(model.graph, which, count, weights, centred)
    calibration = Calibration(factory, Twins(factory.replace(**twins), gates))
    routed = calibration.of_points(model)
    own = {p.name: p.gate for p in routed.points if p.gate is not None}
    assert set(own) == {which.name for which in sets[1:]}
    native, reference = Engine(model, lean=lean), Engine(model, kernels="reference")
    alone, other = Engine(model), Engine(model.replace(parameters=factory.replace(**twins)))
    for engine in (native, reference):
        engine.adopt(routed.parameters, own)
    judged, both_taken = logits(calibration.of(coded(model)), sets, codes), 0
    for which in sets:
        for engine in (native, reference, alone, other):
            engine.select(which.name)
        y, taken = native.run_routed(x)
        wanted, routes = reference.run_routed(x)
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(taken, routes)
        np.testing.assert_array_equal(y, np.where(taken[:, None] == 1, other.run(x), alone.run(x)))
        np.testing.assert_array_equal(judged[which.name], y * np.float64(model.parameters.steps[-1]))
        if which in gates:
            scores = rung.sums(which, codes) @ np.array(gates[which].weights[1]) + gates[which].bias[1]
            np.testing.assert_array_equal(taken, scores > 0)
            both_taken += 0 < taken.mean() < 1
        else:
            assert not taken.any()
    assert both_taken
    for engine in (native, reference):  # and back to the factory
        engine.adopt(model.parameters)
        np.testing.assert_array_equal(engine.run(x), alone.run(x))


def test_gates_that_do_not_fit_are_not_adopted(world):
    model, x, *_ = world
    engine, gate = Engine(model), next(iter(gates_of(world).values()))
    before, both = engine.run(x), fed(Calibrator(model, world[2], config=FREE), *world[3:]).model.parameters
    for parameters, gates, why in (
        (both, {}, "nothing else"),
        (model.parameters, {"w2a2": gate}, "nothing else"),
        (both, {"w3": gate}, "w3 is no point"),
        (both.replace(flips=np.zeros((len(both.gain), model.graph.weights), np.int8)), {"w2a2": gate}, "flips"),
    ):
        with pytest.raises(ConfigError, match=why):
            engine.adopt(parameters, gates)
        assert engine.model is model and np.array_equal(engine.run(x), before)


def gates_of(world):
    return fed(Calibrator(world[0], world[2], config=FREE), *world[3:]).gates


def test_a_stream_gets_twins_and_the_source_keeps_its_set(world):
    model, x, core, stream, y = world
    calibrator = fed(Calibrator(model, core, config=FREE), stream, y)
    assert {r["what"] for r in calibrator.history} == {"head", "domain"} and len(calibrator.gates) == 4
    engine, plain = Engine(model), Engine(calibrator._learnt.calibration._replace(twins=None).of_points(model))
    engine.adopt(calibrator.model.parameters, calibrator.gates)
    for name in calibrator.gates:
        engine.select(name)
        plain.select(name)
        y_source, of_source = engine.run_routed(x)
        _, of_stream = engine.run_routed(stream)
        assert of_source.mean() < 0.25 and of_stream.mean() > 2 * of_source.mean()
        np.testing.assert_array_equal(y_source[of_source == 0], plain.run(x)[of_source == 0])


def test_twins_do_without_labels(world):
    model, _, core, stream, _ = world
    calibrator = fed(Calibrator(model, core, config=FREE), stream, None)
    assert {r["what"] for r in calibrator.history} == {"statistics", "domain"} and len(calibrator.gates) == 4
    Engine(model).adopt(calibrator.model.parameters, calibrator.gates)


def test_the_guard_lets_twins_in_and_out(world, monkeypatch):
    model, _, core, stream, y = world
    floors = Limits(gain=None, point=1, class_=1, factory=1)
    config = replace(FREE, guarded=True, head_forgetting=10.0, limits=floors)
    calibrator = fed(Calibrator(model, core, config=config), stream, y)
    judged = [r for r in calibrator.history if r["what"] == "domain"]
    assert len(judged) >= 2 and all(r["promoted"] == bool(r["sets"]) for r in judged)
    # Twins that every input takes, and that are sure of the same class each time, do worse than sets by themselves.
    twins, sets, layer = calibrator._learnt.domain.twins.parameters, parameter_sets(model), output_layer(model.graph)
    for which in sets:
        twins = with_output_biases(twins, model.parameters, layer, which.row, np.array([0.0, 50.0, 0.0]))
    never = np.zeros(model.graph.shapes[gate_tensor(model.graph)][2], int)
    gates = {which: gate_of(model.graph, which, len(sets), never, 1) for which in sets}
    wrong = replace(calibrator._learnt.domain, twins=Twins(twins, gates))
    calibrator._learnt = replace(calibrator._learnt, domain=wrong)
    monkeypatch.setattr(calibrator._ladder._domains, "propose", lambda known, *_: known.twins)
    fed(calibrator, stream[:80], y[:80])
    assert not calibrator.gates
    strict = fed(Calibrator(model, core, config=replace(config, head_forgetting=0.0)), stream, y)
    assert not strict.gates or strict.history


def test_a_restart_changes_no_bit(world, tmp_path):
    model, _, core, stream, y = world
    path = tmp_path / "x.caq"
    caq.save(model, path)
    whole = fed(Calibrator(path, core, config=FREE), stream, y)
    with Calibrator(path, core, tmp_path / "state", FREE) as first:
        fed(first, stream[:80], y[:80])
    with Calibrator(path, core, tmp_path / "state", FREE) as second:
        assert second.gates
        fed(second, stream[80:], y[80:])
        assert second.gates == whole.gates
        a, b = whole._learnt.to_arrays(), second._learnt.to_arrays()
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    # Other rungs, and back: without anything that would follow the stream with them, there are no twins.
    with Calibrator(path, core, tmp_path / "state", CalibratorConfig(rungs=("statistics",), guarded=False)) as third:
        assert not third.gates
        fed(third, stream[:40], None)
        assert not np.array_equal(third.model.parameters.gain, model.parameters.gain)
    with Calibrator(path, core, tmp_path / "state", FREE) as fourth:
        fed(fourth, stream[:40], y[:40])
        Engine(path).adopt(fourth.model.parameters, fourth.gates)


def test_states_of_other_rungs_keep_what_twins_can_share(world, tmp_path):
    model, _, core, stream, y = world
    caq.save(model, tmp_path / "x.caq")
    for labels in (y[:80], None):
        state = tmp_path / f"state{labels is None}"
        with Calibrator(tmp_path / "x.caq", core, state, replace(FREE, rungs=WITHOUT_TWINS)) as first:
            fed(first, stream[:80], labels)
            before = first.model.parameters
        with Calibrator(tmp_path / "x.caq", core, state, FREE) as second:
            after = second.model.parameters
            fed(second, stream[:80], labels)
        assert not np.array_equal(before.gain, model.parameters.gain)
        assert all(np.array_equal(getattr(before, name), getattr(after, name)) for name in (*ROWS, "head"))
        Calibrator(tmp_path / "x.caq", core, state, FREE).close()


@pytest.mark.parametrize("head", [False, True])
def test_sets_that_twins_cannot_share_layers_with_begin_at_the_factory(head):
    model = models.model(3)
    x, sets = models.samples(model, 80), parameter_sets(model)
    (first, *_) = layers_before(model.graph)
    factory = model.parameters.replace(head=factory_head(model, sets) if head else None)
    with Calibrator(model, core_of(model, x, np.arange(80) % 2)) as calibrator:
        changed, flips = factory.gain.copy(), np.zeros((len(sets), model.graph.weights), np.int8)
        changed[:, -1] += 1  # of the last layer, in all sets
        changed[1, first.first_channel] += 1
        flips[2, 0] = 1
        found = calibrator._ladder._shareable(factory.replace(gain=changed, flips=flips))
    assert found.flips is None and (found.head is not None) == head
    as_before = [np.array_equal(a, b) for a, b in zip(found.gain, changed, strict=True)]
    as_factory = [np.array_equal(a, b) for a, b in zip(found.gain, factory.gain, strict=True)]
    assert as_before == [row not in (1, 2) for row in range(len(sets))] == [not same for same in as_factory]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sums", lambda a: a[:, :, 1:]),
        ("sums", lambda a: a.astype(np.int64)),
        ("twins/gain", lambda a: a[1:]),
        ("twins/gain_exponent", lambda a: np.full_like(a, 127)),
        ("twins/gate_weights", lambda a: a[:, 1:]),
        ("twins/gate_bias", lambda a: np.full_like(a, 2**31 - 1)),
        ("twins/on", lambda a: a[1:]),
        ("twins/head", lambda a: a[:, 1:]),
        ("statistics/variance", lambda a: a - 1e9),
        ("examples/y", lambda a: a + 99),
        ("turns", lambda a: -a - 1),
    ],
)
def test_states_that_do_not_fit_are_refused(world, name, change):
    model, _, core, stream, y = world
    arrays = fed(Calibrator(model, core, config=FREE), stream, y)._learnt.to_arrays()
    good = Learnt.from_state(from_bytes(to_bytes(State("a" * 64, arrays))), model)
    assert good.domain is not None and len(good.domain.twins.gates) == 4
    key = f"domain/{name}"
    wrong = {**arrays, key: change(arrays[key])}
    with pytest.raises(StateFormatError, match=r"domain|head|statistics"):
        Learnt.from_state(State("a" * 64, wrong), model)
    rest = {k[len("domain/") :]: v for k, v in arrays.items() if k.startswith("domain/") and k != key}
    with pytest.raises(StateFormatError):
        Domain.from_arrays(rest, model, parameter_sets(model))


@pytest.mark.parametrize("seed", [3, 5, 6])
def test_what_is_before_a_gate_is_alike_in_a_state_too(seed):
    model = models.model(seed)
    nothing, sets = rung_of(model).nothing(), parameter_sets(model)
    none = np.zeros(model.graph.shapes[gate_tensor(model.graph)][2], int)
    gates = {which: gate_of(model.graph, which, len(sets), none, 0) for which in sets}
    arrays = replace(nothing, twins=Twins(nothing.twins.parameters, gates)).to_arrays()
    assert Domain.from_arrays(arrays, model, sets).twins.gates == gates
    other = arrays["twins/bias"].copy()
    other[:, 0] ^= 1
    with pytest.raises(StateFormatError, match="before the gate"):
        Domain.from_arrays({**arrays, "twins/bias": other}, model, sets)


def test_what_cannot_have_twins_says_so(world):
    _, _, _, stream, y = world
    gated = with_gate(models.model(15, dtype="float32"), 0, 3)
    with Calibrator(
        gated, core_of(gated, stream, y), config=CalibratorConfig(rungs=("biases", "domain"))
    ) as calibrator:
        fed(calibrator, stream[:40], y[:40])
        record = next(r for r in calibrator.history if r["what"] == "domain")
        assert not record["promoted"] and "conditional points" in record["reasons"][0] and not calibrator.gates
    with pytest.raises(ConfigError, match="leave domain or flips out"):
        CalibratorConfig(rungs=(*LADDER, "flips"))


def test_points_of_widths_and_with_sets_of_their_own_have_gates(world):
    model, *_ = world
    mixed = next(p for p in model.points if p.name == "mixed")
    drawn = mixed._replace(name="drawn", parameter_set=None)  # reads sets of several widths
    found = fed(Calibrator(model.replace(points=(*model.points, drawn)), world[2], config=FREE), *world[3:])
    assert set(found.gates) == {"w2a2", "w4a4", "w8a8", "mixed"}
    assert gate_shift(model.graph) >= 0


def test_time_can_end_it(world):
    model, _, core, stream, y = world
    clock = iter(range(10**6))
    config = replace(FREE, rungs=("domain",), max_ms=3.0)
    calibrator = Calibrator(model, core, config=config, clock=lambda: next(clock) / 1000)
    fed(calibrator, stream[:40], y[:40])
    assert "time was over" in calibrator.history[-1]["reasons"][0] and not calibrator.gates


def test_time_that_ends_the_one_kind_of_step_is_not_the_end_of_the_other(world):
    model, _, core, stream, y = world
    for most in (20.0, 45.0):
        clock = iter(range(10**6))
        calibrator = Calibrator(model, core, config=replace(FREE, max_ms=most), clock=lambda c=clock: next(c) / 1000)
        for k in range(12):
            fed(calibrator, stream[10 * k : 10 * k + 10], y[10 * k : 10 * k + 10])
        late = [r for r in calibrator.history if r["what"] == "domain" and "time was over" in r["reasons"][0]]
        assert late and calibrator._learnt.domain.turns == 12
        assert sum(r["what"] == "head" for r in calibrator.history) >= 6


def crossing_graph():
    """Where tensors of its own are read beyond the first that several operations read."""
    c1, c3 = (
        {"kernel": (1, 1), "low": 0, "high": 255},
        {"kernel": (3, 3), "padding": (1, 1, 1, 1), "low": 0, "high": 255},
    )
    ops = (
        Op("conv", (0,), "a", channels=32, **c1),
        Op("conv", (0,), "b", channels=32, **c1),
        Op("add", (1, 2), low=0, high=255),
        Op("conv", (0,), "aside", channels=2, **c1),
        Op("conv", (3,), "e", channels=8, **c1),
        Op("conv", (4,), "from_aside", channels=8, **c3),
        Op("conv", (4,), "too", channels=8, **c3),
        Op("add", (6, 7), low=0, high=255),
        Op("add", (5, 8), low=0, high=255),
        Op("conv", (9,), "last", channels=3, kernel=(16, 16), low=-(2**15), high=2**15 - 1),
    )
    return Graph((16, 16, 2), ops, (2, 4, 8))


def test_a_gate_reads_nothing_that_another_branch_goes_around():
    graph = crossing_graph()
    assert gate_tensor(graph) == 0
    model = models.from_graph(graph, np.random.default_rng(0))
    x = models.samples(model, 80)
    fed(Calibrator(model, core_of(model, x, np.arange(80) % 3), config=FREE), x[:40], np.arange(40) % 3)


@pytest.mark.parametrize("lean", [False, True])
def test_a_binding_has_room_for_what_is_adopted(lean):
    model = models.from_graph(crossing_graph(), np.random.default_rng(0))
    x, sets = models.samples(model, 3), parameter_sets(model)
    tensor, channels = 4, model.graph.shapes[4][2]  # which another one crosses, so that the arena has to grow
    weights = ((0,) * channels, (1,) * channels)
    gates = {
        w.name: ConditionalGate(
            tensor, 8, weights, (0, -1), (Branch(w.assignment, w.row), Branch(w.assignment, len(sets) + w.row))
        )
        for w in sets
    }
    engine, plain = Engine(model, lean=lean), Engine(model)
    bound, before = engine.bind(), engine.program.arena_bytes
    bound.x[:] = x[0]
    bound.run()
    engine.adopt(side_by_side(model.parameters, model.parameters), gates)
    assert engine.program.arena_bytes > before
    for point in engine.points:
        engine.select(point)
        plain.select(point)
        bound.run()
        np.testing.assert_array_equal(bound.y, plain.run(x[0]))
        assert engine.run_routed(x)[1].any() or point not in gates
    assert bound._program is engine.program and len(bound._memory[2]) >= engine.program.arena_bytes


class After:
    """A lock that another thread gets first: what it does is done before the caller has it."""

    def __init__(self, engine, work):
        self.engine, self.real, self.work = engine, engine._lock, work
        engine._lock = self

    def __enter__(self):
        self.engine._lock = self.real
        self.work()
        self.real.acquire()

    def __exit__(self, *_):
        self.real.release()


def test_plans_are_of_what_is_adopted_when_they_are_built(world):
    model, _, core, stream, y = world
    found = fed(Calibrator(model, core, config=FREE), stream, y)
    gated, (parameters, gates) = Engine(model), (found.model.parameters, found.gates)
    gated.adopt(parameters, gates)
    engine = Engine(model)
    After(engine, lambda: engine.adopt(parameters, gates))
    assert len(engine.build_point("w4a4").assignments) == 2  # and what it keeps for a later switch
    engine.select("w4a4")
    gated.select("w4a4")
    np.testing.assert_array_equal(engine.run_routed(stream)[1], gated.run_routed(stream)[1])
    After(gated, lambda: gated.adopt(model.parameters))
    assert len(gated.build_point("w8a8").assignments) == 1
    own = next(p for p in model.points if p.name == "mixed")
    After(engine, lambda: engine.adopt(model.parameters))
    with pytest.raises(AssignmentError, match="no parameter set"):  # the twin's, which was there a moment ago
        engine.build(own.assignment, gates["mixed"].branches[1].parameter_set)


def test_sets_that_no_point_runs_at_do_not_change_what_is_adopted(world):
    model, _, core, stream, y = world
    mixed = next(p for p in model.points if p.name == "mixed")
    twice = mixed._replace(name="other", assignment=model.graph.uniform(8))  # its widths are not the set's
    found = fed(Calibrator(model.replace(points=(mixed, twice)), core, config=FREE), stream, y)
    assert set(found.gates) == {"mixed"}
    # Gates of widths' sets alone, which no point runs at: what is adopted is as the file's.
    calibration = found._learnt.calibration
    assert calibration.twins is not None
    widths = {which: gate for which, gate in calibration.gates.items() if which.name != "mixed"}
    calibration = calibration._replace(twins=Twins(calibration.twins.parameters, widths))
    adopted = calibration.of_points(model.replace(points=(mixed,)))
    assert widths and adopted.parameters.gain.shape == model.parameters.gain.shape
    Engine(model).adopt(adopted.parameters)


def test_labels_that_come_by_themselves_are_learnt_from(world):
    model, _, core, stream, y = world
    calibrator = Calibrator(model, core, config=replace(FREE, batch=20))
    for start in range(0, 80, 20):
        first = calibrator.next_id
        for sample in stream[start : start + 20]:
            calibrator.learn_one(sample)
        for i, label in enumerate(y[start : start + 20]):
            calibrator.label(first + i, int(label))
    what = [r["what"] for r in calibrator.history]
    assert what.count("head") == 4 and what.count("domain") == 2


def test_twins_and_flips_are_not_in_one_state(world):
    model, _, core, stream, y = world
    arrays = fed(Calibrator(model, core, config=FREE), stream[:80], y[:80])._learnt.to_arrays()
    flips = Learnt.nothing(model, core, 0, True).to_arrays()
    both = {**arrays, **{name: array for name, array in flips.items() if name.startswith("flips/")}}
    with pytest.raises(StateFormatError, match="flips are there too"):
        Learnt.from_state(State("a" * 64, both), model)
    with pytest.raises(StateFormatError, match="labels"):
        Learnt.from_state(State("a" * 64, {**arrays, "domain/examples/y": np.array(1, np.int16)}), model)
