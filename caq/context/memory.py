"""How much memory this process may still take, and how hard the kernel is looking for it.

Inside a container /proc/meminfo describes the host. What binds is the tightest limit anywhere between the process's own
cgroup and the root, so every level is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

from caq.context.files import read_int, read_text
from caq.context.reading import Reading, missing, sensed

# cgroup v1 writes "no limit" as the largest multiple of the page size below 2^63.
V1_UNLIMITED = 1 << 62


class Room(NamedTuple):
    """Bytes still free under one limit."""

    available_bytes: int
    limit_bytes: int
    source: str


def cgroup_rooms(root: Path = Path("/")) -> list[Room]:
    """The room under every memory limit up the process's own cgroup chain, v2 first; empty without limits."""
    rooms = []
    for version, folder in _chain(root):
        limits = [
            limit
            for name in (("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",))
            if (limit := read_int(folder / name)) is not None and 0 <= limit < V1_UNLIMITED
        ]
        used = read_int(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
        if not limits or used is None:
            continue
        # Only the inactive part of the page cache is given back without a fight.
        cache = _statistic(folder / "memory.stat", "inactive_file" if version == 2 else "total_inactive_file")
        available = min(limits) - max(0, used - cache)
        rooms.append(Room(max(0, available), min(limits), f"cgroup v{version}"))
    return rooms


def _chain(root: Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) from the process's own cgroup up to the root of each hierarchy that may limit memory."""
    lines = (read_text(root / "proc/self/cgroup") or "").splitlines()
    entries = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    for version, number, mounts in ((2, "0", ("", "unified")), (1, None, ("memory",))):
        for hierarchy, controllers, own in entries:
            if not (hierarchy == number if version == 2 else "memory" in controllers.split(",")):
                continue
            # "/../x" means a cgroup outside this namespace: nothing above the mount can be seen from here.
            parts = [part for part in PurePosixPath(own).parts if part not in ("/", "..")]
            for mount in mounts:
                top = root / "sys/fs/cgroup" / mount
                # A path that does not exist is the host's name for the cgroup that is mounted here as the top.
                for depth in range(len(parts), -1, -1):
                    yield version, top.joinpath(*parts[:depth])


def _statistic(path: Path, key: str) -> int:
    for line in (read_text(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


def host_room(root: Path = Path("/")) -> Room | None:
    """MemAvailable of /proc/meminfo; None if it cannot be read."""
    kibibytes = {
        name: int(rest.split()[0])
        for line in (read_text(root / "proc/meminfo") or "").splitlines()
        for name, _, rest in (line.partition(":"),)
        if rest.split() and rest.split()[0].isdigit()
    }
    available, total = kibibytes.get("MemAvailable"), kibibytes.get("MemTotal")
    return Room(available * 1024, total * 1024, "proc/meminfo") if available is not None and total else None


def psutil_room() -> Room | None:
    """Where there is no /proc/meminfo."""
    try:
        memory = psutil.virtual_memory()
    except (NotImplementedError, OSError, RuntimeError):
        return None
    return Room(memory.available, memory.total, "psutil") if memory.total else None


class MemorySource:
    """Available memory in bytes, and as a share of the limit that binds. `fallback` serves where /proc does not."""

    name = "memory"
    fields = ("available_bytes", "memory_available")

    def __init__(self, root: Path = Path("/"), fallback: Callable[[], Room | None] | None = None) -> None:
        self._root = root
        self._fallback = fallback

    def read(self) -> Mapping[str, Reading]:
        host = host_room(self._root)
        if host is None and self._fallback is not None:
            host = self._fallback()
        rooms = cgroup_rooms(self._root) + ([host] if host else [])
        if not rooms:
            reason = "neither /proc/meminfo nor a cgroup says how much memory is left"
            return {name: missing(name, "proc/meminfo", reason) for name in self.fields}
        available, limit, source = min(rooms, key=lambda room: room.available_bytes)
        share = min(1.0, available / limit) if limit else 0.0
        return {
            "available_bytes": sensed("available_bytes", available, source),
            "memory_available": sensed("memory_available", share, source),
        }


class PressureSource:
    """Pressure stall information: the share of the last 10 s in which some task waited for memory."""

    name = "pressure"
    fields = ("memory_pressure",)

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Mapping[str, Reading]:
        source = "proc/pressure/memory"
        text = read_text(self._root / source)
        if text is None:
            reason = "this kernel gives no pressure stall information (needs CONFIG_PSI, and psi=1 on some systems)"
            return {"memory_pressure": missing("memory_pressure", source, reason)}
        for line in text.splitlines():
            kind, *pairs = line.split()
            average = dict(pair.partition("=")[::2] for pair in pairs).get("avg10")
            if kind == "some" and average is not None:
                try:
                    return {"memory_pressure": sensed("memory_pressure", float(average) / 100, source)}
                except ValueError:
                    break
        return {"memory_pressure": missing("memory_pressure", source, "no line 'some avg10=...' in the file")}
