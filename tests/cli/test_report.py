import base64
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from caq.cli.page import labels
from caq.cli.report import DayLog, write_report
from caq.errors import DataError, MissingExtraError

N = 60
ROWS = [
    {"strategy": "<adaptive>", "accuracy": 0.912345, "served": 1440},
    {"strategy": "always 8-bit", "accuracy": None, "served": 1301},
]


def day_log():
    third = np.repeat([0, 1, 0], N // 3)
    return DayLog(
        t_s=np.arange(N) * 600,
        state_of_charge=np.linspace(1, 0.1, N),
        charging=third == 1,
        point=third,
        point_names=["eight", "two"],
        layer_names=["conv", "fc", "head"],
        widths=np.array([[8, 8, 8], [2, 3, 8]]),
        accuracy={"adaptive": np.full(N, 0.9), "always 8-bit": np.full(N, np.nan)},
        bit_macs={"adaptive": np.where(third == 1, 4.0, 64.0), "always 8-bit": np.full(N, 64.0)},
        baseline="always 8-bit",
    )


class Page(HTMLParser):
    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.cells = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        self.links += [value for name, value in attrs.items() if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, "A day & <more>", day_log(), ROWS, ["Generated <trace>."])
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_page_is_whole_and_needs_nothing_else(text):
    page = Page(text)
    assert page.open == []
    assert page.links and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert "<script" not in text
    assert "A day &amp; &lt;more&gt;" in text and "Generated &lt;trace&gt;." in text
    assert 'name="viewport"' in text


def test_table(text):
    assert Page(text).cells == [
        *("strategy", "accuracy", "served"),
        *("<adaptive>", "0.9123", "1440"),
        *("always 8-bit", "-", "1301"),
    ]


def test_pictures_are_svg_with_a_text_alternative(text):
    images = Page(text).images
    assert len(images) == 5
    assert all(image["alt"] for image in images)
    for image in images:
        svg = ET.fromstring(base64.b64decode(image["src"].split(",")[1]))
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"


def test_same_inputs_same_bytes(text, tmp_path):
    write_report(tmp_path / "again.html", "A day & <more>", day_log(), ROWS, ["Generated <trace>."])
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_inputs_show(text, tmp_path):
    """Each picture changes with its own input, and only the pictures of that input change."""
    before = [image["src"] for image in Page(text).images]
    day = day_log()
    changes = {
        "state_of_charge": (day.state_of_charge / 2, [0]),
        "charging": (~day.charging, [0]),
        "point": (1 - day.point, [1]),
        "accuracy": ({**day.accuracy, "adaptive": np.full(N, 0.8)}, [2]),
        "widths": (np.array([[8, 8, 8], [2, 2, 2]]), [1, 3]),
        "bit_macs": ({**day.bit_macs, "adaptive": np.full(N, 1.0)}, [4]),
    }
    for name, (value, pictures) in changes.items():
        write_report(tmp_path / "r.html", "A day & <more>", replace(day, **{name: value}), ROWS)
        after = [image["src"] for image in Page((tmp_path / "r.html").read_text(encoding="utf-8")).images]
        assert [i for i in range(5) if after[i] != before[i]] == pictures, name


def test_a_user_style_does_not_show(text, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        write_report(tmp_path / "r.html", "A day & <more>", day_log(), ROWS, ["Generated <trace>."])
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == text


def test_failure_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_report(path, "t", day_log(), ROWS)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_s": np.zeros(N)}, "t_s: must rise"),
        ({"t_s": np.zeros(1)}, "t_s: needs at least 2"),
        ({"charging": np.zeros(3)}, "charging: 3 rows, t_s has 60"),
        ({"accuracy": {"adaptive": np.zeros(3)}}, "accuracy of adaptive: 3 rows"),
        ({"accuracy": {}}, "accuracy: needs 1 to 5"),
        ({"widths": np.zeros((3, 2))}, r"widths: shape \(3, 2\), the names need \(2, 3\)"),
        ({"point": np.full(N, 2)}, r"point: an index is outside 0\.\.1"),
        ({"baseline": "always 4-bit"}, "baseline: 'always 4-bit'"),
    ],
)
def test_day_log_refuses(changes, message):
    with pytest.raises(DataError, match=message):
        replace(day_log(), **changes)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["conv", "fc"], ["conv", "fc"]),
        (["gate-for-everything-1-static", "gate-for-everything-2-static"], ["…1…", "…2…"]),
        (["features.12.depthwise.conv", "head"], ["features.12.d…e.conv", "head"]),
        (["a-single-name-of-some-length"], ["a-single-name…length"]),
    ],
)
def test_long_names_keep_what_tells_them_apart(names, shown):
    assert labels(names) == shown


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape("caq[sim]")):
        write_report(tmp_path / "r.html", "t", day_log(), ROWS)
    assert list(tmp_path.iterdir()) == []
