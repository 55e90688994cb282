"""What all commands share: exit codes, JSON, errors, and what is not imported."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from caq.cli import doctor
from caq.cli.output import Output, number

FRESH = itertools.count()
READING = [
    ("info", "{artifact}"),
    ("eval", "{artifact}", "--data", "{data}"),
    ("run", "{artifact}", "--data", "{data}", "--samples", "2"),
    ("run", "{artifact}", "--data", "{data}", "--trace", "{trace}"),
    ("profile", "{artifact}", "--seconds", "0.01"),
    ("doctor",),
    ("record", "--out", "{fresh}", "--period", "0.05", "--duration", "0.1"),
]


def filled(command, files):
    fresh = files.folder / f"{next(FRESH)}.csv"
    return [part.format(fresh=fresh, **vars(files)) for part in command]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_text_and_json(command, files, call):
    text = call(*filled(command, files))
    assert (text.code, text.err) == (0, "") and len(text.out.splitlines()) > 2
    assert isinstance(call(*filled(command, files), "--json").json, dict)


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_no_command_that_a_device_needs_imports_an_extra(command, files):
    code = (
        "import sys; from caq.cli import main; main(sys.argv[1:]);"
        "sys.exit(str({'torch', 'gymnasium', 'matplotlib', 'rich', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *filled(command, files)], capture_output=True, text=True, check=False
    )
    assert done.stderr == "set()\n"


def test_help_and_version(call):
    shown = call("--help")
    commands = ("train", "convert", "eval", "info", "cost", "run", "record", "profile", "doctor", "demo")
    assert shown.code == 0 and all(name in shown.out for name in commands)
    assert call("--version").out.startswith("caq 0.")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "COMMAND"),
        (("evaluate",), "invalid choice"),
        (("info",), "x.caq"),
        (("eval", "x.caq"), "--data"),
        (("eval", "x.caq", "--data", "d", "--samples", "0"), "an integer from 1"),
        (("eval", "x.caq", "--data", "d", "--point", "a", "--widths", "4"), "not allowed with"),
        (("run", "x.caq", "--data", "d", "--period", "nan"), "above 0"),
        (("run", "x.caq", "--data", "d", "--speed", "2"), "--speed needs --trace"),
        (("profile", "x.caq", "--seconds", "0"), "above 0"),
        (("train", "--data", "d", "--model", "m", "--out", "o", "--budgets", "saver"), "saver=0.22"),
        (("train", "--data", "d", "--model", "m", "--out", "o", "--budgets", "a=1,a=0.5"), "twice"),
        (("train", "--data", "d", "--model", "m", "--out", "o", "--budgets", "a=latency@host"), "quick=0.3:latency@"),
        (("cost", "x.caq"), "--profile"),
        (("train", "--data", "d", "--model", "m", "--out", "o", "--widths", "2,x"), "an integer from 1"),
        (("demo", "--seed", "-1"), "an integer from 0"),
    ],
)
def test_wrong_usage_exits_with_2(argv, message, call):
    called = call(*argv)
    assert called.code == 2 and message in called.err and called.out == ""


@pytest.mark.parametrize(
    ("argv", "kind", "message"),
    [
        (("info", "{folder}/none.caq"), "FileNotFoundError", "none.caq: No such file"),
        (("info", ""), "ConfigError", "the path of a .caq file is expected, not ''"),
        (("run", "", "--data", "{data}"), "ConfigError", "the path of a .caq file is expected, not ''"),
        (("info", "{folder}"), "FormatError", "not a regular file"),
        (("info", "{data}"), "FormatError", "x.npz"),
        (("info", "{folder}/damaged.caq"), "IntegrityError", "damaged.caq: planes of width 8"),
        (("info", "{folder}/short.caq"), "FormatError", "short.caq"),
        (("eval", "{artifact}", "--data", "digit"), "DataError", "did you mean 'digits'"),
        (("eval", "{artifact}", "--data", "{folder}/none.npz"), "DataError", "none.npz: no such file"),
        (("eval", "{artifact}", "--data", "{folder}/key.npz"), "DataError", "did you mean 'x_test'"),
        (("eval", "{artifact}", "--data", "{folder}/shape.npz"), "DataError", "samples are (2, 2, 1) uint8"),
        (("eval", "{artifact}", "--data", "{folder}/dtype.npz"), "DataError", "int16, the model was made for"),
        (("eval", "{artifact}", "--data", "{folder}/classes.npz"), "DataError", "5 classes, the model tells 3"),
        (("eval", "{artifact}", "--data", "{data}", "--domain", "7"), "DataError", "known: [0, 1]"),
        (("eval", "{artifact}", "--data", "{data}", "--point", "mixd"), "AssignmentError", "did you mean 'mixed'"),
        (("eval", "{artifact}", "--data", "{data}", "--assignment", "w8"), "AssignmentError", "write it like w4a8"),
        (("eval", "{artifact}", "--data", "{data}", "--assignment", "w8a8"), "AssignmentError", "layers"),
        (("eval", "{artifact}", "--data", "{data}", "--widths", "3"), "AssignmentError", "weights of 3 bits"),
        (
            ("eval", "{artifact}", "--data", "{data}", "--widths", "8", "--max-width", "4"),
            "AssignmentError",
            "only 4 bit planes were read",
        ),
        (("eval", "{artifact}", "--data", "{data}", "--max-width", "1"), "AssignmentError", "at most 1 bits"),
        (("run", "{artifact}", "--data", "{data}", "--policy", "phon"), "ConfigError", "did you mean 'phone'"),
        (("run", "{artifact}", "--data", "{data}", "--policy", "no.yaml"), "ConfigError", "no.yaml: cannot be read"),
        (("run", "{artifact}", "--data", "{data}", "--policy", "{folder}/r.yaml"), "ConfigError", "'w8a9'"),
        (("profile", "{folder}/short.caq"), "FormatError", "short.caq"),
        (("profile", "{artifact}", "--point", "mixd"), "AssignmentError", "did you mean 'mixed'"),
        (("profile", "{artifact}", "--isa", "sse9"), "ConfigError", "'sse9': unknown; choose one of portable"),
        (("run", "{artifact}", "--data", "{data}", "--trace", "no.csv"), "TraceError", "no.csv: cannot be read"),
        (("run", "{artifact}", "--data", "{data}", "--trace", "{folder}/bad.csv"), "TraceError", "line 2"),
    ],
)
def test_bad_input_exits_with_1(argv, kind, message, files, call):
    whole = files.artifact.read_bytes()
    (files.folder / "damaged.caq").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (files.folder / "short.caq").write_bytes(whole[:-1])
    (files.folder / "r.yaml").write_text("otherwise: w8a9\n")
    (files.folder / "bad.csv").write_text("t_s,charging\n0,2\n")
    good = dict(np.load(files.data))
    small = np.zeros((40, 2, 2, 1), np.uint8)
    for name, changed in {
        "key": {"x_tst": good["x_test"]},
        "shape": {"x_train": small, "x_test": small},
        "dtype": {key: good[key].astype(np.int16) for key in ("x_train", "x_test")},
        "classes": {"label_names": np.array(list("abcde"))},
    }.items():
        np.savez(files.folder / f"{name}.npz", **{**good, **changed})
    argv = filled(argv, files)
    called = call(*argv)
    assert called.code == 1 and called.out == ""
    assert called.err.startswith("caq: error: ") and message in called.err and called.err.count("\n") == 1
    as_json = call(*argv, "--json")
    assert as_json.code == 1 and as_json.err == called.err
    assert as_json.json == {"error": {"type": kind, "message": called.err.removeprefix("caq: error: ").strip()}}


def test_ctrl_c(monkeypatch, call):
    def interrupted(args, output):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "execute", interrupted)
    called = call("doctor")
    assert (called.code, called.err) == (130, "caq: interrupted\n")


def test_a_reader_that_leaves_is_no_error(files):
    code = "import sys, time; from caq.cli import main; time.sleep(0.3); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "info", str(files.artifact)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 1


def test_a_terminal_gets_rich_tables_of_literal_text(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rows = [{"name": "[bold]x[/bold]", "value": 1}]
    Output(False).table("title", rows)
    shown = capsys.readouterr().out
    assert "─" in shown and "[bold]x[/bold]" in shown
    monkeypatch.setitem(sys.modules, "rich.box", None)
    Output(False).table("title", rows)
    assert capsys.readouterr().out == "\ntitle\nname            value\n[bold]x[/bold]      1\n"


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        Output(True).finish({"x": float("nan")})


def test_output_survives_a_terminal_of_ascii():
    code = (
        "import sys; from caq.cli import main; from caq.cli.output import Output; main(['doctor']); Output(0).say('°')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=True
    )
    assert done.stdout.endswith(b"\\xb0\n")


def test_numbers():
    assert [number(v) for v in (0.12345, 999, 1234567, 2e9)] == ["0.1235", "999", "1.235 M", "2 G"]
