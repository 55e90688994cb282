"""Optional sections of a file: kept as they are, read only when asked for, and refused where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from caq.artifact import Reader, dumps, load, loads, save
from caq.engine import Engine
from caq.errors import IntegrityError, SchemaError
from caq.graph import Graph, Op
from caq.sections import StoredFeatures, core_row_bytes, feature_row_bytes
from tests import models


def check_same(section, again):
    """All arrays of a section are there again, with their dtypes."""
    for ours, theirs in zip(section, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_a_core_set_is_kept_as_it_is():
    model = models.with_core(models.model(0))
    data = dumps(model)
    again = loads(data)
    assert dumps(again) == data and again.core is not None
    check_same(model.core, again.core)
    assert core_row_bytes(model.graph) == model.core.to_rows().shape[1]
    assert dumps(model.replace(core=None)) == dumps(models.model(0))


def test_who_runs_a_model_reads_as_much_of_it_as_without(tmp_path):
    path, model = tmp_path / "x.caq", models.with_core(models.model(0))
    save(model, path)
    size = path.stat().st_size
    with Reader(path) as reader:
        assert reader.bytes_for(8) == size - model.core.to_rows().size
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert load(path, sections=False).core is None and Engine(path).model.core is None
    with pytest.raises(IntegrityError, match="core: its SHA-256"):
        load(path, max_width=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c._replace(x=c.x.astype(np.int16)), r"core.x: int8 .* is expected, not int16"),
        (lambda c: c._replace(x=c.x[:, 1:]), "core.x"),
        (lambda c: c._replace(y=c.y[1:]), "core.y: int16"),
        (lambda c: c._replace(misses=c.misses[:, 1:]), "core.misses: uint8"),
        (lambda c: c._replace(y=c.y - 1), "core.y: classes 0 to 2 are expected, not -1 to 1"),
        (lambda c: c._replace(y=c.y + 1), "core.y: classes 0 to 2 are expected, not 1 to 3"),
        (lambda c: c._replace(x=c.x[:0], y=c.y[:0], misses=c.misses[:0]), "core: no sample"),
    ],
)
def test_a_core_set_that_does_not_fit_is_not_saved(change, message):
    model = models.with_core(models.model(0))
    with pytest.raises(SchemaError, match=message):
        dumps(model.replace(core=change(model.core)))


def test_a_model_without_classes_has_no_core_set():
    core = models.with_core(models.model(0)).core
    with pytest.raises(SchemaError, match="reconstruct"):
        dumps(models.model(0, task="reconstruct").replace(core=core))


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2", "feedback"])
def test_a_flip_network_that_does_not_fit_is_not_saved(name):
    model = models.with_flip_network(models.model(0))
    found = getattr(model.flip_network, name)
    for wrong in (found.astype(np.float32), found[1:]):
        with pytest.raises(SchemaError, match=rf"flips\.{name}: int(8|16) .* is expected"):
            dumps(model.replace(flip_network=model.flip_network._replace(**{name: wrong})))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_features_are_kept_as_they_are(signed, channels):
    low, high = (-128, 127) if signed else (0, 255)
    ops = (
        Op("conv", (0,), "c", channels=channels, kernel=(2, 2), low=low, high=high),
        Op("conv", (1,), "f", channels=2, kernel=(2, 2), low=-(2**15), high=2**15 - 1),
    )
    model = models.from_graph(Graph((3, 3, 1), ops, (2, 3, 5, 8)), np.random.default_rng(0))
    model = models.with_features(model, 9)
    data = dumps(model)
    again = loads(data)
    assert dumps(again) == data and again.features is not None
    check_same(model.features, again.features)
    rows = model.features.to_rows(model.graph)
    # Each width in whole bytes: 2, 3, 5 and 8 bits a code.
    assert rows.shape == (9, 2 + sum(-(-4 * channels * w // 8) for w in (2, 3, 5, 8)))
    assert feature_row_bytes(model.graph) == rows.shape[1]
    assert dumps(model.replace(features=None)) == dumps(again.replace(features=None))


def test_a_bit_that_means_nothing_is_refused():
    class Filled(StoredFeatures):
        def to_rows(self, graph):
            rows = super().to_rows(graph)
            rows[0, -1] |= 0x80  # 1 code of 5 bits
            return rows

    ops = (
        Op("conv", (0,), "c", channels=1, kernel=(3, 3), low=0, high=255),
        Op("conv", (1,), "f", channels=2, low=-(2**15), high=2**15 - 1),
    )
    model = models.from_graph(Graph((3, 3, 1), ops, (2, 5)), np.random.default_rng(0))
    features = models.with_features(model).features
    with pytest.raises(SchemaError, match="features: a bit after the last code of a width is not 0"):
        dumps(model.replace(features=Filled(*features)))


def test_all_sections_lie_beside_each_other(tmp_path):
    model = models.with_features(models.with_flip_network(models.with_core(models.model(0))))
    save(model, tmp_path / "x.caq", packed=True)
    again = load(tmp_path / "x.caq")
    assert dumps(again) == dumps(model) and again.features is not None and again.flip_network is not None
    assert load(tmp_path / "x.caq", sections=False).features is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f._replace(codes=f.codes.astype(np.int16)), r"features.codes: int8 .* is expected, not int16"),
        (lambda f: f._replace(codes=f.codes[:, 1:]), "features.codes: int8"),
        (lambda f: f._replace(codes=f.codes | 4), "features.codes: -2 to 1 are expected at 2 bits, not .* to 5"),
        (lambda f: f._replace(y=f.y.astype(np.int64)), "features.y: int16"),
        (lambda f: f._replace(y=f.y - 1), "features.y: classes 0 to 2 are expected, not -1 to 1"),
        (lambda f: StoredFeatures(f.codes[:, :0], f.y[:0]), "features: classes, and 1 sample or more"),
    ],
)
def test_features_that_do_not_fit_are_not_saved(change, message):
    model = models.with_features(models.model(0))
    with pytest.raises(SchemaError, match=message):
        dumps(model.replace(features=change(model.features)))
