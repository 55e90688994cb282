import math

import numpy as np
import pytest

from caq.context import Quality, RecordedContext
from caq.errors import ConfigError, TraceError

PHONE = """t_s,state_of_charge,charging,screen_brightness
0,0.83,0,0.5
60,0.82,1,
120,0.81,0,0.25
3600,0.5,0,1
"""


def recorded(tmp_path, text, **options):
    path = tmp_path / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return RecordedContext.from_csv(path, **options)


def test_replay(tmp_path):
    trace = recorded(tmp_path, PHONE)
    assert trace.duration_s == 3600
    assert trace.fields == ("state_of_charge", "charging", "screen_brightness")
    context = trace.read()
    assert context.state_of_charge.value == 0.83
    assert context.charging.value is False
    assert context.state_of_charge.quality is Quality.RECORDED
    assert context.state_of_charge.source == "trace.csv"
    assert context.temperature_c.quality is Quality.MISSING
    context = trace.advance(90)
    assert (context.time_s.value, context.charging.value, context.charging.age_s) == (90, True, 30)
    assert context.screen_brightness.value is None
    assert trace.read() == context


def test_a_gap_stays_a_gap(tmp_path):
    trace = recorded(tmp_path, PHONE)
    # The median interval is 60 s, so values live for 180 s.
    assert not trace.seek(300).state_of_charge.stale
    context = trace.seek(301)
    assert context.state_of_charge.stale
    assert context.value("state_of_charge") is None
    assert recorded(tmp_path, PHONE, stale_after_s=10).seek(11).state_of_charge.stale


def test_before_the_beginning_and_after_the_end(tmp_path):
    trace = recorded(tmp_path, PHONE)
    assert "begins" in trace.seek(-1).state_of_charge.reason
    assert not trace.finished
    assert trace.seek(3600).state_of_charge.value == 0.5
    assert trace.finished
    assert trace.seek(1e6).state_of_charge.stale


def test_comment_lines_mark_a_generated_trace(tmp_path):
    trace = recorded(tmp_path, "# generated: true\n# seed: 7\n# free words\nt_s,cpu_load\n5,0.5\n")
    assert trace.read().cpu_load.quality is Quality.SIMULATED
    assert trace.generated
    assert trace.metadata == {"generated": "true", "seed": "7"}
    assert not recorded(tmp_path, "# generated: false\nt_s,cpu_load\n5,0.5\n").generated


def test_what_editors_and_spreadsheets_write(tmp_path):
    trace = recorded(tmp_path, '\ufefft_s, charging\r\n"0","1.0"\r\n1,0\r\n\r\n'.encode())
    assert trace.read().charging.value is True


def test_a_load_a_little_above_full_is_full():
    assert RecordedContext({"t_s": [0], "cpu_load": [1.05]}).read().cpu_load.value == 1.0


def test_it_follows_the_clock():
    now = [10.0]
    trace = RecordedContext({"t_s": [100, 200], "cpu_load": [0.1, 0.9]}, clock=lambda: now[0])
    trace.start(speed=10)
    now[0] += 5
    assert trace.position_s == 150
    trace.start(speed=100)
    now[0] += 0.5
    assert trace.read().cpu_load.value == 0.9
    trace.stop()
    now[0] += 100
    assert trace.position_s == 200


def test_arrays():
    source = np.array([0.5, math.nan], dtype=np.float32)
    trace = RecordedContext({"t_s": np.arange(2), "cpu_load": source}, generated=True)
    source[:] = 0.9
    assert trace.read().cpu_load.value == 0.5
    assert trace.read().cpu_load.quality is Quality.SIMULATED
    assert trace.seek(1).cpu_load.value is None
    with pytest.raises(ValueError):
        trace.times_s[0] = 5


HEADER = "t_s,state_of_charge,charging\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("# generated: true\n", ["empty"]),
        (HEADER, ["no rows"]),
        ("state_of_charge\n0.5\n", ["t_s"]),
        ("t_s\n0\n", ["no context column"]),
        ("t_s,state_of_charg\n0,0.5\n", ["line 1", "state_of_charg'", "did you mean 'state_of_charge'"]),
        ("# note: x\nt_s,cpu_load,cpu_load\n0,0.5,0.5\n", ["line 2", "cpu_load", "twice"]),
        (HEADER + "0,0.5\n", ["line 2", "2 cells", "3"]),
        (HEADER + "0,0.5,0\n1,0.5,0,9\n", ["line 3", "4 cells"]),
        ("# generated: true\n" + HEADER + "5,0.5,0\n4,0.5,0\n", ["line 4", "t_s", "out of order"]),
        (HEADER + "5,0.5,0\n\n5,0.5,0\n", ["line 4", "t_s", "twice"]),
        (HEADER + "0,nan,0\n", ["line 2", "state_of_charge", "NaN"]),
        (HEADER + "0,inf,0\n", ["line 2", "state_of_charge", "infinite"]),
        (HEADER + "0,1e999,0\n", ["line 2", "state_of_charge", "infinite"]),
        (HEADER + "inf,0.5,0\n", ["line 2", "t_s", "infinite"]),
        (HEADER + ",0.5,0\n", ["line 2", "t_s", "needs a time"]),
        (HEADER + "0,0.5,0\n1,83,0\n", ["line 3", "state_of_charge", "83", "0..1"]),
        (HEADER + "0,-0.1,0\n", ["line 2", "state_of_charge"]),
        (HEADER + "0,0.5,0.5\n", ["line 2", "charging", "0 or 1"]),
        (HEADER + "0,half,0\n", ["line 2", "state_of_charge", "'half'"]),
        (HEADER + '0,"0.5,0\n', ["not CSV"]),
        ("# generated: maybe\n" + HEADER + "0,0.5,0\n", ["generated", "maybe"]),
        (b"\xff\xfe\x00", ["UTF-8"]),
    ],
)
def test_bad_files_name_the_file_the_line_and_the_column(tmp_path, text, words):
    with pytest.raises(TraceError) as caught:
        recorded(tmp_path, text)
    assert all(word in str(caught.value) for word in [str(tmp_path / "trace.csv"), *words])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TraceError, match=r"nowhere\.csv"):
        RecordedContext.from_csv(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"t_s": [0, 1], "cpu_load": [0.5]}, "shape"),
        ({"t_s": [[0]], "cpu_load": [[0.5]]}, "shape"),
        ({"t_s": [], "cpu_load": []}, "at least one row"),
        ({"t_s": [0, math.nan], "cpu_load": [0, 0]}, "row 1, column t_s"),
        ({"t_s": [0, 1], "cpu_load": [0, 2]}, "row 1, column cpu_load"),
        ({"t_s": [0], "cpu_load": ["busy"]}, "numbers"),
        ({"t_s": [0], "cpu_lod": [0]}, "cpu_load"),
    ],
)
def test_bad_arrays(columns, words):
    with pytest.raises(TraceError, match=words):
        RecordedContext(columns)


def test_wrong_arguments(tmp_path):
    trace = recorded(tmp_path, PHONE)
    for call in (
        lambda: trace.seek(math.nan),
        lambda: trace.advance(-1),
        lambda: trace.start(0),
        lambda: recorded(tmp_path, PHONE, stale_after_s=0),
    ):
        with pytest.raises(ConfigError):
            call()
