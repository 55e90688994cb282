"""What importing caq must not do; import-linter (setup.cfg) checks the same in the sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import caq
from tests import models

EXTRAS = ("torch", "onnx", "gymnasium", "sklearn", "matplotlib", "rich", "policies", "simulators", "tensorboard")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


@pytest.mark.parametrize(
    "statement",
    ["import caq", "import caq.cli", "import caq.measure", "import caq.data", "import caq.calibration, caq.search"],
)
def test_the_device_side_imports_no_extra(statement: str) -> None:
    assert not modules_after(statement) & set(EXTRAS)


#: What takes long to import, or much memory, and is not needed to load a model and run it.
LATE = {
    *("caq.context", "caq.governor", "caq.kernels.reference", "caq.reference", "caq.runtime", "cffi", "psutil", "yaml"),
    *("_hashlib", "base64", "difflib", "hashlib", "logging", "numpy.typing", "pathlib", "random", "shutil", "ssl"),
    *("subprocess", "tempfile", "threading", "caq.artifact_writer", "caq.packing"),
}


def test_loading_and_running_a_model_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    path = tmp_path / "m.caq"
    caq.save(models.tiny(), path)
    run = f"import numpy, caq\ne = caq.Engine({str(path)!r})\ne.run(numpy.zeros(e.model.sample_shape, 'uint8'))"
    assert not (modules_after(run) - modules_after("import numpy")) & LATE


def test_the_runtime_is_there_when_it_is_asked_for() -> None:
    assert {"caq.runtime", "psutil", "logging"} <= modules_after("from caq import Runtime")
    assert "caq.runtime" in modules_after("import caq; caq.context.ContextMonitor; caq.runtime.Runtime")
    assert set(caq.__all__) <= set(dir(caq)) and all(hasattr(caq, name) for name in caq.__all__)
    with pytest.raises(AttributeError, match=r"module 'caq' has no attribute 'runtimes'"):
        caq.runtimes  # noqa: B018  # type: ignore[attr-defined]


def test_what_the_runtime_logs_is_silent_unless_the_host_configures_logging() -> None:
    code = "import caq.runtime\ncaq.runtime.log.warning('heard')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_the_check_above_can_fail() -> None:
    assert "torch" in modules_after("import caq.supernet")


def test_training_without_torch_names_the_pip_command() -> None:
    code = "import sys\nsys.modules['torch'] = None\nimport caq.supernet"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "MissingExtraError" in run.stderr and "pip install 'caq[train]'" in run.stderr
