"""Two slots in a folder: which state a start finds, whatever happened to the files before."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from caq.calibration import slots
from caq.calibration.slots import MAX_TRIALS, Slot, StateFolder, decode
from caq.calibration.state import MAX_STATE_BYTES, State, to_bytes
from caq.errors import (
    ConfigError,
    DataError,
    StateError,
    StateFormatError,
    StateLockedError,
    StateMismatchError,
    StateWriteError,
)
from tests.calibration.disk import Killed

A = "a" * 64


def arrays(number: int) -> dict[str, np.ndarray]:
    """What is saved as state `number`."""
    return {"core/x": np.arange(number, number + 8, dtype=np.int16), "drift/mean": np.full(3, number / 2)}


def open_folder(path: Path, healthy: bool = True) -> StateFolder:
    return StateFolder(path, A, lambda state: healthy)


def number_of(folder: StateFolder) -> int:
    """The number of the state that was found, 0 for the factory's; every value is checked."""
    if folder.state is None:
        assert folder.generation == 0
        return 0
    number = int(folder.state.arrays["core/x"][0])
    for name, array in arrays(number).items():
        np.testing.assert_array_equal(folder.state.arrays[name], array)
    assert folder.state.notes == {"number": number}
    return number


def save(folder: StateFolder, number: int, good: bool = True) -> None:
    folder.save(arrays(number), {"number": number})
    if good:
        folder.mark_good()


def start(path: Path, healthy: bool = True) -> int:
    with open_folder(path, healthy) as folder:
        return number_of(folder)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calibration"


def test_a_new_folder_has_the_factory_state_and_then_the_newest_good_one(path):
    with open_folder(path) as folder:
        assert number_of(folder) == 0 and not folder.on_trial and folder.problems == []
        for number in range(1, 6):
            save(folder, number)
    assert sorted(os.listdir(path)) == ["a", "b", "lock"]
    with open_folder(path) as folder:
        assert number_of(folder) == 5 and folder.generation == 5 and folder.problems == []
    assert path.stat().st_mode & 0o777 == 0o700 and (path / "a").stat().st_mode & 0o777 == 0o600


def test_a_trial_never_takes_the_place_of_the_newest_good_state(path):
    with open_folder(path) as folder:
        save(folder, 1)
        for number in range(2, 6):
            save(folder, number, good=False)
            assert folder.on_trial
        folder.reject()
        assert not folder.on_trial
    assert start(path) == 1


def test_an_unmarked_state_is_checked_at_the_next_start(path):
    with open_folder(path) as folder:
        save(folder, 1)
        save(folder, 2, good=False)
    with open_folder(path, healthy=False) as folder:
        assert number_of(folder) == 1
        assert folder.problems == ["generation 2 in slot b is passed over: it failed the health check"]
    assert start(path) == 1
    with open_folder(path) as folder:
        save(folder, 3, good=False)
    assert start(path) == 3
    assert start(path, healthy=False) == 3  # it was marked good


def test_a_health_check_that_refuses_the_state_by_an_error_of_caq_is_a_no(path):
    def healthy(state: State) -> bool:
        raise DataError("no such width")

    with open_folder(path) as folder:
        save(folder, 1, good=False)
    with StateFolder(path, A, healthy) as folder:
        assert number_of(folder) == 0 and "no such width" in folder.problems[0]


def test_a_state_that_kills_the_check_gets_a_few_starts_only(path):
    def healthy(state: State) -> bool:
        raise Killed

    with open_folder(path) as folder:
        save(folder, 1)
        save(folder, 2, good=False)
    for _ in range(MAX_TRIALS - 1):
        with pytest.raises(Killed):
            StateFolder(path, A, healthy)
    with StateFolder(path, A, healthy) as folder:
        assert number_of(folder) == 1
        assert folder.problems == [
            "generation 2 in slot b is passed over: 3 starts with it did not live to mark it good"
        ]


def test_reset_leads_back_to_the_factory(path):
    with open_folder(path) as folder:
        save(folder, 1)
        save(folder, 2)
        folder.reset()
    assert start(path) == 0


def test_one_process_at_a_time(path, monkeypatch):
    with open_folder(path), pytest.raises(StateLockedError, match="another process"):
        open_folder(path)
    with open_folder(path) as folder:
        save(folder, 1)
        child = os.fork()
        if child == 0:
            try:
                folder.save(arrays(2), {})
            except StateLockedError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        with monkeypatch.context() as m, pytest.raises(StateLockedError, match="a fork"):
            m.setattr(folder, "_process", 1)
            folder.reset()
    assert start(path) == 1


def test_calls_out_of_turn_are_typed_errors(path):
    with open_folder(path) as folder:
        for call in (folder.mark_good, folder.reject):
            with pytest.raises(StateError, match="no state is on trial"):
                call()
        with pytest.raises(StateFormatError, match="bool"):
            folder.save({"core/x": np.zeros(2, bool)}, {})
        save(folder, 1, good=False)
    for call in (lambda: save(folder, 2), folder.mark_good, folder.reject, folder.reset):
        with pytest.raises(StateError, match="was closed"):
            call()
    for size in (0, MAX_STATE_BYTES + 1):
        with pytest.raises(ConfigError, match="max_bytes"):
            StateFolder(path, A, lambda s: True, max_bytes=size)


def test_budgets_of_bytes_hold_when_writing_and_when_reading(path):
    with open_folder(path) as folder:
        save(folder, 1)
        size = (path / "a").stat().st_size
    small = size - slots._HEADER.size - 1
    with StateFolder(path, A, lambda s: True, max_bytes=small) as folder:
        assert number_of(folder) == 0 and "slot a is passed over" in folder.problems[0]
        with pytest.raises(StateError, match=f"{small} are allowed"):
            save(folder, 1)
    assert start(path) == 1


