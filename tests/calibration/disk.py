"""Machines that fail: system calls that kill the process or return an error, a medium that forgets at power cuts."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

#: What `caq.calibration.slots` asks the system for.
CALLS = ("mkdir", "open", "close", "read", "write", "fsync", "fstat", "posix_fadvise", "rename", "unlink")


class Killed(BaseException):
    """The process is dead: no `except Exception` sees this, and no call of its clean-up has any effect."""


class Unsynced:
    """`os` that syncs nothing, for tests that kill processes and cut no power: syncing is most of their time."""

    def __getattr__(self, name: str) -> Any:
        return (lambda handle: None) if name == "fsync" else getattr(os, name)


class Failing:
    """`os`, of which call number `at` (from 0) does not go well.

    how: "before", "after": the process is killed before or after the call; "torn": a write is cut in half, and then the
    process is killed; "error": this call raises `error`, later ones work; "dead": this one and all later ones do.
    """

    def __init__(self, at: int, how: str, error: int = 5, target: Any = None) -> None:
        self.at, self.how, self.error, self.target = at, how, error, target or Unsynced()
        self.count, self.dead = 0, False
        self.handles: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.target, name)
        return self._wrap(name, found) if name in CALLS else found

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if self.dead:
                raise Killed
            if number == self.at or (number > self.at and self.how == "dead"):
                if self.how in ("error", "dead"):
                    if name == "close":  # Linux closes the file, and then says that it could not
                        self._done(name, call(*args), args)
                    raise OSError(self.error, os.strerror(self.error))
                self.dead = True
                if self.how == "torn" and name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])
                if self.how == "after":
                    self._done(name, call(*args, **kwargs), args)
                raise Killed
            return self._done(name, call(*args, **kwargs), args)

        return wrapped

    def _done(self, name: str, result: Any, args: tuple[Any, ...]) -> Any:
        if name == "open":
            self.handles.add(result)
        if name == "close":
            self.handles.discard(args[0])
        return result

    def bury(self) -> None:
        """What the system does for a dead process: closes its files, which gives its locks back."""
        while self.handles:
            self.target.close(self.handles.pop())


@dataclass
class File:
    """synced: what a power cut cannot take; now: what a reader sees; writes: (offset, bytes) that are not synced."""

    synced: bytes = b""
    now: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)


class Disk:
    """`os` on a folder in memory, without a medium's good will.

    At a power cut any part of what was not synced is lost, sector by sector and in any order: contents unless the file
    was synced, names unless the folder was. Harsher than file systems are.
    """

    SECTOR = 64

    def __init__(self) -> None:
        self.synced: dict[str, File] = {}
        self.names: dict[str, File] = {}
        self.changes: list[dict[str, File | None]] = []  # a rename is one change of two names
        self.handles: dict[int, tuple[File | None, list[int]]] = {}
        self.next = 100

    def __getattr__(self, name: str) -> Any:
        assert name not in CALLS
        return getattr(os, name)

    def mkdir(self, path: str, mode: int) -> None:
        raise FileExistsError(path)

    def open(self, path: str, flags: int, mode: int = 0, *, dir_fd: int | None = None) -> int:
        file: File | None = None
        if dir_fd is not None:
            if path not in self.names:
                if not flags & os.O_CREAT:
                    raise FileNotFoundError(path)
                self._change({path: File()})
            elif flags & os.O_EXCL:
                raise FileExistsError(path)
            file = self.names[path]
        self.next += 1
        self.handles[self.next] = (file, [0])
        return self.next

    def close(self, handle: int) -> None:
        del self.handles[handle]

    def fstat(self, handle: int) -> Any:
        file = self.handles[handle][0]
        assert file is not None
        return SimpleNamespace(st_mode=stat.S_IFREG, st_size=len(file.now))

    def posix_fadvise(self, handle: int, *_: int) -> None:
        assert handle in self.handles

    def read(self, handle: int, count: int) -> bytes:
        file, position = self.handles[handle]
        assert file is not None
        part = file.now[position[0] : position[0] + count]
        position[0] += len(part)
        return part

    def write(self, handle: int, data: bytes) -> int:
        file, position = self.handles[handle]
        assert file is not None
        for i in range(0, len(data), self.SECTOR):
            file.writes.append((position[0] + i, bytes(data[i : i + self.SECTOR])))
        file.now = _overwritten(file.now, position[0], bytes(data))
        position[0] += len(data)
        return len(data)

    def fsync(self, handle: int) -> None:
        file = self.handles[handle][0]
        if file is None:
            self.synced, self.changes = dict(self.names), []
        else:
            file.synced, file.writes = file.now, []

    def rename(self, source: str, target: str, **_: int) -> None:
        self._change({target: self.names[source], source: None})

    def unlink(self, name: str, **_: int) -> None:
        if name not in self.names:
            raise FileNotFoundError(name)
        self._change({name: None})

    def _change(self, change: dict[str, File | None]) -> None:
        self.changes.append(change)
        _apply(self.names, change)

    def cut_power(self, draw: random.Random) -> None:
        """Forgets any part of what was not synced."""
        for change in draw.sample(self.changes, draw.randint(0, len(self.changes))):
            _apply(self.synced, change)
        for file in {id(f): f for f in self.synced.values()}.values():
            for offset, data in draw.sample(file.writes, draw.randint(0, len(file.writes))):
                file.synced = _overwritten(file.synced, offset, data)
            file.now, file.writes = file.synced, []
        self.names, self.changes, self.handles = dict(self.synced), [], {}


def _apply(names: dict[str, File], change: dict[str, File | None]) -> None:
    for name, file in change.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _overwritten(content: bytes, offset: int, data: bytes) -> bytes:
    content = content.ljust(offset, b"\0")
    return content[:offset] + data + content[offset + len(data) :]
