"""The hostile files by class: what each breaks, the error that it must raise, and the words that this must name."""

from __future__ import annotations

import json
import pickle

import numpy as np

from caq.errors import FormatError, IntegrityError, SchemaError, VersionError
from tests.hostile.edits import (
    HUGE,
    Case,
    Exploit,
    array,
    drop,
    entry,
    extra_tensor,
    filler,
    head_text,
    header,
    manifest_last,
    manifest_text,
    moved,
    nested,
    put,
    renamed,
    repeat_key,
    reshaped,
    set_version,
    swapped_offsets,
    whole,
    wrong_sha,
    zipped,
)
from tests.hostile.gates import GATES
from tests.hostile.manifests import MANIFESTS, OPS, POINTS
from tests.hostile.sections import SECTIONS

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

CASES = [*LENGTHS, *FILES, *HEADERS, *TENSORS, *MANIFESTS, *OPS, *POINTS, *GATES, *SECTIONS]
