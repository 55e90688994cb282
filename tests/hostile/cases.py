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
    op,
    point,
    put,
    renamed,
    repeat_key,
    reshaped,
    retyped,
    set_version,
    swapped_offsets,
    swapped_tensors,
    whole,
    without,
    zipped,
)

HUGE = 10**400
NAMES = ("steps", "ratios", "scaling", "affine", "exponents", "planes.2", "planes.4", "planes.8")

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
    Case("tensor-byte-changed", whole(lambda data: data[:-1] + bytes([data[-1] ^ 1])), IntegrityError, "'planes.8'"),
]

HEADERS = [
    Case(
        "header-not-ascii", head_text(lambda raw: raw.replace(b"steps", b"st\xc3\xa9p")), FormatError, "header is not"
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
    Case("header-repeats-tensor", head_text(lambda r: repeat_key(r, "steps")), FormatError, "header repeats a key"),
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
    Case("header-escape", head_text(lambda r: r.replace(b"steps", b"\\u0073teps")), FormatError, "canonical"),
    Case("header-minus-zero", head_text(lambda r: r.replace(b"[0,", b"[-0,", 1)), FormatError, "canonical"),
    Case("header-float-shape", head_text(lambda r: r.replace(b"[0,", b"[0.0,", 1)), FormatError, "data_offsets"),
    Case("metadata-list", header(lambda h: h.update(__metadata__=["caq"])), FormatError, "not a .caq file"),
    Case("metadata-null", header(lambda h: h.update(__metadata__=None)), FormatError, "not a .caq file"),
    Case("metadata-without-caq", header(lambda h: h["__metadata__"].pop("caq")), FormatError, "not a .caq file"),
    Case("metadata-unknown-key", header(lambda h: h["__metadata__"].update(x="1")), FormatError, "__metadata__"),
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
    Case("manifest-last", header(manifest_last), FormatError, "must begin with"),
    Case("manifest-missing", header(lambda h: h.pop("manifest")), FormatError, "must begin with"),
    Case("manifest-dtype", entry("manifest", dtype="I8"), FormatError, "manifest must be U8"),
    Case(
        "manifest-too-long", manifest_text(lambda raw: raw + b" " * 2**20), FormatError, "manifest must be U8, at most"
    ),
    Case("tensor-overlaps", moved("ratios", -4, -4), FormatError, "'ratios'"),
    Case("tensor-gap", moved("ratios", 4, 4), FormatError, "'ratios'"),
    Case("tensor-longer", moved("steps", 0, 4), FormatError, "'steps'"),
    Case("tensor-backwards", entry("steps", data_offsets=[8, 0]), FormatError, "'steps'"),
    Case("tensor-negative-offset", entry("steps", data_offsets=[-48, 0]), FormatError, "'steps'"),
    Case("tensor-offset-huge", entry("steps", data_offsets=[0, HUGE]), FormatError, "'steps': data_offsets"),
    Case("tensor-offset-2-63", entry("steps", data_offsets=[0, 2**63 - 1]), FormatError, "'steps'"),
    Case("tensor-one-offset", entry("steps", data_offsets=[0]), FormatError, "'steps'"),
    Case("tensor-offsets-text", entry("steps", data_offsets="0,8"), FormatError, "'steps': data_offsets"),
    Case("tensor-offset-bool", entry("manifest", data_offsets=[False, 8]), FormatError, "'manifest': data_offsets"),
    Case("tensors-swap-bytes", header(swapped_offsets), FormatError, "'affine'"),
    Case("shape-zero", entry("steps", shape=[0]), FormatError, "'steps'"),
    Case("shape-negative", entry("steps", shape=[-3, -4]), FormatError, "'steps'"),
    Case("shape-wraps-64-bits", entry("steps", shape=[2**32, 2**32 + 1]), FormatError, "'steps'"),
    Case("shape-wraps-to-size", entry("steps", shape=[2**62 + 3]), FormatError, "'steps'"),
    Case("shape-huge", entry("steps", shape=[HUGE]), FormatError, "'steps': shape"),
    Case("shape-bool", entry("steps", shape=[True]), FormatError, "'steps': shape"),
    Case("shape-text", entry("steps", shape="12"), FormatError, "'steps': shape"),
    Case("shape-empty", entry("steps", shape=[]), FormatError, "'steps': shape"),
    Case("shape-nine-sizes", entry("steps", shape=[1] * 9), FormatError, "'steps': shape"),
    Case("shape-deep", entry("steps", shape=json.loads(nested(300))), FormatError, "'steps': shape"),
    Case("shape-larger-than-stored", entry("planes.8", shape=[4, 2**40]), FormatError, "'planes.8'"),
    Case("dtype-unknown", entry("steps", dtype="F64"), FormatError, "'steps': dtype 'F64'"),
    Case("dtype-object", entry("steps", dtype="O"), FormatError, "'steps': dtype 'O'"),
    Case("dtype-list", entry("steps", dtype=["F32"]), FormatError, "'steps': dtype"),
    Case("dtype-null", entry("steps", dtype=None), FormatError, "'steps': dtype"),
    Case("dtype-other-size", entry("steps", dtype="I8"), FormatError, "'steps'"),
    Case("entry-list", header(lambda h: h.update(steps=[])), FormatError, "'steps'"),
    Case("entry-null", header(lambda h: h.update(steps=None)), FormatError, "'steps'"),
    Case("entry-without-shape", header(lambda h: h["steps"].pop("shape")), FormatError, "'steps'"),
    Case("entry-unknown-key", entry("steps", file="/etc/passwd"), FormatError, "'steps'"),
    Case("entry-reordered", header(lambda h: h["steps"].update(dtype=h["steps"].pop("dtype"))), FormatError, "'steps'"),
]

TENSORS = [
    *(Case(f"without-{n}", without(n), SchemaError, n if n != "affine" else "affine: 0 parameter sets") for n in NAMES),
    Case("extra-tensor", extra_tensor, SchemaError, "'weights'"),
    Case("tensors-reordered", swapped_tensors, SchemaError, "'ratios'"),
    *(
        Case(f"path-{i}", renamed("steps", name), SchemaError, "'steps'")
        for i, name in enumerate(("../../etc/passwd", "/dev/zero", "C:\\x", "steps\0", "file:///x", "", "planes.x"))
    ),
    Case("steps-as-int32", retyped("steps", "I32", np.int32), SchemaError, "'steps'"),
    Case("affine-as-uint8", retyped("affine", "U8", np.uint8), SchemaError, "'affine'"),
    Case("affine-flat", reshaped("affine", lambda a: a.reshape(-1)), SchemaError, "affine: 0 parameter sets"),
    Case("affine-of-one-set", reshaped("affine", lambda a: a[:, :1]), SchemaError, "affine: 1 parameter sets"),
    Case("affine-of-1025-sets", reshaped("affine", lambda a: a.repeat(257, 1)[:, :1025]), SchemaError, "affine: 1025"),
    Case("affine-a-channel-short", reshaped("affine", lambda a: a[..., 1:]), SchemaError, "'affine'"),
    Case("exponents-a-layer-short", reshaped("exponents", lambda a: a[..., 1:]), SchemaError, "'exponents'"),
    Case("planes-a-byte-short", reshaped("planes.8", lambda a: a[:, 1:]), SchemaError, "'planes.8'"),
    Case("planes-one-too-many", reshaped("planes.4", lambda a: np.concatenate([a, a])), SchemaError, "'planes.4'"),
    Case("steps-one-too-many", reshaped("steps", lambda a: np.append(a, a[:1])), SchemaError, "'steps'"),
    Case("scaling-transposed", reshaped("scaling", lambda a: np.concatenate([a, a])), SchemaError, "'scaling'"),
    Case("resolution-missing", without("resolution"), SchemaError, "'resolution'", "float32"),
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
    Case("steps-not-the-inputs", array("steps", 0, 0.5), SchemaError, "input.step is"),
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
        Case(
            f"sha256-of-{n}",
            lambda d, n=n: (put("sha256", n, value="A" * 43)(d), d.wrong_sha.add(n)),
            IntegrityError,
            n,
        )
        for n in NAMES
    ),
    Case(
        "sha256-null",
        lambda d: (put("sha256", "steps", value=None)(d), d.wrong_sha.add("steps")),
        IntegrityError,
        "steps",
    ),
    Case("sha256-missing-name", drop("sha256", "steps"), SchemaError, "sha256 must name every tensor"),
    Case("sha256-unknown-name", put("sha256", "x", value="y"), SchemaError, "sha256 must name every tensor"),
    Case("sha256-list", put("sha256", value=[]), SchemaError, "sha256"),
]

