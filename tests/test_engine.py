"""The engine: samples and batches, refusals, prefixes of a file, and switches while others infer."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from caq.artifact import dumps, load, loads
from caq.engine import AnyPlan, Engine
from caq.errors import AssignmentError, CaqError, ConfigError, DataError
from caq.graph import LayerWidths
from caq.native import NativePlan
from tests import models

SWITCHES = 20000 if os.environ.get("CAQ_SOAK") else 150


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("seed", range(4))
def test_a_batch_is_its_samples(seed, dtype):
    engine = Engine(models.model(seed, dtype))
    x = models.samples(engine.model, 5)
    for name in engine.points:
        engine.select(name)
        assert engine.point == name
        batch = engine.run(x)
        assert batch.dtype == np.int16 and batch.shape == (5, 3)
        assert len(np.unique(batch)) > 3  # not all saturated, not all zero
        for one, row in zip(x, batch, strict=True):
            single = engine.run(one)
            assert single.shape == (3,)
            np.testing.assert_array_equal(single, row)
        np.testing.assert_array_equal(engine.run(x[:1]), batch[:1])
        np.testing.assert_array_equal(engine.run(x[::-1]), batch[::-1])
        np.testing.assert_array_equal(engine.run(np.asfortranarray(x)), batch)


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("options", [{}, {"lean": True}])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_binding_runs_what_its_array_holds(dtype, options, kernels):
    engine = Engine(models.model(1, dtype), kernels=kernels, **options)
    x = models.samples(engine.model, 3)
    bound, other = engine.bind(), engine.bind()
    other.run()
    zeros = other.y.copy()
    for name in engine.points:
        engine.select(name)
        for sample in x:
            bound.x[:] = sample
            bound.run()
            np.testing.assert_array_equal(bound.y, engine.run(sample))
        engine.trim()
    np.testing.assert_array_equal(other.y, zeros)


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_binding_refuses_what_is_not_finite(bad, kernels):
    bound = Engine(models.model(0, "float32"), kernels=kernels).bind()
    bound.x.flat[1] = bad
    with pytest.raises(DataError, match="finite"):
        bound.run()


def test_gray_images_may_leave_their_channel_out():
    engine = Engine(models.tiny())
    x = models.samples(engine.model, 4)
    wanted = engine.run(x)
    np.testing.assert_array_equal(engine.run(x[..., 0]), wanted)
    np.testing.assert_array_equal(engine.run(x[0, ..., 0]), wanted[0])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x[0, 0], "samples of shape"),
        (lambda x: x[:0], "samples of shape"),
        (lambda x: x[..., :0], "samples of shape"),
        (lambda x: x[None], "samples of shape"),
        (lambda x: x.reshape(-1), "samples of shape"),
        (lambda x: np.float32(1), "samples of shape"),
        (lambda x: np.swapaxes(x, 1, 3)[:, :, :-1], "samples of shape"),
        (lambda x: [[1], [1, 2]], "ragged"),
        (lambda x: x.astype(np.float64), "must be a float32 array, not float64"),
        (lambda x: x.astype(np.uint8), "not uint8"),
        (lambda x: x.astype(">f4"), "not >f4"),
        (lambda x: x.astype(complex), "not complex128"),
        (lambda x: x.astype(object), "not object"),
        (lambda x: x.tolist(), "not float64"),
        (lambda x: np.where(x == x[1, 0, 0, 0], np.nan, x).astype(np.float32), "1 value.* NaN or infinite"),
        (lambda x: np.full_like(x, np.inf), "NaN or infinite"),
        (lambda x: np.full_like(x, -np.inf), "NaN or infinite"),
    ],
)
def test_bad_samples(bad, message):
    engine = Engine(models.model(0, "float32"))
    x = models.samples(engine.model, 3)
    with pytest.raises(DataError, match=message):
        engine.run(bad(x))
    engine.run(x)


def test_the_largest_floats_are_samples():
    engine = Engine(models.model(0, "float32"))
    x = models.samples(engine.model, 1)
    for value in (np.finfo(np.float32).max, np.finfo(np.float32).min, 1e-45, -0.0):
        engine.run(np.full_like(x, value))


def test_unknown_points_name_the_nearest():
    engine = Engine(models.model(0))
    before = engine.plan
    with pytest.raises(AssignmentError, match="no operating point 'w4a'; did you mean 'w4a4'"):
        engine.select("w4a")
    with pytest.raises(AssignmentError, match="known: w2a2, w4a4, w8a8, mixed"):
        engine.select("")
    assert engine.plan is before


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_prefix_serves_the_narrow_points_alike(tmp_path, dtype):
    m = models.model(1, dtype)
    narrow = m.graph.uniform(2)
    own = m.points[0]._replace(name="own", assignment=narrow, cost=m.graph.cost(narrow), parameter_set=3)
    path = tmp_path / "m.caq"
    path.write_bytes(dumps(m.replace(points=(*m.points, own))))
    whole = Engine(path)
    x = models.samples(m, 6)
    for width, names in (
        (2, {"w2a2", "own"}),
        (3, {"w2a2", "own"}),
        (4, {"w2a2", "w4a4", "own"}),
        (8, set(whole.points)),
    ):
        part = Engine(path, max_width=width)
        assert set(part.points) == names
        for name in names:
            part.select(name)
            whole.select(name)
            np.testing.assert_array_equal(part.run(x), whole.run(x))
    with pytest.raises(AssignmentError, match="no operating point 'w8a8'"):
        Engine(path, max_width=2).select("w8a8")
    with pytest.raises(AssignmentError, match="8 bits: only 2 bit planes"):
        Engine(path, max_width=2).build(m.graph.uniform(8))
    wanted = "no operating point has weights of at most 1 bits: the narrowest has 2, and 0 bit planes were read"
    with pytest.raises(AssignmentError, match=wanted):
        Engine(path, max_width=1)
    assert set(Engine(m, max_width=4).points) == {"w2a2", "w4a4"}


def test_the_widths_differ():
    """A switch that changed nothing would pass every comparison of an engine with itself."""
    engine = Engine(models.model(3))
    x = models.samples(engine.model, 4)
    outputs = set()
    for name in engine.points:
        engine.select(name)
        outputs.add(engine.run(x).tobytes())
    assert len(outputs) == len(engine.points)


def test_any_assignment_can_be_built():
    engine = Engine(models.model(0))
    x = models.samples(engine.model, 2)
    rng = np.random.default_rng(0)
    for _ in range(10):
        plan = engine.build(models.mixed(engine.model.graph, rng))
        assert engine.run_plan(plan, x).shape == (2, 3)
    with pytest.raises(AssignmentError, match="no parameter set 9"):
        engine.build(engine.model.graph.uniform(8), 9)
    with pytest.raises(AssignmentError, match="layers, the assignment 0"):
        engine.build(())


def test_a_parameter_set_only_serves_the_weight_widths_of_its_point():
    engine = Engine(models.model(0))
    graph, own = engine.model.graph, engine.points["mixed"]
    assert own.parameter_set == 3 and own.assignment != graph.uniform(8)
    x = models.samples(engine.model, 2)
    engine.select("mixed")
    np.testing.assert_array_equal(engine.run_plan(engine.build(own.assignment, 3), x), engine.run(x))
    # Gains are in units of weight widths; activations have ratios of their own.
    engine.build(tuple(LayerWidths(pair.weight, 8) for pair in own.assignment), 3)
    swapped = (*own.assignment[:-1], own.assignment[-1]._replace(weight=2 if own.assignment[-1].weight == 8 else 8))
    for other in (graph.uniform(8), graph.uniform(2), swapped, own.assignment[1:]):
        with pytest.raises(AssignmentError, match="parameter set 3 fits the weight widths of mixed only; leave it out"):
            engine.build(other, 3)
    for index in (0, -1, "3"):
        with pytest.raises(AssignmentError, match=f"no parameter set {index!r} of an operating point"):
            engine.build(graph.uniform(2), index)


@pytest.mark.parametrize("bad", [["w8a8", "w8a8"], ("w8a8",), "w8a8,w8a8", None, 8, [LayerWidths(8, 8)]])
@pytest.mark.parametrize("parameter_set", [None, 3])
def test_assignments_are_tuples_of_widths(bad, parameter_set):
    with pytest.raises(AssignmentError, match=r"tuple of LayerWidths; caq\.graph\.parse_assignment"):
        Engine(models.model(0)).build(bad, parameter_set)


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (None, {}, "path of a .caq file is expected, not NoneType"),
        (b"x.caq", {}, "not bytes; caq.artifact.loads reads bytes"),
        ("", {}, "path of a .caq file is expected, not ''"),
        ("x\0.caq", {}, "path of a .caq file"),
        (models.tiny(), {"max_width": "4"}, "max_width is a number of bits, such as 4, not '4'"),
        ("none.caq", {"max_width": 4.5}, "max_width is a number of bits, such as 4, not 4.5"),
        (models.tiny(), {"max_width": None}, "max_width"),
    ],
)
def test_wrong_arguments(source, options, words):
    with pytest.raises(ConfigError, match=words):
        Engine(source, **options)
    with pytest.raises(ConfigError, match="path of a .caq file" if not options else words):
        load(source if not options else "none.caq", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernels": "fast"}, "kernels: one of native, reference is expected, not 'fast'"),
        ({"isa": "sse9"}, "instruction set 'sse9': unknown; choose one of portable"),
    ],
)
def test_kernels_that_there_are_not(options, words):
    with pytest.raises(ConfigError, match=words):
        Engine(models.tiny(), **options)


@pytest.mark.parametrize("name", [None, 3, [], {}])
def test_points_are_selected_by_name(name):
    engine = Engine(models.tiny())
    with pytest.raises(AssignmentError, match=f"by its name, not by {type(name).__name__}; known: w2a2, w8a8, mixed"):
        engine.select(name)


def arrays_of(plan):
    for step in plan.steps:
        for fixed in (*step.requantize, step.narrow):
            if fixed is not None:
                yield from (
                    getattr(fixed, name) for name in ("bias", "pre_shift", "multiplier", "offset", "post_shift")
                )
        if step.multiplicands is not None:
            yield step.multiplicands


def test_plans_and_loaded_models_are_read_only():
    model = loads(dumps(models.model(0, "float32")))
    engine = Engine(model, kernels="reference")
    p = model.parameters
    arrays = [model.planes, p.gain, p.gain_exponent, p.bias, p.bias_exponent, p.steps, p.ratios]
    arrays += model.scaling.to_arrays().values()
    for name in engine.points:
        engine.select(name)
        own = list(arrays_of(engine.plan.plans[0]))
        assert len(own) > 6 * len(model.graph.layers)
        arrays += own
    assert any(step.narrow is not None for step in engine.plan.plans[0].steps)
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_output_step():
    engine = Engine(models.model(0))
    assert engine.output_step == engine.model.parameters.steps[-1] and isinstance(engine.output_step, float)


def test_the_same_bytes_give_the_same_outputs():
    m = models.model(5)
    x = models.samples(m, 3)
    np.testing.assert_array_equal(Engine(m).run(x), Engine(loads(dumps(m))).run(x))


def test_an_inference_keeps_the_plan_that_it_began_with(monkeypatch):
    m = models.model(0)
    x = models.samples(m, 2)
    engine, calm = Engine(m), Engine(m)
    execute = NativePlan.run

    def switch_then_execute(plan: NativePlan, samples: np.ndarray) -> np.ndarray:
        engine.select("w8a8")
        return execute(plan, samples)

    with monkeypatch.context() as patch:
        patch.setattr(NativePlan, "run", switch_then_execute)
        y, name = engine.run_at(x)
    assert (name, engine.point) == ("w2a2", "w8a8") == (calm.point, "w8a8")
    np.testing.assert_array_equal(y, calm.run(x))


def test_a_plan_and_its_name_are_read_at_once():
    """As if another thread switched between any two reads of the active plan."""
    m = models.model(0)
    x = models.samples(m, 2)
    pairs: list[tuple[str, AnyPlan]] = []

    class Restless(Engine):
        @property
        def _active(self) -> tuple[str, AnyPlan]:
            pairs.append(pairs.pop(0))
            return pairs[-1]

        @_active.setter
        def _active(self, pair: tuple[str, AnyPlan]) -> None:
            pairs.append(pair)

    engine, calm = Restless(m), Engine(m)
    for name in engine.points:
        engine.select(name)
    del pairs[:1]  # what the constructor selected
    for _ in range(8):
        y, name = engine.run_at(x)
        calm.select(name)
        np.testing.assert_array_equal(y, calm.run(x))


@pytest.mark.soak
def test_switching_while_inferring():
    """Every output is that of one plan alone, and of the one whose name comes with it."""
    engine = Engine(models.model(0))
    x = models.samples(engine.model, 2)
    offline = {}
    for name in engine.points:
        engine.select(name)
        offline[name] = engine.run(x).tobytes()
    assert len(set(offline.values())) == len(offline)
    # A second engine builds its plans during the run, so that building races with inferring as well.
    engine = Engine(engine.model)
    done = threading.Event()
    failures: list[object] = []
    seen: set[str] = set()

    def infer() -> None:
        try:
            while not done.is_set():
                y, name = engine.run_at(x)
                seen.add(name)
                if y.tobytes() != offline[name]:
                    failures.append(name)
        except CaqError as e:
            failures.append(e)

    def switch(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(SWITCHES):
            engine.select(str(rng.choice(list(offline))))
            done.wait(0.0005)

    readers = [threading.Thread(target=infer) for _ in range(2)]
    writers = [threading.Thread(target=switch, args=(seed,)) for seed in range(2)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert len(seen) > 1