@pytest.mark.parametrize("which", ["a", "b"])
def test_a_state_of_another_artifact_or_of_another_version_is_refused_and_left_alone(path, which):
    with open_folder(path) as folder:
        save(folder, 1)
        save(folder, 2)
    other = Slot(9, 0).encode(to_bytes(State("b" * 64)))

    def of_version(version: int) -> bytes:
        found = bytearray(other)
        found[8] = version
        found[12:16] = slots._crc(version, 0, 9, other[32:]).to_bytes(4, "little")
        return bytes(found)

    cases = [
        (other, "learnt on artifact bbbbbbbbbbbb"),
        (of_version(slots.VERSION + 1), f"version 3; this caq reads {slots.VERSION}: update caq"),
        (of_version(slots.VERSION - 1), f"version 1; this caq reads {slots.VERSION}: remove the folder"),
    ]
    for data, match in cases:
        (path / which).write_bytes(data)
        for _ in range(2):  # the lock is given back
            with pytest.raises(StateMismatchError, match=match) as caught:
                open_folder(path)
            assert f"/{which}: " in str(caught.value)
        assert (path / which).read_bytes() == data


def test_every_flipped_bit_and_every_truncation_of_a_slot_falls_back_to_the_older_one(path):
    with open_folder(path) as folder:
        save(folder, 1)
        save(folder, 2)
    good = (path / "b").read_bytes()
    flips = [good[: i // 8] + bytes([good[i // 8] ^ 1 << i % 8]) + good[i // 8 + 1 :] for i in range(8 * len(good))]
    for data in [*flips, *(good[:n] for n in range(len(good))), good + b"\0", good * 2]:
        with pytest.raises(StateFormatError):
            decode(data)
    (path / "b").unlink()
    for data in [*flips[::97], *(good[:n] for n in range(0, len(good), 13))]:
        (path / "b").write_bytes(data)
        with open_folder(path) as folder:
            assert number_of(folder) == 1 and "slot b is passed over" in folder.problems[0]
    for name in ("a", "b"):
        (path / name).write_bytes(flips[0])
    with open_folder(path) as folder:
        assert number_of(folder) == 0 and len(folder.problems) == 2
        save(folder, 3)
    assert start(path) == 3


def test_a_slot_with_a_right_checksum_and_a_wrong_content_is_passed_over(path):
    with open_folder(path) as folder:
        save(folder, 1)
    payload = to_bytes(State(A))
    for data in (Slot(7, 0).encode(b"rubbish"), Slot(0, 0).encode(payload), Slot(2**63, 0).encode(payload)):
        (path / "b").write_bytes(data)
        with open_folder(path) as folder:
            assert number_of(folder) == 1 and "slot b" in folder.problems[0]


def test_things_that_are_no_slots_are_neither_followed_nor_waited_for(path, tmp_path):
    with open_folder(path) as folder:
        save(folder, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(Slot(9, 0).encode(to_bytes(State(A))))
    (path / "b").symlink_to(elsewhere)
    assert start(path) == 1
    (path / "b").unlink()
    os.mkfifo(path / "b")
    (path / "b.new").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with open_folder(path) as folder:
        assert number_of(folder) == 1 and "regular file" in folder.problems[0]
        save(folder, 2)
    assert start(path) == 2 and elsewhere.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_folder(tmp_path / "none" / "calibration")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        open_folder(tmp_path / "file")


def test_a_state_that_cannot_be_marked_good_is_dropped(path, monkeypatch):
    with open_folder(path) as folder:
        save(folder, 1)
        save(folder, 2, good=False)
        (path / "b").write_bytes(b"overwritten by a stranger")
        with pytest.raises(StateWriteError, match="b: not marked good: 25 bytes are no slot"):
            folder.mark_good()
        assert not folder.on_trial and sorted(os.listdir(path)) == ["a", "lock"]
        save(folder, 3)
    assert start(path) == 3


def test_a_slot_that_cannot_be_removed_is_a_typed_error(path):
    with open_folder(path) as folder:
        save(folder, 1)
        save(folder, 2, good=False)
        (path / "b").unlink()
        (path / "b").mkdir()
        for call in (folder.reject, folder.reset):
            with pytest.raises(StateWriteError, match="b: cannot be removed"):
                call()
        (path / "b").rmdir()
        save(folder, 3, good=False)
        (path / "b").unlink()
        folder.reject()  # what is gone need not be removed


def test_reset_removes_what_was_passed_over_too(path):
    with open_folder(path) as folder:
        save(folder, 1)
    (path / "b").write_bytes(b"damaged")
    with open_folder(path) as folder:
        folder.reset()
    assert os.listdir(path) == ["lock"]


def test_a_medium_that_returns_other_bytes_than_it_was_given_is_an_error(path, monkeypatch):
    with open_folder(path) as folder:
        save(folder, 1)
        read = folder._read
        monkeypatch.setattr(folder, "_read", lambda name: read(name)[:-1] + b"?")
        with pytest.raises(StateWriteError, match="reads back differently"):
            save(folder, 2)
    assert start(path) == 1


def test_a_start_that_cannot_count_itself_passes_over_what_is_on_trial_and_keeps_it(path, monkeypatch):
    with open_folder(path) as folder:
        save(folder, 1)
        save(folder, 2, good=False)
    write = StateFolder._write

    def refused(self: StateFolder, name: str, *rest: object) -> None:
        raise StateWriteError("no space")

    monkeypatch.setattr(StateFolder, "_write", refused)
    with open_folder(path) as folder:
        assert number_of(folder) == 1 and not folder.on_trial
        assert folder.problems == ["generation 2 in slot b is passed over: no space"]
    monkeypatch.setattr(StateFolder, "_write", write)
    assert start(path) == 2
