"""Hostile conditional points: `tests.hostile.cases` has the rest. The sound one is the last of five points."""

from __future__ import annotations

from typing import Any

from caq.errors import FormatError, SchemaError
from tests.hostile.edits import HUGE, Case, Edit, array, drop, put, reordered
from tests.hostile.make import Draft

AT = ("points", 4, 1)


def _case(name: str, edit: Edit, words: str) -> Case:
    return Case(f"gate-{name}", edit, SchemaError, words, "conditional")


def _branch(index: int, **values: Any) -> Edit:
    """Sets values of one branch; `taken` is made up for by the next one."""

    def edit(d: Draft) -> None:
        row = d.manifest["points"][4][1]["branches"][index]
        row += [0] * ("set" in values and len(row) == 3)
        for key, value in values.items():
            row[("w", "a", "taken", "set").index(key)] = value

    return edit


def _many_branches(d: Draft) -> None:
    """More branches in all than a file may have points."""
    point = d.manifest["points"][4]
    row = [*point[1]["branches"][0][:2], 0, 3]
    gate = {**point[1], "weights": [point[1]["weights"][0]] * 16, "bias": [0] * 16, "branches": [row] * 16}
    gate["branches"] = [[*row[:2], d.manifest["samples"], *row[3:]], *gate["branches"][1:]]
    d.manifest["points"] = [[str(i), gate, 0.5] for i in range(65)]


def _one_branch(d: Draft) -> None:
    gate = d.manifest["points"][4][1]
    for key in ("weights", "bias", "branches"):
        gate[key] = gate[key][:1]
    gate["branches"][0][2] = d.manifest["samples"]


def _prefix_width(d: Draft) -> None:
    """The first layer is before the gate."""
    row = d.manifest["points"][4][1]["branches"][1]
    first = d.manifest["points"][4][1]["branches"][0]
    widths = (first[0] * 5)[:5]
    row[0] = ("2" if widths[0] != "2" else "8") + "48242"[1:]
    row[1] = "84242"


