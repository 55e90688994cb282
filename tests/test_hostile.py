"""Every hostile file is refused with the error of its kind, and the message names what is wrong."""

from __future__ import annotations

import time

import pytest

from caq.artifact import Reader, load
from caq.errors import ArtifactError, FormatError, IntegrityError, SchemaError, VersionError
from tests.hostile import make
from tests.hostile.cases import CASES
from tests.hostile.edits import Case


@pytest.mark.parametrize("name", ["uint8", "float32", "reconstruct", "conditional", "core", "flips", "features"])
def test_the_sound_files_load_and_survive_being_taken_apart(name, tmp_path):
    path = tmp_path / "sound.caq"
    path.write_bytes(make.base(name))
    load(path)
    assert make.take_apart(make.base(name)).build() == make.base(name)


def test_the_corpus_covers_every_error_under_names_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES) >= 400
    assert {case.error for case in CASES} == {FormatError, IntegrityError, SchemaError, VersionError}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile(case: Case, mapped: bool, tmp_path):
    path = tmp_path / f"{case.name}.caq"
    path.write_bytes(case.build())
    started = time.process_time()
    with pytest.raises(ArtifactError, match=case.match) as caught, Reader(path) as reader:
        reader.model(mapped=mapped)
    assert caught.type is case.error, str(caught.value)
    assert time.process_time() - started < 1
    # The message names the file, and stays short enough to read whatever the file holds.
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < len(str(path)) + 700


def test_the_corpus_can_be_written(tmp_path):
    make.main(tmp_path / "corpus")
    assert len(list((tmp_path / "corpus").iterdir())) == len(CASES)
