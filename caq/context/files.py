"""Reading the small text files of /proc and /sys."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The stripped text, or None if the file is not there or cannot be read now."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The integer in the file, or None if there is none: drivers also answer with empty files and words."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def children(folder: Path, pattern: str = "*") -> list[Path]:
    """The entries of a folder in an order that does not change between calls; empty if there is no such folder."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
