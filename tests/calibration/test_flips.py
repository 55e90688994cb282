"""The flips rung: evidence, the network in integers, latents, and what it does in a calibrator."""

from __future__ import annotations

import numpy as np
import pytest

from caq import artifact
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import LADDER, WITH_FLIPS, CalibratorConfig
from caq.calibration.core import CoreSet
from caq.calibration.flips import LATENT, UNIT, FlipsRung, flip_counts, flips_of, gather, positions, speeds
from caq.calibration.learnt import Learnt
from caq.calibration.sets import coded, logits, parameter_sets
from caq.errors import ConfigError, SchemaError, StateFormatError, UnsupportedError
from caq.plan import layer_codes
from tests import models
from tests.calibration.streams import core_of, drifted, source
from tests.conditional_models import with_gate

FREE = CalibratorConfig(rungs=WITH_FLIPS, guarded=False, flip_rates=(0.5, 0.5))


@pytest.fixture(scope="module")
def stream():
    model, x, y = source()
    model = models.with_flip_network(model)
    return model, core_of(model, x[:120], y[:120]), drifted(x[120:]), y[120:]


def test_a_code_is_flipped_while_its_latent_takes_it_out_of_its_interval():
    latents = np.array([-127, -64, -63, 0, 63, 64, 127], np.int8)
    middle = flips_of(latents, np.full(7, 0.5, np.float32))
    assert middle.tolist() == [-1, -1, 0, 0, 0, 1, 1] and middle.dtype == np.int8
    assert flips_of(latents, np.full(7, 0.9, np.float32)).tolist() == [-1, 0, 0, 0, 1, 1, 1]


def test_a_weight_begins_where_its_lower_bits_say():
    model = models.model(0)
    codes = np.concatenate([layer_codes(model.graph, model.planes, layer, 8) for layer in model.graph.layers])
    for which in parameter_sets(model)[:3]:
        width, at = which.assignment[0].weight, positions(model, which)
        # Real weights: the code and the place in its interval give the 8-bit code back.
        top = codes.astype(np.int16) >> (8 - width)
        np.testing.assert_allclose((top + at) * 2.0 ** (8 - width), codes + 0.5, atol=1e-4)
        assert not flips_of(np.zeros(len(at), np.int8), at).any()


def test_the_network_is_what_its_integers_say():
    network = models.with_flip_network(models.model(0)).flip_network
    rng = np.random.default_rng(0)
    network = network._replace(
        w1=rng.integers(-128, 128, network.w1.shape).astype(np.int8),
        b1=rng.integers(-(2**15), 2**15, network.b1.shape).astype(np.int16),
        w2=rng.integers(-128, 128, network.w2.shape).astype(np.int8),
    )
    features = rng.integers(-128, 128, (500, 8)).astype(np.int8)
    for row in range(3):
        hidden = (features.astype(np.int64) @ network.w1[row].T.astype(np.int64) + network.b1[row]) // UNIT
        out = hidden.clip(0, 127) @ network.w2[row].astype(np.int64) + network.b2[row]
        np.testing.assert_array_equal(speeds(network, row, features), (out / 2**11).clip(-1, 1).astype(np.float32))


def test_evidence_of_the_output_layer_is_its_gradient(stream):
    model, _, x, y = stream
    plain, codes = coded(model), model.encode(x)[0][:12]
    which = parameter_sets(plain)[2]
    layer, k = plain.graph.layers[-1], 3
    # A class gains from its own channel and from nothing else.
    feedback = np.zeros((plain.graph.channels, k), np.int8)
    feedback[layer.first_channel :] = np.eye(k)
    plan = FlipsRung.plan_of(plain, which, plain.parameters, np.zeros(plain.graph.weights, np.int8))
    parts = codes, y[:12], np.ones(12), np.arange(12) < 5
    found = gather(plain, which, plain.parameters, plan, feedback, *parts, lambda: None)[-1]
    z = logits(plain, (which,), codes.astype(np.int16))[which.name]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(12), y[:12]] -= 1
    # Its bias' gradient is the sum of the errors: with inputs of one, g would be just that, times the gain.
    gain = np.abs(plain.parameters.gain[2, layer.first_channel :].astype(float)) * 2.0 ** float(
        plain.parameters.gain_exponent[2, layer.index]
    )
    signs = np.sign(found.gradient.reshape(k, -1).sum(1))
    ratio = found.gradient.reshape(k, -1) / gain[:, None]
    np.testing.assert_allclose(ratio.sum(0), 0, atol=1e-3 * np.abs(ratio).max())  # errors of a sample sum to zero
    assert set(signs.tolist()) != {0.0} and (found.agreement <= 1 + 1e-6).all() and (found.agreement >= 0).all()
    assert found.output_shift.shape == (k,) and np.isfinite(found.input_shift).all()


def test_latents_move_within_a_code_and_flip_codes(stream):
    model, core, x, y = stream
    with Calibrator(model, core, config=FREE) as calibrator:
        calibrator.partial_fit(x[:60], y[:60])
        calibrator.partial_fit(x[60:], y[60:])
        flips, latents = calibrator.model.parameters.flips, calibrator._learnt.latents
        assert [r["what"] for r in calibrator.history] == ["head", "flips"] * 2
    assert (np.abs(latents.astype(int)) <= LATENT).all() and all(
        (flips[s.row] == flips_of(latents[s.row], positions(model, s))).all() for s in parameter_sets(model)
    )
    assert flips.any(1).all()  # each set has its own
    assert sum(flip_counts(model.graph, flips[0])) == np.count_nonzero(flips[0])


