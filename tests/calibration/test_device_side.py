"""Calibration runs on a device: none of its modules imports an extra."""

from __future__ import annotations

import pkgutil

import caq.calibration
from tests.test_imports import EXTRAS, modules_after


def test_no_module_of_calibration_imports_an_extra():
    names = [f"caq.calibration.{module.name}" for module in pkgutil.iter_modules(caq.calibration.__path__)]
    assert len(names) >= 7
    found = modules_after(f"import {', '.join(names)}")
    assert set(names) <= found and not found & set(EXTRAS)
