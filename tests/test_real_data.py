"""Larger checks on real data, where the folder CAQ_DATA has it: data sets as .npz, traces/ as CSV."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from caq.context import RecordedContext
from caq.data import load
from caq.scaling import InputScaling

FOLDER = Path(os.environ.get("CAQ_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="CAQ_DATA names no folder of real data")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda p: p.stem)
def test_a_data_set_loads_and_its_codes_use_their_range(path: Path) -> None:
    data = load(path)
    codes = InputScaling.fit(data.x_train).encode(data.x_test[:500])
    assert codes.dtype == np.int8
    assert codes.std() > 8
    assert (np.abs(codes.astype(int)) >= 127).mean() < 0.02


@pytest.mark.parametrize("path", sorted((FOLDER / "traces").glob("*.csv")), ids=lambda p: p.stem)
def test_a_trace_replays_to_its_end(path: Path) -> None:
    trace = RecordedContext.from_csv(path)
    assert trace.duration_s > 0
    trace.seek(trace.duration_s / 2)
    for name in trace.fields:
        value = trace.read().value(name)
        assert value is None or np.isfinite(value)
