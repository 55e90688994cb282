"""A small artifact, data that fit it and a trace, made without torch; and a way to call the command."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from caq import artifact
from caq.cli import main
from caq.engine import Engine
from tests import models


@dataclass
class Called:
    code: int
    out: str
    err: str

    @property
    def json(self):
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture
def call(capsys):
    """Calls `main` with arguments; gives its exit code and what it printed."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as exit:
            code = exit.code
        return Called(code, *capsys.readouterr())

    return run


@dataclass
class Files:
    """Paths: an artifact with the points w2a2, w4a4, w8a8 and mixed; data whose labels are what w8a8 says; a trace."""

    folder: Path
    artifact: Path
    data: Path
    trace: Path


def _labelled(seed):
    model = models.model(seed)
    x = models.samples(model, 40)
    engine = Engine(model)
    engine.select("w8a8")
    return model, x, engine.run(x).argmax(1)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    made = Files(folder, folder / "x.caq", folder / "x.npz", folder / "day.csv")
    # Random weights often see one class only: take the first model that tells all three apart.
    model, x, y = next(found for found in map(_labelled, range(100)) if len(set(found[2].tolist())) == 3)
    artifact.save(model, made.artifact)
    domain = np.arange(40) % 2
    names = np.array(model.label_names)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "domain_test": domain, "label_names": names}
    np.savez(made.data, **arrays)
    made.trace.write_text("t_s,state_of_charge,charging\n0,0.9,0\n60,0.4,0\n120,0.1,0\n180,0.15,1\n")
    return made
