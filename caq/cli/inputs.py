"""The samples of a data set that a command runs a model on."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from caq import data
from caq.errors import DataError
from caq.model import Model

log = logging.getLogger(__name__)


def test_samples(
    name_or_path: str, model: Model, domain: int | None = None, count: int | None = None
) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Samples x (N, ...) of the test split that fit `model`, and their labels y (N,).

    domain: only those of this domain. count: at most so many, spread evenly over the split, which may be sorted.
    Raises DataError if the data do not fit the model.
    """
    dataset = fitting(name_or_path, model)
    x, y = (dataset.x_test, dataset.y_test) if domain is None else dataset.domain(domain)
    if count is not None and count < len(x):
        chosen = np.linspace(0, len(x) - 1, count).round().astype(np.int64)
        x, y = x[chosen], y[chosen]
    return x, y


def fitting(name_or_path: str, model: Model) -> data.Dataset:
    """A data set. Raises DataError if it does not fit `model`."""
    dataset = data.load(name_or_path)
    found, wanted = (dataset.sample_shape, dataset.x_test.dtype.name), (model.sample_shape, model.scaling.dtype)
    if found != wanted:
        raise DataError(
            f"{dataset.name}: samples are {found[0]} {found[1]}, the model was made for {wanted[0]} {wanted[1]}"
        )
    if model.task == "classify":
        outputs = int(np.prod(model.graph.shapes[-1]))
        if dataset.num_classes > outputs:
            raise DataError(f"{dataset.name}: {dataset.num_classes} classes, the model tells {outputs} apart")
        if model.label_names and dataset.label_names != model.label_names[: dataset.num_classes]:
            log.warning("the labels of %s are not those of the model; the accuracy compares their order", dataset.name)
    return dataset
