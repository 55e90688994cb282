"""Data that several of these tests train on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caq.data import Dataset, load


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load("digits")
    return replace(
        data, x_train=data.x_train[:400], y_train=data.y_train[:400], x_test=data.x_test[:100], y_test=data.y_test[:100]
    )