KEYS = ("version", "task", "input", "widths", "ops", "points", "labels", "provenance", "sha256")
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
    *(
        Case(f"manifest-version-{i}", put("version", value=v), VersionError, "manifest version")
        for i, v in enumerate((2, True, 1.0, "1", None))
    ),
    *(
        Case(f"{key}-type-{i}", put(key, value=value), SchemaError, key)
        for key in KEYS[1:]
        for i, value in enumerate(WRONG)
        if (key, value) not in (("labels", []), ("provenance", {}), ("sha256", {}))
    ),
    Case("task-unknown", put("task", value="train"), SchemaError, "task"),
    Case("input-unknown-key", put("input", "path", value="x"), SchemaError, "input: .*unknown keys .'path'"),
    Case("input-without-step", drop("input", "step"), SchemaError, "input: missing keys .'step'"),
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
        Case(f"input-step-{i}", put("input", "step", value=v), SchemaError, "input.step")
        for i, v in enumerate((0, -1.0, 1e-45, 1e300, 1e301, HUGE, True, "1", None, 0.1))
    ),
    *(
        Case(f"widths-{i}", put("widths", value=v), SchemaError, "widths")
        for i, v in enumerate(
            ([1, 8], [2, 9], [8, 4, 2], [2, 2, 8], [True, 8], [2.0, 4, 8], [-2, 8], [2, 4, HUGE], list(range(2, 11)))
        )
    ),
    Case("widths-unserved", put("widths", value=[2, 4]), SchemaError, "points|weights"),
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
    Case("op-without-kind", drop("ops", 0, "kind"), SchemaError, r"ops\[0\]: kind and inputs"),
    Case("op-without-inputs", drop("ops", 0, "inputs"), SchemaError, r"ops\[0\]: kind and inputs"),
    Case("op-unknown-field", op("conv", url="http://x"), SchemaError, r"ops\[0\]: unknown field 'url'"),
    Case("op-unknown-kind", put("ops", 0, "kind", value="lambda"), SchemaError, r"ops\[0\] \(lambda"),
    Case("op-kind-long", put("ops", 0, "kind", value="x" * 10**5), SchemaError, r"ops\[0\] \(x{40} "),
    Case("op-kind-list", put("ops", 0, "kind", value=["conv"]), SchemaError, r"ops\[0\].kind"),
    Case("op-name-escape", op("conv", name="\x1b[2J"), SchemaError, r"ops\[0\].name"),
    Case("op-name-surrogate", op("conv", name="\ud800"), SchemaError, r"ops\[0\].name"),
    Case("op-name-long", op("conv", name="n" * 257), SchemaError, r"ops\[0\].name"),
    Case("op-name-null", op("conv", name=None), SchemaError, r"ops\[0\].name"),
    Case("op-reads-itself", op("conv", inputs=[1]), SchemaError, r"ops\[0\].*only tensors 0 to 0"),
    Case("op-reads-later", op("conv", inputs=[5]), SchemaError, r"ops\[0\].*only tensors 0 to 0"),
    Case("op-reads-negative", op("conv", inputs=[-1]), SchemaError, r"ops\[0\].*only tensors 0 to 0"),
    Case("op-reads-out-of-range", op("reshape", inputs=[9999]), SchemaError, r"reshape flat\): inputs"),
    Case("op-reads-wrapped-index", op("conv", inputs=[2**32]), SchemaError, r"ops\[0\].inputs"),
    Case("op-reads-huge", op("conv", inputs=[HUGE]), SchemaError, r"ops\[0\].inputs"),
    Case("op-reads-nothing", op("conv", inputs=[]), SchemaError, r"ops\[0\].*0 inputs"),
    Case("op-reads-too-much", op("concat", inputs=[1] * 65), SchemaError, "65 inputs"),
    Case("op-reads-bool", op("conv", inputs=[False]), SchemaError, r"ops\[0\].inputs"),
    Case("op-reads-text", op("conv", inputs=["0"]), SchemaError, r"ops\[0\].inputs"),
    Case("op-dangling", dangling, SchemaError, "read by no operation"),
    *(
        Case(f"conv-{key}-{i}", op("conv", **{key: v}), SchemaError, r"ops\[0\]")
        for key, values in {
            "channels": (0, -1, 65537, 2**31, HUGE, True, 4.0, "4", None),
            "groups": (0, -1, 3, 65537, 2**31, False),
            "kernel": ([0, 1], [-1, 1], [1], [1, 1, 1], [65536, 65536], [2**31, 1], 3, None),
            "stride": ([0, 0], [-1, 1], [2**32, 1], "1"),
            "dilation": ([0, 1], [65536, 1], [-1, -1]),
            "padding": ([-1, 0, 0, 0], [65536, 65536, 65536, 65536], [2**31, 0, 0, 0], [65537, 0, 0, 0], [0, 0], 1),
            "low": (1, -2, -(2**31), None, 0.5),
            "high": (0, -1, 2**15, 2**31, "255"),
            "shape": ([1, 1, 1], [-1], 4),
        }.items()
        for i, v in enumerate(values)
    ),
    Case("pool-empty-windows", op("max_pool", padding=[2, 0, 0, 0]), SchemaError, "max_pool max\\): padding"),
    Case("pool-unused-field", op("max_pool", groups=2), SchemaError, "max_pool max\\): does not use groups"),
    Case("reshape-size", op("reshape", shape=[1, 1, 7]), SchemaError, "reshape flat\\): .* does not reshape"),
    Case("reshape-overflow", op("reshape", shape=[2**30, 2**30, 2**30]), SchemaError, "reshape flat"),
    Case("reshape-negative", op("reshape", shape=[-1, -1, 1]), SchemaError, "reshape flat"),
    Case("add-of-shapes", op("add", inputs=[0, 1]), SchemaError, "add add.*which differ"),
    Case("concat-of-shapes", op("concat", inputs=[0, 3]), SchemaError, "which differ in height or width"),
    Case("16-bit-inside", op("conv", low=-(2**15), high=2**15 - 1), SchemaError, "reads 16-bit codes"),
    Case(
        "no-conv", lambda d: d.manifest.update(ops=[{"kind": "clamp", "inputs": [0]}]), SchemaError, "at least one conv"
    ),
]

