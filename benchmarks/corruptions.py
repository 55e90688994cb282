"""Corrupted images: noise, blur, less contrast and JPEG's blocks, as CIFAR-10-C has them.

    python -m benchmarks.corruptions --data cifar10.npz --out FILE --severity 3 --seed 0

Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019, whose
constants for 32 x 32 images are in SEVERITIES. Of an image x in [0, 1]:

    noise     x + N(0, c**2) in every value, drawn from the seed
    blur      a Gaussian of deviation c pixels (scipy.ndimage), each channel by itself, edges repeated
    contrast  (x - m) c + m, with m the mean of each channel
    jpeg      through Pillow's JPEG at quality c

each clipped to [0, 1] and rounded to 8 bits. FILE gets x_clean and an x_ of each name, (N, H, W, 3) uint8, y (N,) int64
and the rows (N,) int64 of the split that they are. The same arguments give the same arrays.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from caq.data import load
from caq.errors import ConfigError, DataError, nearest

Images = NDArray[np.uint8]

#: The constant c of each corruption at severity 1 to 5.
SEVERITIES: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "jpeg": (80, 65, 58, 50, 40),
}


def corrupt(x: Images, name: str, severity: int, seed: int) -> Images:
    """Images x (N, H, W, 3) uint8 with a corruption of SEVERITIES; severity 1..5. seed: of the noise.

    Raises ConfigError on another name or severity, DataError on other arrays.
    """
    if name not in SEVERITIES:
        raise ConfigError(f"no corruption {name!r}{nearest(name, SEVERITIES)}")
    if not 1 <= severity <= len(SEVERITIES[name]):
        raise ConfigError(f"severity {severity}: 1 to {len(SEVERITIES[name])} are known")
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3:
        raise DataError(f"images (N, H, W, 3) uint8 are expected, not {x.shape} {x.dtype}")
    return _CORRUPTIONS[name](x, SEVERITIES[name][severity - 1], seed)


def _noise(x: Images, c: float, seed: int) -> Images:
    return _rounded(x / 255 + np.random.default_rng(seed).normal(0, c, x.shape))


def _blur(x: Images, c: float, seed: int) -> Images:
    return _rounded(gaussian_filter(x / 255, (0, c, c, 0), mode="nearest"))


def _contrast(x: Images, c: float, seed: int) -> Images:
    mean = x.mean((1, 2), keepdims=True) / 255
    return _rounded((x / 255 - mean) * c + mean)


def _jpeg(x: Images, c: float, seed: int) -> Images:
    found = np.empty_like(x)
    for image, out in zip(x, found, strict=True):
        with io.BytesIO() as memory:
            Image.fromarray(image).save(memory, "JPEG", quality=int(c))
            out[:] = np.asarray(Image.open(memory))
    return found


_CORRUPTIONS: dict[str, Callable[[Images, float, int], Images]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
}


def _rounded(x: NDArray[np.float64]) -> Images:
    return np.floor(np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def write(data: Path, out: Path, split: str, rows: NDArray[np.int64] | None, severity: int, seed: int) -> None:
    """Writes FILE: see the module. data: any `.npz` of images; split: "train" or "test"; rows: None for all of them."""
    dataset = load(data)
    x, y = (dataset.x_train, dataset.y_train) if split == "train" else (dataset.x_test, dataset.y_test)
    rows = np.arange(len(y)) if rows is None else rows
    x, arrays = x[rows], {"y": y[rows], "rows": rows}
    corrupted = {f"x_{name}": corrupt(x, name, severity, seed) for name in SEVERITIES}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, x_clean=x, **corrupted, **arrays)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=".npz of images, as caq train takes it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--severity", type=int, default=3, help="1 to 5")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    args = parser.parse_args()
    write(args.data, args.out, args.split, None, args.severity, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