def test_calibrating_one_set_changes_no_bit_of_another(stream):
    model, _, x, _ = stream
    plain, codes = coded(model), model.encode(x)[0].astype(np.int16)
    sets = parameter_sets(plain)
    before = logits(plain, sets, codes)
    for which in sets:
        own = np.zeros((len(sets), plain.graph.weights), np.int8)
        own[which.row] = 1
        after = logits(plain.replace(parameters=plain.parameters.replace(flips=own)), sets, codes)
        assert [name for name in before if not np.array_equal(before[name], after[name])] == [which.name]


def test_a_restart_goes_on_bit_for_bit(stream, tmp_path):
    model, core, x, y = stream
    artifact.save(model, tmp_path / "x.caq")
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "whole", FREE) as calibrator:
        for i in (0, 40, 80):
            calibrator.partial_fit(x[i : i + 40], y[i : i + 40])
        whole = calibrator.model.parameters
    for i in (0, 40, 80):
        with Calibrator(tmp_path / "x.caq", core, tmp_path / "cut", FREE) as calibrator:
            calibrator.partial_fit(x[i : i + 40], y[i : i + 40])
            cut = calibrator.model.parameters
    for name in ("gain", "bias", "flips"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cut, name))


def test_the_guard_keeps_flips_out_and_latents_stay(stream):
    model, core, x, y = stream
    config = CalibratorConfig(rungs=WITH_FLIPS, flip_rates=(1.0, 1.0))
    wrong = model.replace(flip_network=model.flip_network._replace(w2=-model.flip_network.w2 * 3))
    with Calibrator(wrong, core, config=config) as calibrator:
        calibrator.partial_fit(x[:60], y[:60])
        refused = [r for r in calibrator.history if r["what"] == "flips" and not r["promoted"]]
        if refused:
            assert not calibrator.model.parameters.flips.any() and refused[0]["reasons"]
        assert calibrator._learnt.latents.any()


def test_time_that_is_over_leaves_sets_as_they_were(stream):
    model, core, x, y = stream
    ticks = iter(np.arange(0, 1e6, 0.05))
    config = CalibratorConfig(rungs=("flips",), guarded=False, max_ms=400, flip_rates=(0.5, 0.5))
    with Calibrator(model, core, config=config, clock=lambda: next(ticks)) as calibrator:
        calibrator.partial_fit(x[:60], y[:60])
        assert not calibrator.model.parameters.flips[-1].any()


def test_what_cannot_flip_says_so(stream):
    model, core, _, _ = stream
    with pytest.raises(ConfigError, match="need a network"):
        Calibrator(model.replace(flip_network=None), core, config=FREE)
    Calibrator(model.replace(flip_network=None), core, config=CalibratorConfig(rungs=LADDER)).close()
    with pytest.raises(ConfigError, match="flip_rates"):
        CalibratorConfig(flip_rates=(0.0, 0.1))
    with pytest.raises(ConfigError, match="flip_rounds"):
        CalibratorConfig(flip_rounds=0)
    gated = models.with_flip_network(with_gate(models.model(0), 0, 3))
    with pytest.raises(UnsupportedError, match="conditional"):
        Calibrator(gated, core, config=FREE)


def test_a_state_that_does_not_fit_is_refused(stream):
    model, core, _, _ = stream
    from caq.calibration.state import State

    arrays = Learnt.nothing(model, core, 0, True).to_arrays()

    def read(changed):
        return Learnt.from_state(State("0" * 64, {**arrays, **changed}, {}), model)

    assert read({}).parameters.flips is not None
    packed = arrays["flips/flips"]
    for bad in (
        {"flips/latents": arrays["flips/latents"][1:]},
        {"flips/latents": arrays["flips/latents"].astype(np.int16)},
        {"flips/flips": packed[:, :, 1:]},
        {"flips/flips": np.full_like(packed, 255)},
    ):
        with pytest.raises(StateFormatError, match="flips"):
            read(bad)
    with pytest.raises(StateFormatError, match="flips"):
        Learnt.from_state(State("0" * 64, {k: v for k, v in arrays.items() if k != "flips/flips"}, {}), model)


def test_a_network_that_does_not_fit_is_not_saved(stream):
    model, _, _, _ = stream
    n = model.flip_network
    again = artifact.loads(artifact.dumps(model)).flip_network
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(n, again, strict=True))
    for bad in (
        n._replace(w1=n.w1[1:]),
        n._replace(b1=n.b1.astype(np.int32)),
        n._replace(w2=n.w2[:, :0]),
        n._replace(feedback=n.feedback[1:]),
        n._replace(w2=np.int8(3)),
    ):
        with pytest.raises(SchemaError, match="flips"):
            artifact.dumps(model.replace(flip_network=bad))


def test_without_labels_nothing_is_flipped(stream):
    model, core, x, _ = stream
    assert isinstance(core, CoreSet)
    with Calibrator(model, core, config=FREE) as calibrator:
        calibrator.partial_fit(x[:60])
        assert [r["what"] for r in calibrator.history] == ["statistics"]
        assert not calibrator.model.parameters.flips.any()
