"""The benchmark of calibration on a small stream: rows of each phase, and their table."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import flips
from benchmarks.calibrate_stream import METHODS, run, table
from benchmarks.calibrate_streams import WIDTHS, Part, Phase, Protocol
from caq.engine import Engine
from tests.calibration.streams import core_of, drifted, source


@pytest.fixture(scope="module")
def protocol():
    model, x, y = source()
    clean, moved = Part(x, y), Part(drifted(x), y)
    phases = tuple(
        Phase(
            name, tuple(part.take(rows) for rows in np.array_split(np.arange(100), 2)), part.take(np.arange(100, 150))
        )
        for name, part in (("clean", clean), ("moved", moved))
    )
    return Protocol("usc_had", model, clean.take(np.arange(60)), clean.take(np.arange(150, 240)), (phases,))


def test_rows_and_their_means(protocol):
    core = core_of(protocol.model, protocol.train.x, protocol.train.y, 40)
    rows = []
    for name in ("none", "bn"):
        found = list(run(protocol, core, protocol.streams[0], METHODS[name]))
        assert [row["phase"] for row in found] == ["clean", "moved"]
        rows += [{"data": "usc_had", "seed": 0, "method": name, **row} for row in found]
    engine, factory = Engine(protocol.model), []
    for width in WIDTHS:
        engine.select(f"w{width}a{width}")
        factory.append(100 * float((engine.run(protocol.source_test.x).argmax(1) == protocol.source_test.y).mean()))
    assert rows[0]["source"] == rows[1]["source"] == factory
    assert rows[0]["promoted"] == 0 and rows[2]["promoted"] == 2 and rows[2]["target"] != rows[0]["target"]
    lines = table(rows)
    assert [(line["method"], line["phase"], line["streams"]) for line in lines] == [
        ("none", "people", 2),
        ("bn", "people", 2),
    ]
    assert lines[0]["target w8"] == pytest.approx((rows[0]["target"][2] + rows[1]["target"][2]) / 2, abs=0.06)


def test_what_flips_are_measured_beside_is_the_ladder_without_twins(protocol):
    core = core_of(protocol.model, protocol.train.x, protocol.train.y, 40)
    config, labelled = METHODS["sets"]
    _, phase = protocol.streams[0]
    row = flips.run(protocol, protocol.model, core, phase, config)
    (wanted,) = run(protocol, core, (phase,), (config, labelled))
    assert (row["target"], row["source"]) == (wanted["target"], wanted["source"])
    assert row["flipped"] == [0.0] * len(WIDTHS) and row["promoted"] == 0
