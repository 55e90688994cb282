"""Which nested code: squared error of weights at every width, for four ways to make narrow codes of 8-bit ones.

    python -m benchmarks.nested_codes

Errors are relative to independent rounding to nearest at each width, on the same grid (range +-3 standard deviations,
one million Gaussian weights, seed 0). A code is nested if a narrow one is the top bits of a wide one, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def codes8(w: Values, scale: float, rounding: float) -> Values:
    """8-bit codes: floor(w / scale + rounding)."""
    return np.clip(np.floor(w / scale + rounding), -128, 127)


def plain_shift(w: Values, scale: float, width: int) -> Values:
    """Top bits of the rounded code, without a midpoint."""
    size = 2.0 ** (8 - width)
    return np.floor(codes8(w, scale, 0.5) / size) * size * scale


def centered_floor(w: Values, scale: float, width: int) -> Values:
    """Top bits of the floored code, at the middle of their interval, at width 8 too."""
    size = 2.0 ** (8 - width)
    return (np.floor(codes8(w, scale, 0.0) / size) + 0.5) * size * scale


def centered_round(w: Values, scale: float, width: int) -> Values:
    """caq's: top bits of the rounded code, at the middle of their interval; at width 8 the code itself."""
    size = 2.0 ** (8 - width)
    q = codes8(w, scale, 0.5)
    return q * scale if width == 8 else (np.floor(q / size) + 0.5) * size * scale


def double_rounding(w: Values, scale: float, width: int) -> Values:
    """The rounded code rounded again: needs the lower bits, for the carry."""
    size = 2.0 ** (8 - width)
    half = 2.0 ** (width - 1)
    return np.clip(np.floor(codes8(w, scale, 0.5) / size + 0.5), -half, half - 1) * size * scale


def to_nearest(w: Values, scale: float, width: int) -> Values:
    """Independent rounding at each width, to a grid of the same range: not nested."""
    size = 2.0 ** (8 - width)
    half = 2.0 ** (width - 1)
    return np.clip(np.floor(w / scale / size + 0.5), -half, half - 1) * size * scale


def main() -> None:
    w = np.random.default_rng(0).normal(size=1_000_000)
    scale = 3 / 128
    ways = (plain_shift, centered_floor, centered_round, double_rounding)
    rows = {}
    for width in range(2, 9):
        base = float(np.mean((to_nearest(w, scale, width) - w) ** 2))
        rows[width] = {way.__name__: round(float(np.mean((way(w, scale, width) - w) ** 2)) / base, 3) for way in ways}
    print("| width | " + " | ".join(way.__name__ for way in ways) + " |")
    print("|---|" + "---|" * len(ways))
    for width, row in rows.items():
        print(f"| {width} | " + " | ".join(f"{v:.3f}" for v in row.values()) + " |")
    path = Path(__file__).parent / "results" / "nested_codes.json"
    result = {"command": "python -m benchmarks.nested_codes", "relative_error": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
