"""The hostile files by class: what each breaks, the error that it must raise, and the words that this must name."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np

from caq.errors import FormatError, IntegrityError, SchemaError, VersionError
from tests.hostile.edits import (
    Case,
    Exploit,
    array,
    dangling,
    drop,
    entry,
    extra_tensor,
    filler,
    head_text,
    header,
    long_point,
    manifest_last,
    manifest_text,
    many_points,
    moved,
    nested,
    one_layer,
    op,
    point,
    put,
    renamed,
    reordered,
    repeat_key,
    reshaped,
    series,
    set_version,
    swapped_offsets,
    vector,
    whole,
    wrong_sha,
    zipped,
)
from tests.hostile.gates import GATES
from tests.hostile.sections import SECTIONS

HUGE = 10**400
PARTS = ("parameters", "planes of width 2", "planes of width 4", "planes of width 8")

LENGTHS = [
    Case(f"header-length-{name}", whole(lambda data, v=v: v.to_bytes(8, "little") + data[8:]), FormatError, match)
    for name, v, match in (
        ("zero", 0, "a header of 0 bytes"),
        ("one", 1, "header is not JSON"),
        ("all-ones", 2**64 - 1, "a header of 18446744073709551615 bytes"),
        ("signed-overflow", 2**63, "a header of 9223372036854775808 bytes"),
        ("4-gigabytes", 2**32 - 1, "a header of 4294967295 bytes"),
        ("over-the-limit", 2**16 + 8, "a header of 65544 bytes"),
        ("past-the-end", 4000, "a header of 4000 bytes"),
    )
]

FILES = [
    Case("empty", whole(lambda _: b""), FormatError, "0 bytes are no .caq file"),
    Case("seven-bytes", whole(lambda data: data[:7]), FormatError, "7 bytes are no .caq file"),
    Case("eight-bytes", whole(lambda data: data[:8]), FormatError, "a header of"),
    Case("half", whole(lambda data: data[: len(data) // 2]), FormatError, "the tensors end at byte"),
    Case("last-byte-missing", whole(lambda data: data[:-1]), FormatError, "the tensors end at byte"),
    Case("first-byte-missing", whole(lambda data: data[1:]), FormatError, "a header of"),
    Case("trailing-zero", whole(lambda data: data + b"\0"), FormatError, "the tensors end at byte"),
    Case("trailing-newline", whole(lambda data: data + b"\n"), FormatError, "the tensors end at byte"),
    Case("twice", whole(lambda data: data + data), FormatError, "the tensors end at byte"),
    Case("zip-appended", whole(lambda data: data + zipped()), FormatError, "the tensors end at byte"),
    Case("zip-prepended", whole(lambda data: zipped() + data), FormatError, "a header of"),
    Case("zip", whole(zipped), FormatError, "a header of"),
    Case("pickle", whole(lambda _: pickle.dumps(Exploit())), FormatError, "a header of"),
    Case("pickle-protocol-0", whole(lambda _: pickle.dumps(Exploit(), 0)), FormatError, "a header of"),
    Case("pickle-as-manifest", manifest_text(lambda _: pickle.dumps(Exploit())), FormatError, "manifest is not JSON"),
    Case("gzip", whole(lambda data: b"\x1f\x8b\x08\0\0\0\0\0" + data), FormatError, "a header of"),
    Case("elf", whole(lambda data: b"\x7fELF\2\1\1\0" + data), FormatError, "a header of"),
    Case("all-zero", whole(lambda data: bytes(len(data))), FormatError, "a header of 0 bytes"),
    Case("text", whole(lambda _: b"import os\n" * 99), FormatError, "a header of"),
    Case("safetensors-of-others", header(lambda h: h.pop("__metadata__")), FormatError, "not a .caq file"),
    Case(
        "tensor-byte-changed",
        whole(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        IntegrityError,
        "planes of width 8",
    ),
]

HEADERS = [
    Case(
        "header-not-ascii",
        head_text(lambda raw: raw.replace(b"planes", b"plan\xc3\xa9s")),
        FormatError,
        "header is not",
    ),
    Case("header-utf16", head_text(lambda raw: raw.decode().encode("utf-16")), FormatError, "header is not JSON"),
    Case("header-list", head_text(lambda _: b"[]      "), FormatError, "header is not a JSON object"),
    Case("header-null", head_text(lambda _: b"null    "), FormatError, "header is not a JSON object"),
    Case("header-unfinished", head_text(lambda raw: raw.strip()[:-1]), FormatError, "header is not JSON"),
    Case("header-two-objects", head_text(lambda raw: raw + b"{}"), FormatError, "header is not JSON"),
    Case("header-deep", head_text(lambda _: nested(30000).encode()), FormatError, "header is not JSON"),
    Case(
        "header-deep-value",
        head_text(lambda r: r[:-9].strip() + b"," + b'"x":' + nested(900).encode() + b"}"),
        FormatError,
        "'x'|not JSON",
    ),
    Case(
        "header-huge-integer", head_text(lambda r: r.replace(b"[0,", b"[" + b"9" * 9000 + b",", 1)), FormatError, "JSON"
    ),
    Case("header-nan", head_text(lambda r: r.replace(b"[0,", b"[NaN,", 1)), FormatError, "header holds NaN"),
    Case("header-infinity", head_text(lambda r: r.replace(b"[0,", b"[1e999,", 1)), FormatError, "header holds 1e999"),
    Case(
        "header-repeats-tensor", head_text(lambda r: repeat_key(r, "parameters")), FormatError, "header repeats a key"
    ),
    Case(
        "header-repeats-dtype",
        head_text(lambda r: r.replace(b'{"dtype"', b'{"dtype":"U8","dtype"', 1)),
        FormatError,
        "repeats",
    ),
    Case("header-spaces", head_text(lambda r: r.replace(b":", b": ")), FormatError, "canonical"),
    Case("header-padding-more", head_text(lambda r: r + b" " * 8), FormatError, "canonical"),
    Case("header-padding-newline", head_text(lambda r: r.strip() + b"\n" * 8), FormatError, "canonical"),
    Case("header-space-first", head_text(lambda r: b" " * 8 + r), FormatError, "canonical"),
    Case("header-escape", head_text(lambda r: r.replace(b"planes", b"\\u0070lanes")), FormatError, "canonical"),
    Case("header-minus-zero", head_text(lambda r: r.replace(b"[0,", b"[-0,", 1)), FormatError, "canonical"),
    Case("header-float-shape", head_text(lambda r: r.replace(b"[0,", b"[0.0,", 1)), FormatError, "data_offsets"),
    Case("metadata-list", header(lambda h: h.update(__metadata__=["caq"])), FormatError, "not a .caq file"),
    Case("metadata-null", header(lambda h: h.update(__metadata__=None)), FormatError, "not a .caq file"),
    Case("metadata-without-caq", header(lambda h: h["__metadata__"].pop("caq")), FormatError, "not a .caq file"),
    Case(
        "metadata-unknown-key",
        header(lambda h: h["__metadata__"].update(x="1")),
        FormatError,
        "header must be __metadata__",
    ),
    Case("metadata-without-sha256", header(lambda h: h["__metadata__"].pop("manifest_sha256")), FormatError, "sha256"),
    Case(
        "metadata-sha256-integer", header(lambda h: h["__metadata__"].update(manifest_sha256=0)), FormatError, "sha256"
    ),
    Case(
        "metadata-sha256-list", header(lambda h: h["__metadata__"].update(manifest_sha256=[""])), FormatError, "sha256"
    ),
    Case(
        "metadata-sha256-empty",
        header(lambda h: h["__metadata__"].update(manifest_sha256="")),
        IntegrityError,
        "manifest",
    ),
    Case(
        "metadata-sha256-wrong",
        header(lambda h: h["__metadata__"].update(manifest_sha256="A" * 43)),
        IntegrityError,
        "manifest",
    ),
    Case("version-2", header(lambda h: set_version(h, "2")), VersionError, "version '2'"),
    Case("version-0", header(lambda h: set_version(h, "0")), VersionError, "version '0'"),
    Case("version-integer", header(lambda h: set_version(h, 1)), VersionError, "version 1"),
    Case("version-deep", header(lambda h: set_version(h, json.loads(nested(400)))), VersionError, "version"),
    Case("manifest-last", header(manifest_last), FormatError, "header must be __metadata__"),
    Case("manifest-missing", header(lambda h: h.pop("manifest")), FormatError, "header must be __metadata__"),
    Case("manifest-dtype", entry("manifest", dtype="I8"), FormatError, "'manifest': dtype 'I8' is not U8"),
    Case(
        "manifest-too-long",
        manifest_text(lambda raw: raw + b" " * 2**20),
        FormatError,
        "the manifest has .* bytes, at most",
    ),
    *(
        Case(f"{name}-missing", header(lambda h, n=name: h.pop(n)), FormatError, "header must be __metadata__")
        for name in ("parameters", "planes")
    ),
    *(
        Case(f"path-{i}", renamed("planes", name), FormatError, "header must be __metadata__")
        for i, name in enumerate(("../../etc/passwd", "/dev/zero", "C:\\x", "planes\0", "file:///x", "", "planes.2"))
    ),
    Case("extra-tensor", header(extra_tensor), FormatError, "header must be __metadata__"),
    Case(
        "tensors-reordered",
        header(lambda h: h.update(parameters=h.pop("parameters"))),
        FormatError,
        "header must be __metadata__",
    ),
    Case("tensor-overlaps", moved("parameters", -4, -4), FormatError, "'parameters'"),
    Case("tensor-gap", moved("parameters", 4, 4), FormatError, "'parameters'"),
    Case("tensor-longer", moved("parameters", 0, 4), FormatError, "'parameters'"),
    Case("tensor-backwards", entry("parameters", data_offsets=[8, 0]), FormatError, "'parameters'"),
    Case("tensor-negative-offset", entry("parameters", data_offsets=[-48, 0]), FormatError, "'parameters'"),
    Case("tensor-offset-huge", entry("parameters", data_offsets=[0, HUGE]), FormatError, "'parameters': data_offsets"),
    Case("tensor-offset-2-63", entry("parameters", data_offsets=[0, 2**63 - 1]), FormatError, "'parameters'"),
    Case("tensor-one-offset", entry("parameters", data_offsets=[0]), FormatError, "'parameters'"),
    Case("tensor-offsets-text", entry("parameters", data_offsets="0,8"), FormatError, "'parameters': data_offsets"),
    Case("tensor-offset-bool", entry("manifest", data_offsets=[False, 8]), FormatError, "'manifest': data_offsets"),
    Case("tensors-swap-bytes", header(swapped_offsets), FormatError, "'parameters'"),
    Case("shape-zero", entry("parameters", shape=[0]), FormatError, "'parameters'"),
    Case("shape-negative", entry("parameters", shape=[-3, -4]), FormatError, "'parameters'"),
    Case("shape-wraps-64-bits", entry("parameters", shape=[2**32, 2**32 + 1]), FormatError, "'parameters'"),
    Case("shape-wraps-to-size", entry("parameters", shape=[2**62 + 3]), FormatError, "'parameters'"),
    Case("shape-huge", entry("parameters", shape=[HUGE]), FormatError, "'parameters': shape"),
    Case("shape-bool", entry("parameters", shape=[True]), FormatError, "'parameters': shape"),
    Case("shape-text", entry("parameters", shape="12"), FormatError, "'parameters': shape"),
    Case("shape-empty", entry("parameters", shape=[]), FormatError, "'parameters': shape"),
    Case("shape-nine-sizes", entry("parameters", shape=[1] * 9), FormatError, "'parameters': shape"),
    Case("shape-deep", entry("parameters", shape=json.loads(nested(300))), FormatError, "'parameters': shape"),
    Case("shape-larger-than-stored", entry("planes", shape=[8, 2**40]), FormatError, "'planes'"),
    Case("dtype-unknown", entry("parameters", dtype="F64"), FormatError, "'parameters': dtype 'F64'"),
    Case("dtype-object", entry("parameters", dtype="O"), FormatError, "'parameters': dtype 'O'"),
    Case("dtype-list", entry("parameters", dtype=["F32"]), FormatError, "'parameters': dtype"),
    Case("dtype-null", entry("parameters", dtype=None), FormatError, "'parameters': dtype"),
    Case("dtype-of-the-same-size", entry("planes", dtype="I8"), FormatError, "'planes': dtype 'I8'"),
    Case("entry-list", header(lambda h: h.update(parameters=[])), FormatError, "'parameters'"),
    Case("entry-null", header(lambda h: h.update(parameters=None)), FormatError, "'parameters'"),
    Case("entry-without-shape", header(lambda h: h["parameters"].pop("shape")), FormatError, "'parameters'"),
    Case("entry-unknown-key", entry("parameters", file="/etc/passwd"), FormatError, "'parameters'"),
    Case(
        "entry-reordered",
        header(lambda h: h["parameters"].update(dtype=h["parameters"].pop("dtype"))),
        FormatError,
        "'parameters'",
    ),
]

TENSORS = [
    # The header and the offsets of these are right; only the manifest tells that the tensors are not its own.
    *(
        Case(
            f"{name}-{word}",
            reshaped(name, change),
            SchemaError,
            r"parameters: shape \(\d+,\), where .* asks for \(476,\)",
        )
        for name in ("steps", "ratios", "scaling", "affine", "exponents")
        for word, change in (
            ("shorter", lambda a: a.reshape(-1)[1:]),
            ("longer", lambda a: np.append(a, a.reshape(-1)[:1])),
            ("missing", lambda a: a.reshape(-1)[:0]),
            ("twice", lambda a: np.concatenate([a, a])),
        )
    ),
    Case("steps-of-8-bytes", reshaped("steps", lambda a: a.astype(np.float64)), SchemaError, "parameters: shape"),
    Case("resolution-missing", reshaped("resolution", lambda a: a[:0]), SchemaError, "parameters: shape", "float32"),
    Case("resolution-too-much", reshaped("steps", lambda a: np.append(a, a[:2])), SchemaError, "parameters: shape"),
    Case("parameters-empty", entry("parameters", shape=[0]), FormatError, "'parameters'"),
    Case("parameters-2-d", entry("parameters", shape=[4, 119]), SchemaError, r"parameters: shape \(4, 119\)"),
    Case("manifest-2-d", header(lambda h: h["manifest"]["shape"].insert(0, 1)), SchemaError, r"manifest: shape \(1, "),
    Case("planes-a-byte-short", reshaped("planes", lambda a: a[:, 1:]), SchemaError, "planes: shape"),
    Case("planes-one-too-many", reshaped("planes", lambda a: np.concatenate([a, a[:1]])), SchemaError, "planes: shape"),
    Case("planes-one-too-few", reshaped("planes", lambda a: a[:7]), SchemaError, "planes: shape"),
    Case("planes-transposed", reshaped("planes", lambda a: a.T.copy()), SchemaError, "planes: shape"),
    Case("planes-flat", reshaped("planes", lambda a: a.reshape(-1)), SchemaError, "planes: shape"),
    Case("planes-3-d", reshaped("planes", lambda a: a[None]), SchemaError, "planes: shape"),
    Case("planes-filler", filler, SchemaError, "planes: a bit after"),
    *(
        Case(f"{name}-{word}", array(name, -1, value), SchemaError, f"{name}: a step is a finite positive number")
        for name in ("steps", "ratios")
        for word, value in (
            ("nan", np.nan),
            ("infinite", np.inf),
            ("minus-infinite", -np.inf),
            ("zero", 0.0),
            ("minus-zero", -0.0),
            ("denormal", 1e-40),
            ("negative", -0.01),
            ("huge", 1e30),
        )
    ),
    *(
        Case(f"input-step-{word}", array("steps", 0, value), SchemaError, "steps: a step is a finite positive number")
        for word, value in (("nan", np.nan), ("zero", 0.0), ("negative", -0.5), ("denormal", 1e-40))
    ),
    Case("gain-exponent-low", array("exponents", (0, 0, 0), -128), SchemaError, "gain_exponent"),
    Case("gain-exponent-high", array("exponents", (0, 0, 0), 127), SchemaError, "gain_exponent"),
    Case("bias-exponent-high", array("exponents", (1, 0, 0), 101), SchemaError, "bias_exponent"),
    Case("scaling-multiplier-wide", array("scaling", (0, 0), 2**15), SchemaError, "scaling: a multiplier"),
    Case("scaling-multiplier-negative", array("scaling", (0, 0), -1), SchemaError, "a multiplier is negative"),
    Case("scaling-offset-high", array("scaling", (1, 0), 2**30), SchemaError, "an offset reaches"),
    Case("scaling-offset-lowest", array("scaling", (1, 0), -(2**31)), SchemaError, "an offset reaches"),
    Case("scaling-shift-31", array("scaling", (2, 0), 31), SchemaError, "a shift is above"),
    Case("scaling-shift-negative", array("scaling", (2, 0), -1), SchemaError, "scaling: a multiplier or shift"),
    Case("scaling-shift-wraps", array("scaling", (2, 0), 256 + 4), SchemaError, "scaling: a multiplier or shift"),
    *(
        Case(f"resolution-{word}", array("resolution", 0, value), SchemaError, "resolution", "float32")
        for word, value in (
            ("nan", np.nan),
            ("infinite", np.inf),
            ("zero", 0.0),
            ("denormal", 1e-40),
            ("negative", -1.0),
        )
    ),
    *(
        Case(f"sha256-of-{name.replace(' ', '-')}", wrong_sha(i), IntegrityError, f"{name}: their SHA-256")
        for i, name in enumerate(PARTS)
    ),
    *(
        Case(f"sha256-text-{i}", wrong_sha(0, v), IntegrityError, "parameters: their SHA-256")
        for i, v in enumerate(("x", "A" * 42, "=" * 43, "\u00e9" * 43))
    ),
    *(
        Case(f"sha256-value-{i}", wrong_sha(1, v), SchemaError, "sha256: a text")
        for i, v in enumerate((None, 0, True, "", "A" * 44, [], ["A" * 43], {"2": "A" * 43}, "\0" * 43, HUGE))
    ),
    Case("sha256-one-too-few", drop("sha256", 3), SchemaError, "sha256: 3 digests, not 4"),
    Case(
        "sha256-one-too-many",
        lambda d: d.manifest["sha256"].append("A" * 43),
        SchemaError,
        "sha256: a list of at most 4",
    ),
    Case("sha256-of-parameters-only", put("sha256", value=["A" * 43]), SchemaError, "sha256: 1 digests, not 4"),
    Case(
        "sha256-swapped",
        lambda d: (d.manifest["sha256"].reverse(), d.wrong_sha.update(range(4))),
        IntegrityError,
        "parameters: their SHA-256",
    ),
    Case("sha256-by-name", put("sha256", value={"parameters": "A" * 43}), SchemaError, "sha256: a list"),
]

KEYS = ("task", "input", "widths", "sets", "ops", "samples", "points", "labels", "provenance", "sha256")
WRONG: tuple[Any, ...] = (None, True, 1.5, "x", [], {}, HUGE)

MANIFESTS = [
    Case("manifest-list", manifest_text(lambda _: b"[]"), FormatError, "manifest is not a JSON object"),
    Case("manifest-empty-object", manifest_text(lambda _: b"{}"), SchemaError, "manifest: missing keys"),
    Case("manifest-nothing", manifest_text(lambda _: b" "), FormatError, "manifest is not JSON"),
    Case(
        "manifest-utf8",
        manifest_text(lambda r: r.replace(b"class", b"\xc3\xa9", 1)),
        FormatError,
        "manifest is not JSON",
    ),
    Case("manifest-deep", manifest_text(lambda _: nested(100000).encode()), FormatError, "manifest is not JSON"),
    Case("manifest-deep-objects", manifest_text(lambda _: b'{"a":' * 50000), FormatError, "manifest is not JSON"),
    Case(
        "manifest-deep-task",
        manifest_text(lambda r: r.replace(b'"classify"', nested(400).encode())),
        SchemaError,
        "task",
    ),
    Case(
        "manifest-huge-integer", manifest_text(lambda r: r.replace(b"50,", b"5" * 5000 + b",", 1)), FormatError, "JSON"
    ),
    Case("manifest-nan", manifest_text(lambda r: r.replace(b'"seed":1', b'"seed":NaN')), FormatError, "holds NaN"),
    Case(
        "manifest-infinity",
        manifest_text(lambda r: r.replace(b'"seed":1', b'"seed":-Infinity')),
        FormatError,
        "holds -I",
    ),
    Case(
        "manifest-1e999", manifest_text(lambda r: r.replace(b'"seed":1', b'"seed":1e999')), FormatError, "holds 1e999"
    ),
    Case("manifest-repeats-key", manifest_text(lambda r: repeat_key(r, "task")), FormatError, "manifest repeats a key"),
    Case(
        "manifest-repeats-inner-key",
        manifest_text(lambda r: r.replace(b'{"seed"', b'{"seed":2,"seed"')),
        FormatError,
        "repeats",
    ),
    Case("manifest-comment", manifest_text(lambda r: b"//\n" + r), FormatError, "manifest is not JSON"),
    *(Case(f"manifest-without-{key}", drop(key), SchemaError, f"manifest: missing keys .'{key}'") for key in KEYS),
    Case("manifest-unknown-key", put("license", value="x"), SchemaError, "manifest: .*unknown keys .'license'"),
    Case("manifest-version", put("version", value=1), SchemaError, "manifest: .*unknown keys .'version'"),
    *(
        Case(f"{key}-type-{i}", put(key, value=value), SchemaError, key)
        for key in KEYS
        for i, value in enumerate(WRONG)
        if (key, value) not in (("labels", []), ("provenance", {}))
    ),
    Case("task-unknown", put("task", value="train"), SchemaError, "task"),
    Case("input-unknown-key", put("input", "path", value="x"), SchemaError, "input: .*unknown keys .'path'"),
    Case("input-with-step", put("input", "step", value=0.1), SchemaError, "input: .*unknown keys .'step'"),
    *(
        Case(f"input-without-{key}", drop("input", key), SchemaError, f"input: missing keys .'{key}'")
        for key in ("sample", "dtype")
    ),
    Case("input-shape-spelled-out", put("input", "shape", value=[8, 7, 2]), SchemaError, "input.shape: .*left out"),
    Case("input-shape-as-of-a-series", series(shape=[1, 8, 14]), SchemaError, "input.shape: .*left out"),
    Case("input-shape-as-of-a-vector", vector(shape=[1, 1, 112]), SchemaError, "input.shape: .*left out"),
    Case("input-shape-missing", put("input", "sample", value=[2, 4, 7, 2]), SchemaError, "input: shape .* three sizes"),
    *(
        Case(f"input-shape-{i}", put("input", "shape", value=v), SchemaError, "input")
        for i, v in enumerate(([], [0, 1, 1], [1, 1], [-1, -1, 1], [True] * 3, [2**31, 2**31, 2**31], [1.0] * 3, "x"))
    ),
    *(
        Case(f"input-sample-{i}", put("input", "sample", value=v), SchemaError, "input")
        for i, v in enumerate(([], [0], [-1], [1, 1, 1], [2**62, 4], [1] * 9, [HUGE], None))
    ),
    *(
        Case(f"input-dtype-{i}", put("input", "dtype", value=v), SchemaError, "input.dtype")
        for i, v in enumerate(("float64", [], {}, None, 8, "object"))
    ),
    *(
        Case(f"widths-{i}", put("widths", value=v), SchemaError, "widths")
        for i, v in enumerate(
            ([1, 8], [2, 9], [8, 4, 2], [2, 2, 8], [True, 8], [2.0, 4, 8], [-2, 8], [2, 4, HUGE], list(range(2, 11)))
        )
    ),
    Case("widths-unserved", put("widths", value=[2, 4]), SchemaError, "points|weights"),
    *(
        Case(f"sets-{i}", put("sets", value=v), SchemaError, f"sets: {v} parameter sets, not 3 to 1024")
        for i, v in enumerate((0, 1, 2, 1025, 2**62))
    ),
    *(
        Case(f"sets-other-{i}", put("sets", value=v), SchemaError, "sets: a count")
        for i, v in enumerate((-1, 4.0, "4", [4], 2**63))
    ),
    Case(
        "sets-fewer-than-stored",
        lambda d: (drop("points", 3)(d), put("sets", value=3)(d)),
        SchemaError,
        "parameters: shape",
    ),
    Case("sets-more-than-stored", put("sets", value=1024), SchemaError, "parameters: shape"),
    *(
        Case(f"samples-{i}", put("samples", value=v), SchemaError, "samples: a count")
        for i, v in enumerate((-1, 1.0, "5", [50], 2**63))
    ),
    *(
        Case(f"canonical-{name}", edit, FormatError, "manifest is not in canonical form")
        for name, edit in (
            ("key-order", reordered()),
            ("key-order-of-input", reordered("input")),
            ("key-order-of-fields", lambda d: d.manifest["ops"][2].update(k=d.manifest["ops"][2].pop("k"))),
            ("space", manifest_text(lambda r: r.replace(b'"task":', b'"task": ')[:-1])),
            ("space-first", manifest_text(lambda r: b" " + r[:-1])),
            ("newline-last", manifest_text(lambda r: r[:-1] + b"\n")),
            ("padding-more", manifest_text(lambda r: r + b" " * 8)),
            ("padding-less", manifest_text(lambda r: r.rstrip() + b" " * (-len(r.rstrip()) % 8 - 1))),
            ("escape", manifest_text(lambda r: r.replace(b'"classify"', b'"\\u0063lassify"').rstrip() + b" ")),
            ("solidus", manifest_text(lambda r: r.replace(b'"random"', b'"\\/"'))),
            ("capital-escape", manifest_text(lambda r: r.replace(b'"random"', b'"\\u00E9"'))),
            ("number", manifest_text(lambda r: r.replace(b'"seed":1', b'"seed":1.50'))),
            ("exponent", manifest_text(lambda r: r.replace(b'"seed":1', b'"seed":1E5'))),
            ("minus-zero", manifest_text(lambda r: r.replace(b'"seed":1', b'"seed":-0'))),
            ("score", manifest_text(lambda r: r.replace(b"0.96", b"96e-2"))),
            ("score-digits", manifest_text(lambda r: r.replace(b"0.96", b"0.9600000000000000000001"))),
        )
    ),
]

OPS = [
    Case("ops-empty", put("ops", value=[]), SchemaError, "1 to 4096 operations"),
    Case(
        "ops-too-many",
        lambda d: d.manifest.update(ops=d.manifest["ops"][:1] * 4097),
        SchemaError,
        "ops: a list of at most",
    ),
    *(
        Case(f"op-type-{i}", put("ops", 1, value=v), SchemaError, r"ops\[1\]")
        for i, v in enumerate((None, [], "conv", 1, {}))
    ),
    Case("op-without-kind", drop("ops", 0, "conv"), SchemaError, r"ops\[0\].c: 4 is no name"),
    Case("op-kind-last", reordered("ops", 0), SchemaError, r"ops\[0\].c: 4 is no name"),
    Case("op-two-kinds", put("ops", 0, "clamp", value="x"), SchemaError, r"ops\[0\]: unknown field 'clamp'"),
    Case("op-unknown-field", op("conv", url="http://x"), SchemaError, r"ops\[0\]: unknown field 'url'"),
    *(
        Case(f"op-long-key-{key}", op("conv", **{key: 1}), SchemaError, f"ops.0.: unknown field '{key}'")
        for key in ("kind", "name", "inputs", "channels", "kernel", "stride", "padding", "dilation", "groups")
    ),
    Case("op-unknown-kind", put("ops", 0, value={"lambda": "x"}), SchemaError, r"ops\[0\] \(lambda"),
    Case("op-kind-of-a-key", put("ops", 0, value={"in": "x"}), SchemaError, r"ops\[0\] \(in x\): unknown kind"),
    Case("op-kind-empty", put("ops", 0, value={"": "x"}), SchemaError, r"ops\[0\] .*unknown kind"),
    Case("op-kind-long", put("ops", 0, value={"x" * 10**5: ""}), SchemaError, r"ops\[0\] \(x{40}\)"),
    Case("op-kind-long-of-no-name", put("ops", 0, value={"x" * 10**5: 1}), SchemaError, r"ops\[0\].x{40}: 1 is no"),
    *(
        Case(f"op-name-type-{i}", op("conv", conv=v), SchemaError, r"ops\[0\].conv: .* is no name")
        for i, v in enumerate((None, 1, True, ["conv"], {}, [0]))
    ),
    Case("op-name-escape", op("conv", conv="\x1b[2J"), SchemaError, r"ops\[0\].conv"),
    Case("op-name-surrogate", op("conv", conv="\ud800"), SchemaError, r"ops\[0\].conv"),
    Case("op-name-long", op("conv", conv="n" * 257), SchemaError, r"ops\[0\].conv"),
    Case("op-reads-itself", op("conv", **{"in": [1]}), SchemaError, r"ops\[0\].*only tensors 0 to 0"),
    Case("op-reads-later", op("conv", **{"in": [5]}), SchemaError, r"ops\[0\].*only tensors 0 to 0"),
    Case("op-reads-negative", op("conv", **{"in": [-1]}), SchemaError, r"ops\[0\].*only tensors 0 to 0"),
    Case("op-reads-out-of-range", op("reshape", **{"in": [9999]}), SchemaError, r"reshape flat\): inputs"),
    Case("op-reads-wrapped-index", op("conv", **{"in": [2**32]}), SchemaError, r"ops\[0\].in"),
    Case("op-reads-huge", op("conv", **{"in": [HUGE]}), SchemaError, r"ops\[0\].in"),
    Case("op-reads-nothing", op("conv", **{"in": []}), SchemaError, r"ops\[0\].*0 inputs"),
    Case("op-reads-too-much", op("concat", **{"in": [1] * 65}), SchemaError, "65 inputs"),
    Case("op-reads-bool", op("conv", **{"in": [False]}), SchemaError, r"ops\[0\].in"),
    Case("op-reads-text", op("conv", **{"in": ["0"]}), SchemaError, r"ops\[0\].in"),
    Case("op-reads-a-number", op("avg_pool", **{"in": 2}), SchemaError, r"ops\[3\].in: 2 has the wrong type"),
    Case("op-reads-too-much-by-default", drop("ops", 4, "in"), SchemaError, r"concat cat\): 1 inputs"),
    *(
        Case(
            f"shorter-{kind}-{key}-{i}",
            op(kind, **{key: v}),
            SchemaError,
            rf"ops\[\d\].{key}: .* has a shorter notation",
        )
        for kind, key, values in (
            ("conv", "in", ([0],)),
            ("clamp", "in", ([1],)),
            ("clamp", "c", (0,)),
            ("conv", "k", ([3, 3], [2, 2], [1, 1], 1)),
            ("conv", "s", ([1, 1], 1, [2, 2])),
            ("conv", "p", ([0, 0, 0, 0], 0, [1, 1, 1, 1])),
            ("conv", "d", ([1, 1], 1)),
            ("conv", "g", (1,)),
            ("clamp", "low", (0,)),
            ("conv", "high", (255,)),
            ("conv", "shape", ([],)),
        )
        for i, v in enumerate(values)
    ),
    Case("op-dangling", dangling, SchemaError, "read by no operation"),
    *(
        Case(f"conv-{key}-{i}", op("conv", **{key: v}), SchemaError, r"ops\[0\]")
        for key, values in {
            "c": (0, -1, 65537, 2**31, HUGE, True, 4.0, "4", None, [4]),
            "g": (0, -1, 3, 65537, 2**31, False, [2]),
            "k": ([0, 1], [-1, 1], [1], [], [1, 1, 1], [65536, 65535], [2**31, 1], 65536, 0, -1, HUGE, True, 2.0, None),
            "s": ([0, 1], 0, [-1, 1], [2**32, 1], "1", {}),
            "d": ([0, 1], [65536, 1], -1, [True, 2]),
            "p": ([-1, 0, 0, 0], 65536, -1, [2**31, 0, 0, 0], [65537, 0, 0, 0], [0, 1], [], False, [0.0] * 4),
            "low": (1, -2, -(2**31), None, 0.5, [0]),
            "high": (0, -1, 2**15, 2**31, "255", True),
            "shape": ([1, 1, 1], [-1], 4),
        }.items()
        for i, v in enumerate(values)
    ),
    Case("pool-empty-windows", op("max_pool", p=[2, 0, 0, 0]), SchemaError, "max_pool max\\): padding"),
    Case("pool-unused-field", op("max_pool", g=2), SchemaError, "max_pool max\\): does not use groups"),
    Case("reshape-size", op("reshape", shape=[1, 1, 7]), SchemaError, "reshape flat\\): .* does not reshape"),
    Case("reshape-overflow", op("reshape", shape=[2**30, 2**30, 2**30]), SchemaError, "reshape flat"),
    Case("reshape-a-number", op("reshape", shape=72), SchemaError, r"ops\[9\].shape"),
    Case("reshape-negative", op("reshape", shape=[-1, -1, 1]), SchemaError, "reshape flat"),
    Case("add-of-shapes", op("add", **{"in": [0, 1]}), SchemaError, "add add.*which differ"),
    Case("concat-of-shapes", op("concat", **{"in": [0, 3]}), SchemaError, "which differ in height or width"),
    Case("16-bit-inside", op("conv", low=-(2**15), high=2**15 - 1), SchemaError, "reads 16-bit codes"),
    Case("no-conv", lambda d: d.manifest.update(ops=[{"clamp": ""}]), SchemaError, "at least one conv"),
]

POINTS = [
    Case("points-none", put("points", value=[]), SchemaError, "points: at least one"),
    Case("points-too-many", many_points, SchemaError, "points: a list of at most"),
    Case("points-of-one-name", point(1, name="w2a2"), SchemaError, "points: .*each of its own name"),
    *(
        Case(f"point-type-{i}", put("points", 0, value=v), SchemaError, r"points\[0\]")
        for i, v in enumerate((None, [], "w8", 8, {}, ["w2a2"], {"name": "w2a2"}))
    ),
    *(
        Case(
            f"point-without-{key}", drop("points", 0, i), SchemaError, r"points\[0\]: name, w, a, score .*not 3 values"
        )
        for i, key in enumerate(("name", "w", "a", "score"))
    ),
    Case("point-of-six", put("points", 3, value=["x", "8", "8", 0.5, 3, 1]), SchemaError, r"points\[3\]: .*at most 5"),
    *(
        Case(f"point-name-{i}", point(name=v), SchemaError, r"points\[0\].name")
        for i, v in enumerate(("", "n" * 257, 1, None, "a\nb", "\x9b", "\udfff"))
    ),
    Case("point-assignment-long", long_point, SchemaError, r"points\[3\]: the model has 5 layers, w 6 digits and a 6"),
    Case("point-assignment-uneven", point(w="88"), SchemaError, r"points\[0\]: the model has 5 layers, w 2 digits"),
    Case("point-assignment-empty", point(w="", a=""), SchemaError, r"points\[0\].w"),
    Case("point-assignment-letters", point(w="x" * 5, a="8" * 5), SchemaError, r"points\[0\]: w and a are digits"),
    Case("point-assignment-superscript", point(w="²"), SchemaError, r"points\[0\]: w and a are digits"),
    Case("point-assignment-arabic", point(w="٢"), SchemaError, r"points\[0\]: w and a are digits"),
    Case("point-assignment-sign", point(w="-2"), SchemaError, r"points\[0\]: w and a are digits"),
    *(
        Case(f"point-assignment-{key}-{i}", point(**{key: v}), SchemaError, rf"points\[0\].{key}: a text")
        for key in ("w", "a")
        for i, v in enumerate((2, [8] * 5, None, True))
    ),
    Case("point-width-unserved", point(w="3"), SchemaError, r"points\[0\]: layer .* weights of 3 bits"),
    Case("point-width-zero", point(w="0"), SchemaError, r"points\[0\]: layer .* weights of 0 bits"),
    Case("point-width-unserved-in-one", point(3, w="82328"), SchemaError, r"points\[3\]: layer .* weights of 3 bits"),
    Case("point-activation-unserved", point(a="3"), SchemaError, r"points\[0\]: layer .* activations of 3"),
    Case("point-activation-in-one", point(a="83222"), SchemaError, r"points\[0\]: layer .* activations of 3"),
    Case("point-narrow-input", point(3, a="22428"), SchemaError, r"points\[3\]: .*reads the network's input"),
    *(
        Case(f"point-longer-{i}", point(w=w, a=a), SchemaError, rf"points\[0\].{message}")
        for i, (w, a, message) in enumerate(
            (
                ("22222", "82222", "w: '22222' is written '2'"),
                ("22222", "2", "w: '22222' is written '2'"),
                ("2", "82222", "a: '82222' is written '2'"),
                ("2", "88888", "a: '88888' is written '8'"),
                ("24444", "84444", "a: '84444' is written '4'"),
            )
        )
    ),
    Case("point-digit-of-one-layer", one_layer(a="2"), SchemaError, r"points\[0\].a: '2' is written '8'"),
    *(
        Case(f"point-score-{i}", point(score=v), SchemaError, r"points\[0\].score")
        for i, v in enumerate((1.01, -0.01, "1", None, True, HUGE, 1, 0, [0.5]))
    ),
    Case("point-score-r2", point(score=1.5), SchemaError, r"points\[0\].score: 1.5 is no r2", "reconstruct"),
    *(
        Case(f"point-set-{i}", point(set=v), SchemaError, r"points\[0\].set")
        for i, v in enumerate((-1, True, None, 3.0, "3", HUGE))
    ),
    *(
        Case(f"point-set-row-{v}", point(set=v), SchemaError, rf"points\[0\].set: no parameter set {v}")
        for v in (0, 2, 4, 1024)
    ),
    Case("labels-too-few", put("labels", value=["a"]), SchemaError, "labels: 1 for 3 outputs"),
    Case("labels-too-many", put("labels", value=["a"] * 4), SchemaError, "labels: 4 for 3 outputs"),
    *(
        Case(f"label-{i}", put("labels", 0, value=v), SchemaError, "labels")
        for i, v in enumerate(("", 1, None, [], "x" * 257, "\0", "\ud83d"))
    ),
    *(
        Case(f"provenance-{i}", put("provenance", "x", value=v), SchemaError, "provenance")
        for i, v in enumerate((None, True, [], {}))
    ),
]

CASES = [*LENGTHS, *FILES, *HEADERS, *TENSORS, *MANIFESTS, *OPS, *POINTS, *GATES, *SECTIONS]
