"""A state's bytes: what goes in comes out, and what no caq wrote is refused with a typed error."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import caq
from caq.calibration.state import (
    DTYPES,
    MAX_HEADER_BYTES,
    State,
    artifact_checksum,
    check_artifact,
    from_bytes,
    owned,
    random_from_array,
    random_to_array,
    to_bytes,
)
from caq.errors import FormatError, StateFormatError, StateMismatchError
from tests import models

A = "a" * 64
ARRAYS = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
        elements=st.floats(-9, 9, width=32) if dtype.kind == "f" else None,
    )
)
NAMES = st.from_regex(r"[a-z0-9_]{1,8}(/[a-z0-9_.]{1,8}){1,3}", fullmatch=True)
NOTES = st.dictionaries(
    st.text(max_size=20),
    st.text(max_size=20) | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    max_size=4,
)


def payload(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def header(**changes: object) -> dict[str, object]:
    entry = {"dtype": "I16", "shape": [2], "data_offsets": [0, 4]}
    return {"artifact": A, "notes": {}, "arrays": {"core/x": {**entry, **changes}}}


@given(st.dictionaries(NAMES, ARRAYS, max_size=5), NOTES)
@settings(deadline=None, max_examples=60)
def test_what_goes_in_comes_out(arrays, notes):
    data = to_bytes(State(A, arrays, notes))
    again = from_bytes(data)
    assert again.notes == notes and again.artifact == A and again.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        found = again.arrays[name]
        assert found.dtype == array.dtype and not found.flags.writeable
        np.testing.assert_array_equal(found, array)
    assert to_bytes(again) == data
    check_artifact(again, A)


def test_an_owner_gets_its_arrays_back_under_its_own_names():
    own = {"x": np.arange(3, dtype=np.int8), "deep/er": np.ones(1, np.float32)}
    state = from_bytes(to_bytes(State(A, {**owned("core", own), **owned("corex", {"x": np.zeros(1, np.int8)})})))
    assert state.part("core").keys() == own.keys() and state.part("drift") == {}
    np.testing.assert_array_equal(state.part("core")["x"], own["x"])


def test_big_endian_and_strided_arrays_are_kept_by_value():
    array = np.arange(6, dtype=">i4").reshape(2, 3)[:, ::2]
    np.testing.assert_array_equal(from_bytes(to_bytes(State(A, {"a/b": array}))).arrays["a/b"], array)


def test_golden():
    """A format that changes must be seen."""
    state = State(A, {"core/y": np.array([1, -1], np.int8), "drift/mean": np.array([0.5], np.float32)}, {"n": 3})
    text = (
        '{"artifact":"' + A + '","notes":{"n":3},"arrays":{'
        '"drift/mean":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        '"core/y":{"dtype":"I8","shape":[2],"data_offsets":[4,6]}}}'
    ).encode()
    text += b" " * (-len(text) % 8)
    assert to_bytes(state) == len(text).to_bytes(8, "little") + text + b"\0\0\0\x3f\x01\xff"


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros(2, bool), "bool is none of"),
        (np.zeros(2, np.float16), "float16"),
        (np.array([None]), "object"),
        (np.array(3), "1 to 8 integers"),
        (np.zeros((1,) * 9), "1 to 8 integers"),
        (np.array([np.nan]), "not finite"),
        (np.array([np.inf], np.float32), "not finite"),
    ],
)
def test_arrays_that_cannot_be_kept_are_refused_before_they_are_written(array, match):
    with pytest.raises(StateFormatError, match=match):
        to_bytes(State(A, {"core/x": array}))


@pytest.mark.parametrize("name", ["", "x", "/x", "core/", "../x", "core//x", "core/X", "a/" * 6 + "a", "ü/x"])
def test_names_are_an_owner_and_its_name(name):
    with pytest.raises(StateFormatError, match="no name of an array"):
        to_bytes(State(A, {name: np.zeros(1)}))


@pytest.mark.parametrize("note", [None, True, [1], {}, 2**63, "x" * 257, float("nan"), np.float32(1), b"x"])
def test_notes_are_texts_and_numbers(note):
    with pytest.raises(StateFormatError, match="note"):
        to_bytes(State(A, {}, {"key": note}))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "0 bytes do not hold"),
        (b"\0" * 7, "7 bytes do not hold"),
        ((2**63).to_bytes(8, "little"), "do not hold a header"),
        ((9).to_bytes(8, "little") + b"{}", "do not hold a header"),
        ((MAX_HEADER_BYTES + 8).to_bytes(8, "little") + b" " * 2**17, "do not hold a header"),
        (payload(b"[]"), "not a JSON object"),
        (payload(b"\xff"), "not JSON"),
        (payload(b"{" * 9000), "not JSON"),
        (payload(b'{"artifact":"x","artifact":"y"}'), "repeats a key"),
        (payload({"artifact": A, "notes": {}}), "missing keys"),
        (payload({"artifact": A, "notes": {}, "arrays": {}, "more": 1}), "unknown keys"),
        (payload({"artifact": 1, "notes": {}, "arrays": {}}), "artifact"),
        (payload({"artifact": "A" * 64, "notes": {}, "arrays": {}}), "no SHA-256"),
        (payload({"artifact": A[1:], "notes": {}, "arrays": {}}), "no SHA-256"),
        (payload({"artifact": A, "notes": [], "arrays": {}}), "notes"),
        (payload({"artifact": A, "notes": {"a": 1e999}, "arrays": {}}), "Infinity"),
        (payload({"artifact": A, "notes": {"k" * 257: 1}, "arrays": {}}), "notes"),
        (payload({"artifact": A, "notes": {}, "arrays": []}), "arrays"),
        (payload({"artifact": A, "notes": {}, "arrays": {"core/x": []}}), "an object"),
        (payload({"artifact": A, "notes": {}, "arrays": {}}, b"x"), "1 bytes belong to no array"),
        (payload(header(dtype="O"), b"\0" * 4), "'O' is none of"),
        (payload(header(dtype=["I16"]), b"\0" * 4), "dtype"),
        (payload(header(shape=2), b"\0" * 4), "shape"),
        (payload(header(shape=[]), b"\0" * 4), "shape"),
        (payload(header(shape=[-2]), b"\0" * 4), "none that a state may have"),
        (payload(header(shape=[-1, -2]), b"\0" * 4), "none that a state may have"),
        (payload(header(shape=[True]), b"\0" * 4), "shape"),
        (payload(header(shape=[2.0]), b"\0" * 4), "shape"),
        (payload(header(shape=[2**62, 0], data_offsets=[0, 0])), "none that a state may have"),
        (payload(header(shape=[2**31, 2**31, 2**31]), b"\0" * 4), "none that a state may have"),
        (payload(header(shape=[2**25], data_offsets=[0, 2**26]), b"\0" * 4), "does not lie"),
        (payload(header(shape=[3]), b"\0" * 6), "does not lie"),
        (payload(header(data_offsets=[2, 6]), b"\0" * 6), "does not lie"),
        (payload(header(data_offsets=[-4, 0]), b"\0" * 4), "does not lie"),
        (payload(header(data_offsets=[0, 4, 8]), b"\0" * 4), "does not lie"),
        (payload(header(), b"\0" * 3), "does not lie"),
        (payload(header(), b"\0" * 5), "1 bytes belong"),
        (payload(header(dtype="F16"), b"\0" * 4), "none of"),
        (payload(header(dtype="F32", shape=[1]), b"\xff\xff\xff\xff"), "not finite"),
    ],
)
def test_hostile_bytes_are_refused(data, match):
    with pytest.raises(StateFormatError, match=match):
        from_bytes(data)


def test_overlapping_arrays_are_refused():
    entry = {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}
    with pytest.raises(StateFormatError, match="c/y"):
        from_bytes(payload({"artifact": A, "notes": {}, "arrays": {"c/x": entry, "c/y": entry}}, b"\0" * 8))


def test_fuzzed_headers_give_a_state_or_a_typed_error():
    draw = random.Random(0)
    good = to_bytes(State(A, {"core/x": np.arange(4, dtype=np.int16), "r/s": np.ones((2, 2))}, {"a": "b", "c": 1.5}))
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.choice(b'0123456789{}[]":,-e.\xff\x00') if draw.random() < 0.8 else 0
        try:
            from_bytes(bytes(data))
        except StateFormatError as e:
            assert len(str(e)) < 700


def test_a_state_of_another_artifact_is_refused_by_name():
    with pytest.raises(StateMismatchError, match=r"learnt on artifact aaaaaaaaaaaa\.\.\., not on bbbbbbbbbbbb\.\.\."):
        check_artifact(State(A), "b" * 64)


def test_the_checksum_of_an_artifact_changes_with_each_of_its_parts(tmp_path):
    model = models.tiny()
    path = tmp_path / "m.caq"
    caq.save(model, path)
    found = artifact_checksum(path)
    assert found == artifact_checksum(str(path)) and len(found) == 64
    caq.save(models.tiny(seed=1), path)
    assert artifact_checksum(path) != found
    path.write_bytes(b"no artifact at all")
    with pytest.raises(FormatError):
        artifact_checksum(path)


def test_a_generator_goes_on_where_it_was():
    rng = np.random.default_rng(3)
    rng.integers(0, 100, 7, dtype=np.int32)  # leaves half a word behind
    kept = random_from_array(random_to_array(rng))
    np.testing.assert_array_equal(kept.integers(0, 100, 9, dtype=np.int32), rng.integers(0, 100, 9, dtype=np.int32))
    np.testing.assert_array_equal(kept.normal(size=5), rng.normal(size=5))


def test_random_states_of_other_kinds_are_refused():
    with pytest.raises(StateFormatError, match="MT19937"):
        random_to_array(np.random.Generator(np.random.MT19937(0)))
    good = random_to_array(np.random.default_rng(0))
    bad = [good[:5], good.astype(np.int64), good.reshape(2, 3)]
    for word, value in ((2, 2), (4, 2), (5, 2**32)):
        bad.append(good.copy())
        bad[-1][word] = value
    for array in bad:
        with pytest.raises(StateFormatError, match="six words"):
            random_from_array(array)
