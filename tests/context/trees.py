"""Fake /proc and /sys trees."""

from __future__ import annotations

from pathlib import Path


def plant(root: Path, files: dict[str, str | int]) -> Path:
    """Writes `files`, paths relative to `root`, and returns `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def supply(name: str, **files: str | int) -> dict[str, str | int]:
    """The files of one power supply."""
    return {f"sys/class/power_supply/{name}/{key}": value for key, value in files.items()}
