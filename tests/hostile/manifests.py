"""Hostile manifests: `tests.hostile.cases` has the rest."""

from __future__ import annotations

from typing import Any

from caq.errors import FormatError, SchemaError
from tests.hostile.edits import (
    HUGE,
    Case,
    dangling,
    drop,
    long_point,
    manifest_text,
    many_points,
    nested,
    one_layer,
    op,
    point,
    put,
    reordered,
    repeat_key,
    series,
    vector,
)

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