GATES = [
    *(_case(f"type-{i}", put(*AT, value=v), r"points\[4\]: name, w, a") for i, v in enumerate((None, 1, [], "x", 0.5))),
    _case("empty", put(*AT, value={}), r"points\[4\].gate: missing keys"),
    *(
        _case(f"without-{key}", drop(*AT, key), rf"points\[4\].gate: missing keys \['{key}'\]")
        for key in ("reads", "shift", "weights", "bias", "branches")
    ),
    _case("unknown-key", put(*AT, "x", value=1), "unknown keys .*'x'"),
    _case("of-four", put("points", 4, value=["x", {}, 0.5, 3]), r"points\[4\].w: a text"),
    *(
        _case(f"{key}-{i}", put(*AT, key, value=v), rf"points\[4\].gate.{key}: a count")
        for key in ("reads", "shift")
        for i, v in enumerate((-1, True, None, 1.0, "1", HUGE, [1]))
    ),
    _case("reads-output", put(*AT, "reads", value=11), "gate: the gate reads tensor 11; it may read .* from 0 to 10"),
    _case("reads-far", put(*AT, "reads", value=2**62), "gate: the gate reads tensor"),
    _case("reads-other-channels", put(*AT, "reads", value=0), "gate: weights are not 3 rows of"),
    _case("shift-32", put(*AT, "shift", value=32), "the shift is 0 to 31"),
    *(
        _case(f"weights-{i}", put(*AT, "weights", value=v), r"points\[4\].gate.weights: a list")
        for i, v in enumerate((None, 1, {}, "x", [[1]] * 17))
    ),
    *(
        _case(f"weights-row-{i}", put(*AT, "weights", 0, value=v), r"points\[4\].gate.weights\[0\]: a list")
        for i, v in enumerate((None, 1, {}, "x", [0.5], [True], ["1"], [HUGE], [2**31], [None], [0] * (2**16 + 1)))
    ),
    _case("weights-none", put(*AT, "weights", value=[]), "gate: weights are not 3 rows of"),
    _case("weights-row-short", drop(*AT, "weights", 0, 0), "gate: weights are not 3 rows of"),
    _case("weights-row-empty", put(*AT, "weights", 0, value=[]), "gate: weights are not 3 rows of"),
    _case("weight-128", put(*AT, "weights", 0, 0, value=128), "gate: weights are -128 to 127"),
    _case("weight-minus-129", put(*AT, "weights", 0, 0, value=-129), "gate: weights are -128 to 127"),
    *(
        _case(f"bias-{i}", put(*AT, "bias", value=v), r"points\[4\].gate.bias: a list")
        for i, v in enumerate((None, 1, {}, [0.5] * 3, [True] * 3, [2**31] * 3, [-(2**31) - 1] * 3, [0] * 17))
    ),
    _case("bias-short", drop(*AT, "bias", 0), "gate: weights are not .* with a bias each"),
    _case("bias-overflows", put(*AT, "bias", 0, value=2**31 - 1), "gate: a score may leave 32 bits"),
    _case("bias-overflows-below", put(*AT, "bias", 2, value=-(2**31)), "gate: a score may leave 32 bits"),
    *(
        _case(f"branches-{i}", put(*AT, "branches", value=v), r"points\[4\].gate.branches: a list of at most 16")
        for i, v in enumerate((None, 1, {}, "x", [["8", "8", 50]] * 17))
    ),
    *(
        _case(f"branch-{i}", put(*AT, "branches", 1, value=v), r"points\[4\].gate.branches\[1\]: a list of at most 4")
        for i, v in enumerate((None, 1, {}, "x", ["8", "8", 50, 3, 1]))
    ),
    *(
        _case(
            f"branch-of-{i}", put(*AT, "branches", 1, value=["8", "8", 50][:i]), r"\[1\]: w, a, taken and perhaps set"
        )
        for i in range(3)
    ),
    _case("one-branch", _one_branch, "a gate has 2 to 16 branches, not 1"),
    _case("no-branches", put(*AT, "branches", value=[]), "gate.branches: taken by 0 samples, while scores are of 50"),
    _case("too-many-branches", _many_branches, "points: 1040 branches in all, at most 1024"),
    *(
        _case(f"taken-{i}", _branch(1, taken=v), r"branches\[1\].taken: a count")
        for i, v in enumerate((-1, True, None, 1.0, "1", HUGE))
    ),
    _case("taken-too-often", _branch(1, taken=51), r"gate.branches: taken by \d+ samples, while scores are of 50"),
    _case("branch-width", _branch(1, w="3"), r"branches\[1\]: layer .* weights of 3 bits"),
    _case("branch-long", _branch(1, w="2" * 6), r"branches\[1\]: the model has 5 layers"),
    _case("branch-longer", _branch(1, w="22222"), r"branches\[1\].w: '22222' is written '2'"),
    _case("branch-letters", _branch(1, a="x"), r"branches\[1\]: w and a are digits"),
    _case("branch-number", _branch(1, a=8), r"branches\[1\].a: a text"),
    *(
        _case(f"branch-set-{i}", _branch(1, set=v), r"branches\[1\].set")
        for i, v in enumerate((-1, 0, 2, True, None, 3.0, "3", 1024, HUGE))
    ),
    _case("branch-of-another-set", _branch(1, set=3), "point 'conditional': layer .* gains or biases differ"),
    _case("prefix-width", _prefix_width, "branch 1: layer 'conv0' is .* must have it alike"),
    _case("prefix-gain", array("affine", (0, 5, 0), 1), "point 'conditional': layer 'conv0': .* differ"),
    _case("prefix-bias", array("affine", (1, 6, 0), 1), "point 'conditional': layer 'conv0': .* differ"),
    _case("prefix-exponent", array("exponents", (0, 5, 0), 9), "point 'conditional': layer 'conv0': .* differ"),
    _case("score", put("points", 4, 2, value=1.5), r"points\[4\].score: 1.5 is no accuracy"),
    Case("gate-keys-reordered", reordered(*AT), FormatError, "canonical", "conditional"),
]
