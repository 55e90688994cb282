"""caq pack: fewer bytes and back, and every command reads what it writes."""

from __future__ import annotations

import pytest

import caq

pytestmark = pytest.mark.usefixtures("files")


def test_there_and_back(call, files, tmp_path):
    packed, back = tmp_path / "packed.caq", tmp_path / "back.caq"
    done = call("pack", files.artifact, "--out", packed, "--json")
    assert done.code == 0 and done.json["bytes"] == packed.stat().st_size and done.json["packed"]
    info = call("info", packed, "--json").json
    assert info["sizes"]["packed_bytes"] == packed.stat().st_size
    assert info["sizes"]["file_bytes"] == files.artifact.stat().st_size
    assert "as it is packed" in call("info", packed).out
    assert call("info", files.artifact, "--json").json["sizes"]["packed_bytes"] is None
    plain, small = (call("eval", path, "--data", files.data, "--json").json for path in (files.artifact, packed))
    assert plain["points"] == small["points"]
    assert call("pack", packed, "--undo", "--out", back).code == 0
    assert back.read_bytes() == files.artifact.read_bytes()
    assert call("pack", back).code == 0 and back.read_bytes() == packed.read_bytes()


def test_bad_input_leaves_the_file_as_it_was(call, files, tmp_path):
    x = tmp_path / "x.caq"
    x.write_bytes(b"caqpack1")
    failed = call("pack", x)
    assert failed.code == 1 and "x.caq: a packed file of fewer bytes than its own header" in failed.err
    assert x.read_bytes() == b"caqpack1"
    failed = call("pack", files.artifact, "--out", tmp_path / "none" / "y.caq")
    assert failed.code == 1 and "no file can be written there" in failed.err
    assert caq.load(files.artifact).points
