"""What importing caq must not do; import-linter (setup.cfg) checks the same in the sources."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXTRAS = ("torch", "gymnasium", "sklearn", "matplotlib", "rich", "policies", "simulators", "tensorboard")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


@pytest.mark.parametrize("statement", ["import caq", "import caq.cli", "import caq.measure", "import caq.data"])
def test_the_device_side_imports_no_extra(statement: str) -> None:
    assert not modules_after(statement) & set(EXTRAS)


def test_the_check_above_can_fail() -> None:
    assert "torch" in modules_after("import caq.supernet")


def test_training_without_torch_names_the_pip_command() -> None:
    code = "import sys\nsys.modules['torch'] = None\nimport caq.supernet"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "MissingExtraError" in run.stderr and "pip install 'caq[train]'" in run.stderr
