"""Corruptions are those of CIFAR-10-C by their formulas, seeded, and worse with severity."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("PIL")

from benchmarks.corruptions import SEVERITIES, corrupt, main
from caq.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = rng.integers(40, 216, (6, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    return (smooth + rng.integers(-20, 20, smooth.shape)).astype(np.uint8)


@pytest.mark.parametrize("name", SEVERITIES)
def test_each_is_repeatable_and_grows_with_severity(images, name):
    changes = []
    for severity in range(1, 6):
        found = corrupt(images, name, severity, seed=1)
        assert found.dtype == np.uint8 and found.shape == images.shape
        np.testing.assert_array_equal(found, corrupt(images, name, severity, seed=1))
        changes.append(float(np.square(found.astype(float) - images).mean()))
    assert changes[0] > 0 and changes == sorted(changes)


def test_the_formulas(images):
    c = SEVERITIES["contrast"][2]
    mean = images.mean((1, 2), keepdims=True)
    expected = np.clip((images - mean) * c + mean, 0, 255)
    assert np.abs(corrupt(images, "contrast", 3, 0) - expected).max() <= 0.5 + 1e-9
    grey = np.full((4, 32, 32, 3), 128, np.uint8)
    noise = corrupt(grey, "noise", 3, 5) / 255 - 128 / 255
    assert noise.std() == pytest.approx(SEVERITIES["noise"][2], rel=0.03) and abs(noise.mean()) < 0.003
    assert (corrupt(grey, "noise", 3, 5) != corrupt(grey, "noise", 3, 6)).any()
    dot = np.zeros((1, 9, 9, 3), np.uint8)
    dot[0, 4, 4, 1] = 255
    blurred = corrupt(dot, "blur", 5, 0)[0]
    assert blurred[4, 4, 1] == pytest.approx(255 / (2 * np.pi), abs=3) and not blurred[..., [0, 2]].any()


def test_what_is_refused(images):
    with pytest.raises(ConfigError, match="did you mean 'noise'"):
        corrupt(images, "noize", 3, 0)
    with pytest.raises(ConfigError, match="severity 6"):
        corrupt(images, "blur", 6, 0)
    with pytest.raises(DataError, match="uint8"):
        corrupt(images.astype(np.float32), "blur", 1, 0)


def test_the_command(images, tmp_path, monkeypatch):
    y = np.arange(len(images))
    np.savez(tmp_path / "data.npz", x_train=images, y_train=y, x_test=images[::-1], y_test=y[::-1])
    command = ["corruptions", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out.npz"), "--seed", "4"]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    with np.load(tmp_path / "out.npz") as z:
        assert set(z.files) == {"x_clean", "y", "rows", *(f"x_{name}" for name in SEVERITIES)}
        np.testing.assert_array_equal(z["x_clean"], images[::-1])
        np.testing.assert_array_equal(z["x_noise"], corrupt(images[::-1], "noise", 3, 4))
        np.testing.assert_array_equal(z["y"], y[::-1])
