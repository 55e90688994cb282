"""Calibration runs on a device: it imports no extra, and little of numpy."""

from __future__ import annotations

import pkgutil

import numpy as np

import caq
import caq.calibration
from caq.calibration.state import State, owned, to_bytes
from tests import models
from tests.calibration.streams import core_of, drifted, source
from tests.test_imports import EXTRAS, modules_after


def test_no_module_of_calibration_imports_an_extra():
    names = [f"caq.calibration.{module.name}" for module in pkgutil.iter_modules(caq.calibration.__path__)]
    assert len(names) >= 7
    found = modules_after(f"import {', '.join(names)}")
    assert set(names) <= found and not found & set(EXTRAS)


def test_steps_import_no_masked_arrays(tmp_path):
    """A MiB, which np.unique imports, and what is made of it."""
    model, x, y = source()
    caq.save(model, tmp_path / "x.caq")
    core = owned("core", core_of(model, x, y).to_arrays())
    (tmp_path / "core").write_bytes(to_bytes(State("0" * 64, core)))
    np.save(tmp_path / "x.npy", drifted(models.samples(model, 120, seed=1)))
    np.save(tmp_path / "y.npy", np.arange(120) % model.graph.layers[-1].channels)
    found = modules_after(
        f"""
from pathlib import Path
import numpy as np
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import CalibratorConfig
from caq.calibration.core import CoreSet
from caq.calibration.state import from_bytes
here = Path({str(tmp_path)!r})
core = CoreSet.from_arrays(from_bytes((here / "core").read_bytes()).part("core"))
x, y = np.load(here / "x.npy"), np.load(here / "y.npy")
for guarded in (True, False):
    config = CalibratorConfig(guarded=guarded, waiting=20)
    with Calibrator(here / "x.caq", core, here / f"state{{guarded}}", config) as calibrator:
        for i in range(0, 120, 30):
            calibrator.partial_fit(x[i : i + 30], y[i : i + 30])
        for i in range(0, 120, 30):
            first = calibrator.next_id
            calibrator.partial_fit(x[i : i + 30])
            for late in range(first - 30, first + 30, 7):
                calibrator.label(late, int(y[late % 120]))
        calibrator.partial_fit(x[:30], y[:30])
assert calibrator.gates and calibrator.too_late
"""
    )
    assert "caq.native_conditional" in found and not {"numpy.ma", *EXTRAS} & found
