"""Hostile optional sections: `tests.hostile.cases` has the rest."""

from __future__ import annotations

from typing import Any

import numpy as np

from caq.errors import ArtifactError, FormatError, IntegrityError, SchemaError
from tests.hostile.edits import Case, Edit, array, drop, entry, header, moved, put, renamed, reordered, reshaped, whole
from tests.hostile.make import Draft

HUGE = 10**400


def _case(name: str, edit: Edit, words: str, error: type[ArtifactError] = SchemaError, base: str = "core") -> Case:
    return Case(f"section-{name}", edit, error, words, base)


def _reconstructs(d: Draft) -> None:
    """A model without classes."""
    d.manifest["task"] = "reconstruct"
    d.manifest["labels"] = []


def _alone(d: Draft) -> None:
    """Another section, no core set, and no classes."""
    _reconstructs(d)
    del d.arrays["core"], d.manifest["sections"]["core"]


def _features(name: str, edit: Edit, words: str, error: type[ArtifactError] = SchemaError) -> Case:
    return _case(f"features-{name}", edit, words, error, "features")


def _before_planes(h: dict[str, Any]) -> None:
    """The planes at the header's end."""
    h["planes"] = h.pop("planes")


def _kept(name: str, value: object) -> Edit:
    """A checksum that stays as it is."""
    return lambda d: (put("sections", name, value=value)(d), d.wrong_sha.add(name))


SECTIONS = [
    *(_case(f"type-{i}", put("sections", value=v), "sections") for i, v in enumerate((None, [], "x", 1, {}))),
    *(_case(f"digest-{i}", _kept("core", v), "sections.core") for i, v in enumerate((None, [], "", 1, "A" * 44, "\0"))),
    _case("unknown", put("sections", "x", value="A" * 43), "sections: some of core"),
    _case("unknown-alone", put("sections", value={"x" * 999: "A" * 43}), "sections: some of core"),
    _case("not-in-the-manifest", drop("sections"), "sections: the header has core, the manifest none"),
    _case("not-in-the-header", put("sections", value={"core": "A" * 43}), "header has none, .* core", base="uint8"),
    _case("first", lambda d: d.manifest.update(task=d.manifest.pop("task")), "canonical", FormatError),
    _case("sha256-after-it", reordered(), "canonical", FormatError),
    _case("before-the-planes", header(_before_planes), "header must be __metadata__", FormatError),
    _case("renamed", renamed("core", "cores"), "header must be __metadata__", FormatError),
    _case("wrong-sha", _kept("core", "A" * 43), "core: its SHA-256", IntegrityError),
    _case("byte-changed", whole(lambda data: data[:-1] + bytes([data[-1] ^ 1])), "core: its SHA", IntegrityError),
    _case("cut", whole(lambda data: data[:-1]), "the tensors end at byte", FormatError),
    _case("more", whole(lambda data: data + b"\0"), "the tensors end at byte", FormatError),
    _case("gap", moved("core", 4, 4), "'core'", FormatError),
    _case("overlaps-the-planes", moved("core", -4, -4), "'core'", FormatError),
    _case("no-sample", entry("core", shape=[0, 117]), "'core'", FormatError),
    _case("huge", entry("core", shape=[HUGE, 117]), "'core': shape", FormatError),
    _case("dtype", entry("core", dtype="I8"), "'core': dtype 'I8'", FormatError),
    _case("narrower", reshaped("core", lambda a: a[:, 1:]), "core: shape"),
    _case("wider", reshaped("core", lambda a: a.repeat(2, 1)), "core: shape"),
    _case("flat", reshaped("core", lambda a: a.reshape(-1)), "core: shape"),
    _case("class-negative", array("core", (0, 1), 0xFF), "core.y: classes 0 to 2 are expected, not -"),
    _case("class-unknown", array("core", (0, 0), 3), "core.y: classes 0 to 2 are expected, not 0 to 3"),
    _case("flips-short", reshaped("flips", lambda a: a[1:]), r"flips: \d+ bytes are no network", base="flips"),
    _case("flips-long", reshaped("flips", lambda a: a.repeat(2)), r"flips: \d+ bytes are no network", base="flips"),
    _case("flips-empty-network", reshaped("flips", lambda a: a[:-99]), "flips: .* 1 to 256 hidden units", base="flips"),
    _case("flips-too-wide", reshaped("flips", lambda a: np.resize(a, len(a) + 33 * 254)), "no network", base="flips"),
    _case("flips-2-d", reshaped("flips", lambda a: a[None]), r"flips: shape \(1, ", base="flips"),
    _case("flips-wrong-sha", _kept("flips", "A" * 43), "flips: its SHA-256", IntegrityError, "flips"),
    _case("flips-before-core", header(lambda h: h.update(core=h.pop("core"))), "'flips'|header", FormatError, "flips"),
    _case("flips-without-classes", _alone, "flips: classes, .* not reconstruct", base="flips"),
    _case("flips-missing", drop("sections", "flips"), "the header has core, flips, the manifest core", base="flips"),
    _features("narrower", reshaped("features", lambda a: a[:, 1:]), "features: shape"),
    _features("wider", reshaped("features", lambda a: a.repeat(2, 1)), "features: shape"),
    _features("flat", reshaped("features", lambda a: a.reshape(-1)), "features: shape"),
    _features("no-sample", entry("features", shape=[0, 9]), "'features'", FormatError),
    _features("class-negative", array("features", (0, 1), 0xFF), "features.y: classes 0 to 2 are expected, not -"),
    _features("class-unknown", array("features", (0, 0), 3), "features.y: classes 0 to 2 are expected, not 0 to 3"),
    _features("wrong-sha", _kept("features", "A" * 43), "features: its SHA-256", IntegrityError),
    _features("before-core", header(lambda h: h.update(core=h.pop("core"))), "'features'|header", FormatError),
    _features("without-classes", _alone, "features: classes, .* not reconstruct"),
    _features("missing", drop("sections", "features"), "the header has core, features, the manifest core"),
    _case("without-classes", _reconstructs, "core: a model that is to reconstruct"),
]
