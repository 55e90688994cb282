"""Trained sources of a stream: the integer model that a device gets, and the float supernet that it was made from.

Methods with back-propagation need the second one. Both are kept in files, so that a source is trained once, and resumes
where its training was stopped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

import caq
from caq.data import Dataset
from caq.model import Model
from caq.supernet import Supernet, convert
from caq.supernet.pipeline import Prepared, finish, prepare
from caq.supernet.train import Outputs, TrainConfig, train_supernet


@dataclass(frozen=True, eq=False)
class Source:
    """A network of the zoo, trained on `data` at `widths`. path: of the artifact; `.pt` files lie beside it."""

    path: Path
    data: Dataset
    network: str
    epochs: int
    seed: int
    widths: tuple[int, ...]

    def model(self) -> Model:
        """The artifact, as it leaves the factory."""
        if not self.path.exists():
            self._train()
        return caq.load(self.path)

    def supernet(self) -> Supernet:
        """The supernet whose integers `model` has; another object at each call."""
        weights = self.path.with_suffix(".pt")
        if not weights.exists():
            self._train()
        supernet = self._untrained()[1]
        supernet.load_state_dict(torch.load(weights, weights_only=True))
        return supernet.eval()

    def _untrained(self) -> tuple[Prepared, Supernet]:
        prepared = prepare(self.data, self.network, self.seed)
        return prepared, convert(prepared.network, prepared.example(), self.widths)

    def _train(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        prepared, supernet = self._untrained()
        config = TrainConfig(epochs=self.epochs, seed=self.seed)
        checkpoint = self.path.with_suffix(".checkpoint")
        train_supernet(supernet, prepared.train, config, Outputs(checkpoint))
        model = finish(supernet, self.data, prepared, config, (), quiet=True)
        weights = self.path.with_suffix(".pt")
        torch.save(supernet.state_dict(), weights.with_suffix(".new"))
        os.replace(weights.with_suffix(".new"), weights)
        caq.save(model, self.path)
        checkpoint.unlink()
