"""Calibration state that survives a crash or a power cut at any moment: two slots in a folder, one always sound.

A slot is a file of 32 bytes, little-endian, and a payload (`caq.calibration.state`):

    "caqstate"   u16 version   u16 trials   u32 CRC-32   u64 generation   u64 length   payload

The CRC-32 is of all other bytes. generation: counts saves, from 1. trials: 0 once the state is marked good; before, how
many runs began with it, the one that saved it included.

Saving writes another file, fsyncs it, renames it over the slot that is *not* the newest good one, fsyncs the folder,
and reads the slot back. So at every moment the newest good state is on the medium, whole. A new state is on trial:
whoever saved it checks the device's health and calls `mark_good`, or `reject`. Where neither happened, because the
process died, the next start checks, and after MAX_TRIALS starts that did not live to tell, the state is dropped.
Marking writes the slot anew in the same way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from caq.calibration.state import MAX_STATE_BYTES, Arrays, Notes, State, check_artifact, from_bytes, to_bytes
from caq.errors import (
    CaqError,
    ConfigError,
    StateError,
    StateFormatError,
    StateLockedError,
    StateMismatchError,
    StateWriteError,
)

if TYPE_CHECKING:
    from os import PathLike

SLOTS = ("a", "b")
VERSION = 2
#: Starts that a state on trial gets: one is lost to a power cut, two to bad luck, and after three it is the state.
MAX_TRIALS = 3
_MAGIC = b"caqstate"
_HEADER = struct.Struct("<8sHHIQQ")
_LOCK = "lock"


class Slot(NamedTuple):
    """What a slot says of its state; trials is 0 for a good one."""

    generation: int
    trials: int

    def encode(self, payload: bytes) -> bytes:
        """The bytes of a slot."""
        crc = _crc(VERSION, self.trials, self.generation, payload)
        return _HEADER.pack(_MAGIC, VERSION, self.trials, crc, self.generation, len(payload)) + payload


def decode(data: bytes) -> tuple[Slot, bytes]:
    """A slot and its payload. Raises StateFormatError on damage, StateMismatchError on another version."""
    if len(data) < _HEADER.size:
        raise StateFormatError(f"{len(data)} bytes are no slot")
    magic, version, trials, crc, generation, length = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if magic != _MAGIC or length != len(payload):
        raise StateFormatError(f"not a slot, or cut short: {len(payload)} bytes of payload, not {length}")
    if crc != _crc(version, trials, generation, payload):
        raise StateFormatError("damaged: its CRC-32 does not match")
    if version != VERSION:
        do = "update caq" if version > VERSION else "remove the folder to begin at the factory's parameters again"
        raise StateMismatchError(f"a state of version {version}; this caq reads {VERSION}: {do}")
    if not 0 < generation < 2**63:
        raise StateFormatError(f"no save has number {generation}")
    return Slot(generation, trials), payload


def _crc(version: int, trials: int, generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_HEADER.pack(_MAGIC, version, trials, 0, generation, len(payload))))


def _illness(state: State, healthy: Callable[[State], bool]) -> str:
    try:
        return "" if healthy(state) else "it failed the health check"
    except CaqError as e:
        return f"it failed the health check: {e}"


class StateFolder:
    """The durable state of one artifact's calibration; opening it is what a device does at its start.

        with StateFolder("calibration", artifact_checksum("x.caq"), healthy) as folder:
            calibrator = Calibrator(..., folder.state)      # None: the factory calibration
            folder.save(calibrator.arrays(), {"reason": "drift"})
            folder.mark_good() if calibrator.accuracy() >= floor else folder.reject()

    path: a folder, made if it is not there, beside which nothing else is written; its parent must exist. artifact: see
    `artifact_checksum`. healthy: says whether a state that is still on trial works here; a CaqError that it raises
    means no. max_bytes: of a state.

    state: the newest state that is good, or that `healthy` accepted; None if there is none. generation: its number, 0
    for none. problems: why newer states were passed over, a sentence each, to be logged.

    Raises StateLockedError if the folder is in use, StateMismatchError on the state of another artifact or of a newer
    caq, which is left alone; OSErrors of the folder and its lock pass through. For one thread at a time, and not in
    children that were forked off.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        artifact: str,
        healthy: Callable[[State], bool],
        *,
        max_bytes: int = MAX_STATE_BYTES,
    ) -> None:
        self.path, self._artifact, self._max_bytes = os.fspath(path), artifact, max_bytes
        if not 0 < max_bytes <= MAX_STATE_BYTES:
            raise ConfigError(f"max_bytes: 1 to {MAX_STATE_BYTES} are possible, not {max_bytes}")
        self.state: State | None = None
        self.generation = 0
        self.problems: list[str] = []
        self._slots: dict[str, Slot] = {}
        self._process = os.getpid()
        self._handles: list[int] = []
        try:
            self._open()
            self._boot(healthy)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> StateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others use the folder. What is on trial stays on trial."""
        while self._handles:
            with suppress(OSError):  # nothing was written through them
                os.close(self._handles.pop())

    @property
    def on_trial(self) -> bool:
        """Whether a saved state waits for `mark_good` or `reject`."""
        return self._trial() is not None

    def save(self, arrays: Arrays, notes: Notes) -> int:
        """Writes a state beside the newest good one, on trial, and returns its generation.

        A state that was on trial is replaced. Raises StateFormatError on what cannot be kept, StateError on a state of
        more than `max_bytes`, StateWriteError if the medium refuses: then the update is off.
        """
        self._check_open()
        payload = to_bytes(State(self._artifact, arrays, notes))
        if len(payload) > self._max_bytes:
            raise StateError(f"{self.path}: a state of {len(payload)} bytes, where {self._max_bytes} are allowed")
        good = {slot.generation: name for name, slot in self._slots.items() if not slot.trials}
        newest = good[max(good)] if good else None
        target = self._trial() or next(name for name in SLOTS if name != newest)
        slot = Slot(1 + max((s.generation for s in self._slots.values()), default=0), 1)
        self._write(target, slot, payload)
        return slot.generation

    def mark_good(self) -> None:
        """Ends the trial: from now on this state is what a start finds. Raises StateError if none is on trial.

        Raises StateWriteError if the medium refuses: then the update is off, and nothing is on trial any more.
        """
        name, slot = self._on_trial()
        try:
            self._write(name, slot._replace(trials=0), decode(self._read(name))[1])
        except (OSError, StateFormatError, StateWriteError) as e:
            with suppress(StateWriteError):  # then the next start checks it
                self._remove(name)
            raise StateWriteError(f"{self.path}/{name}: not marked good: {e}") from e

    def reject(self) -> None:
        """Ends the trial and removes its state. Raises StateError if none is on trial, StateWriteError."""
        name, _ = self._on_trial()
        self._remove(name)

    def reset(self) -> None:
        """Removes all states: the next start finds the factory calibration. Raises StateWriteError."""
        self._check_open()
        age = {name: slot.generation for name, slot in self._slots.items()}
        for name in sorted(SLOTS, key=lambda n: age.get(n, 0)):  # the older one first: it must not be found alone
            self._remove(name)

    def _open(self) -> None:
        with suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        parent = os.open(os.path.join(self.path, os.pardir), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(parent)  # the folder's own entry must not be lost with its first state
        finally:
            os.close(parent)
        self._handles.append(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handles.append(os.open(_LOCK, flags, 0o600, dir_fd=self._handles[0]))
        try:
            fcntl.flock(self._handles[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateLockedError(f"{self.path}: another process, or another object, has this folder") from None

    def _boot(self, healthy: Callable[[State], bool]) -> None:
        found: dict[str, tuple[State, bytes]] = {}
        for name in SLOTS:
            try:
                slot, payload = decode(self._read(name))
                state = from_bytes(payload)
                check_artifact(state, self._artifact)
            except FileNotFoundError:
                continue
            except StateMismatchError as e:
                raise StateMismatchError(f"{self.path}/{name}: {e}") from None
            except (OSError, StateFormatError) as e:
                self.problems.append(f"slot {name} is passed over: {e}")
                continue
            self._slots[name], found[name] = slot, (state, payload)
        for name in sorted(found, key=lambda n: self._slots[n].generation, reverse=True):
            slot, (state, payload) = self._slots[name], found[name]
            reason = self._refusal(name, state, payload, healthy) if slot.trials else ""
            if not reason:
                self.state, self.generation = state, slot.generation
                return
            self.problems.append(f"generation {slot.generation} in slot {name} is passed over: {reason}")
            self._slots.pop(name, None)

    def _refusal(self, name: str, state: State, payload: bytes, healthy: Callable[[State], bool]) -> str:
        """Counts a start of a state on trial, checks its health, marks it good. Returns why it is not, or nothing."""
        slot = self._slots[name]
        if slot.trials >= MAX_TRIALS:
            reason = f"{slot.trials} starts with it did not live to mark it good"
        else:
            try:
                self._write(name, slot._replace(trials=slot.trials + 1), payload)
                reason = _illness(state, healthy)
                if not reason:
                    self._write(name, slot._replace(trials=0), payload)
                    return ""
            except StateWriteError as e:
                return str(e)
        with suppress(StateWriteError):  # then it is met, and passed over, again
            self._remove(name)
        return reason

    def _trial(self) -> str | None:
        """The slot that is on trial."""
        return next((name for name, slot in self._slots.items() if slot.trials), None)

    def _on_trial(self) -> tuple[str, Slot]:
        self._check_open()
        name = self._trial()
        if name is None:
            raise StateError(f"{self.path}: no state is on trial; save one first")
        return name, self._slots[name]

    def _check_open(self) -> None:
        if not self._handles:
            raise StateError(f"{self.path}: this folder was closed")
        if os.getpid() != self._process:
            raise StateLockedError(f"{self.path}: it belongs to process {self._process}, of which this is a fork")

    def _read(self, name: str) -> bytes:
        """The bytes of a slot, from the medium. Raises OSError, StateFormatError."""
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._handles[0])
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size > self._max_bytes + _HEADER.size:
                raise StateFormatError(f"{status.st_size} bytes, or not a regular file")
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)  # not from the cache of what was just written
            parts = []
            while part := os.read(handle, status.st_size + 1):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(handle)

    def _write(self, name: str, slot: Slot, payload: bytes) -> None:
        """Replaces a slot; then it is on the medium. Raises StateWriteError: the slot is as it was, or gone."""
        folder, temporary, data = self._handles[0], f"{name}.new", slot.encode(payload)
        ours = temporary
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(temporary, flags, 0o600, dir_fd=folder)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
            finally:
                os.close(handle)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            ours = name
            self._slots.pop(name, None)
            os.fsync(folder)
            if self._read(name) != data:
                raise OSError(errno.EIO, "it reads back differently")
        except (OSError, StateFormatError) as e:
            with suppress(OSError):
                os.unlink(ours, dir_fd=folder)
            raise StateWriteError(f"{self.path}/{name}: generation {slot.generation} is not written: {e}") from e
        self._slots[name] = slot

    def _remove(self, name: str) -> None:
        """Removes a slot, if it is there. Raises StateWriteError."""
        self._slots.pop(name, None)
        try:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._handles[0])
            os.fsync(self._handles[0])
        except OSError as e:
            raise StateWriteError(f"{self.path}/{name}: cannot be removed: {e}") from e
