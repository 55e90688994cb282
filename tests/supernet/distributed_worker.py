"""What test_distributed runs in each of several processes: python -m tests.supernet.distributed_worker FOLDER

Leaves RESULT-<rank>.pt in the folder; started without torchrun, it is the one process to compare with.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from caq.costs import Budget
from caq.data import load
from caq.errors import TrainingError
from caq.supernet import Supernet, convert
from caq.supernet.distributed import Processes, first_only, joined
from caq.supernet.pipeline import Prepared, prepare
from caq.supernet.points import train_gated
from caq.supernet.train import Outputs, TrainConfig, train_supernet

#: Of 85 samples, batches of 32, 32 and 21: two processes have 11 and 10 of the last.
CONFIG = TrainConfig(epochs=3, batch_size=32, seed=5)
SAMPLES = 85
QUIET = Outputs(quiet=True)


class Killed(Exception):
    pass


def prepared() -> Prepared:
    data = load("digits")
    data = replace(data, x_train=data.x_train[:SAMPLES], y_train=data.y_train[:SAMPLES])
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()]
    return prepare(data, nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10)), CONFIG.seed)


def trained(outputs: Outputs = QUIET, supernet: Supernet | None = None) -> dict[str, Tensor]:
    """The weights and statistics after training from the start."""
    given = prepared()
    supernet = supernet or convert(given.network, given.example(), (2, 4, 8))
    train_supernet(supernet, given.train, CONFIG, outputs)
    return supernet.state_dict()


def in_float64() -> dict[str, Tensor]:
    """As `trained`, so exactly that no code is rounded otherwise for the order in which floats are summed."""
    given = prepared()
    supernet = convert(given.network, given.example(), (2, 4, 8)).double()
    to_internal = supernet.to_internal
    with mock.patch.object(supernet, "to_internal", lambda x: to_internal(x).double()):
        return trained(supernet=supernet)


def killed_and_resumed(checkpoint: Path) -> dict[str, Tensor]:
    """As `trained`, after it died in the second epoch of three batches with three updates each."""
    original, updates = torch.optim.AdamW.step, 0

    def dying(self: torch.optim.AdamW, closure: None = None) -> None:
        nonlocal updates
        updates += 1
        if updates == 14:
            raise Killed
        original(self, closure)

    try:
        with mock.patch.object(torch.optim.AdamW, "step", dying):
            trained(Outputs(checkpoint, quiet=True))
    except Killed:
        pass
    assert torch.load(checkpoint, weights_only=True)["epochs"] == 1
    return trained(Outputs(checkpoint, quiet=True))


def gated() -> dict[str, Tensor]:
    """The weights and statistics after the last of three epochs was a point's own."""
    given = prepared()
    supernet = convert(given.network, given.example(), (2, 4, 8))
    train_gated(supernet, given.train, CONFIG, (Budget("half", 0.5),), QUIET)
    return supernet.state_dict()


def disagreement(team: Processes) -> str:
    try:
        team.agree(team.rank, "the rank")
    except TrainingError as error:
        return str(error)
    return ""


def failure_of_the_first(team: Processes) -> str:
    @first_only
    def work() -> int:
        raise ValueError("of the first process")

    try:
        work()
    except (ValueError, TrainingError) as error:
        return str(error)
    return ""


@first_only
def two_numbers(team: Processes) -> tuple[int, int]:
    return team.rank, team.count


def gloo_threads() -> list[str]:
    """Names of the threads of this process that gloo started."""
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def main(folder: Path) -> None:
    with joined() as team:
        result = {
            "whole": trained(),
            "float64": in_float64(),
            "gated": gated(),
            "resumed": killed_and_resumed(folder / "checkpoint.pt"),
            "of_the_first": two_numbers(team),
            "disagreement": disagreement(team),
            "failure": failure_of_the_first(team),
            "threads_within": gloo_threads(),
        }
    torch.save(result | {"threads": gloo_threads()}, folder / f"RESULT-{team.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