POINTS = [
    Case("points-none", put("points", value=[]), SchemaError, "points: at least one"),
    Case("points-too-many", many_points, SchemaError, "points: a list of at most"),
    Case("points-of-one-name", put("points", 1, "name", value="w2a2"), SchemaError, "points: .*each of its own name"),
    *(
        Case(f"point-type-{i}", put("points", 0, value=v), SchemaError, r"points\[0\]")
        for i, v in enumerate((None, [], "w8", 8, {}))
    ),
    *(
        Case(f"point-without-{key}", drop("points", 0, key), SchemaError, r"points\[0\]")
        for key in ("name", "w", "a", "score", "samples", "cost")
    ),
    Case("point-unknown-key", point(policy="exec"), SchemaError, r"points\[0\]: .*unknown keys .'policy'"),
    *(
        Case(f"point-name-{i}", point(name=v), SchemaError, r"points\[0\].name")
        for i, v in enumerate(("", "n" * 257, 1, None, "a\nb", "\x9b", "\udfff"))
    ),
    Case("point-assignment-long", long_point, SchemaError, r"points\[0\]: the model has"),
    Case("point-assignment-uneven", point(w="8"), SchemaError, r"points\[0\]: w and a"),
    Case("point-assignment-empty", point(w="", a=""), SchemaError, r"points\[0\].w"),
    Case("point-assignment-letters", point(w="x" * 5, a="8" * 5), SchemaError, r"points\[0\]: w and a"),
    Case("point-assignment-superscript", point(w="²" * 5, a="8" * 5), SchemaError, r"points\[0\]: w and a"),
    Case("point-assignment-arabic", point(w="٢" * 5, a="8" * 5), SchemaError, r"points\[0\]: w and a"),
    Case("point-assignment-list", point(w=[8] * 5), SchemaError, r"points\[0\].w"),
    Case("point-width-unserved", point(w="3" * 5, a="8" * 5), SchemaError, r"points\[0\]: layer .* weights of 3 bits"),
    Case("point-width-zero", point(w="0" * 5, a="8" * 5), SchemaError, r"points\[0\]: layer .* weights of 0 bits"),
    Case(
        "point-activation-unserved", point(w="8" * 5, a="83333"), SchemaError, r"points\[0\]: layer .* activations of 3"
    ),
    Case("point-narrow-input", point(w="2" * 5, a="2" * 5), SchemaError, r"points\[0\]: .*reads the network's input"),
    *(
        Case(f"point-cost-{i}", point(cost=v), SchemaError, r"points\[0\].cost")
        for i, v in enumerate(([0, 0], [1], [], None, [HUGE, 1], [True, False], "free"))
    ),
    Case(
        "point-cost-float",
        lambda d: point(cost=[float(v) for v in d.manifest["points"][0]["cost"]])(d),
        SchemaError,
        r"points\[0\].cost",
    ),
    *(
        Case(f"point-score-{i}", point(score=v), SchemaError, r"points\[0\].score")
        for i, v in enumerate((1.01, -0.01, "1", None, True, HUGE))
    ),
    Case("point-score-r2", point(score=1.5), SchemaError, r"points\[0\].score: 1.5 is no r2", "reconstruct"),
    *(
        Case(f"point-samples-{i}", point(samples=v), SchemaError, r"points\[0\].samples")
        for i, v in enumerate((-1, 1.0, True, None, "5", HUGE))
    ),
    *(
        Case(f"point-set-{i}", point(set=v), SchemaError, r"points\[0\].set")
        for i, v in enumerate((-1, True, None, 3.0, "3", HUGE))
    ),
    *(
        Case(f"point-set-row-{v}", point(set=v), SchemaError, f"point 'w2a2': no parameter set {v}")
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

CASES = [*LENGTHS, *FILES, *HEADERS, *TENSORS, *MANIFESTS, *OPS, *POINTS]
