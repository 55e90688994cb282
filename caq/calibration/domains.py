"""The rung of domains: a twin for each parameter set, which follows the stream, and a gate that picks one of both.

What is asked of one set by two domains it cannot be: statistics that bring corrupted images back to what the classifier
knows spoil clean ones. So a set gets a twin (caq.calibration.twins; domain-specific batch norm, Chang et al., CVPR
2019, has one for each domain too, and is told which it is) with

    statistics    re-estimated on the stream, as far as they go (caq.calibration.statistics): what it costs the source
                  hardly matters, as the source's inputs do not take it
    classifier    where there are labels: fitted to features under those statistics and to the source's under the
                  factory's, which they are brought back to (caq.calibration.head)
    gate          logistic regression on channel sums, of the core set's samples of the source and the last of the
                  stream, both with the same weight; moved until TO_TWIN of the source's would take the twin at most,
                  each by a gate that was fitted without it, and rounded to integers

Layers before the gate's tensor stay the factory's.

S sets, C channels of the gate's tensor, N samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.head import Examples, HeadRung
from caq.calibration.sets import ParameterSet, by_row, factory_head, run, up_to
from caq.calibration.state import Arrays, owned
from caq.calibration.statistics import Check, Running, StatisticsRung
from caq.calibration.twins import Twins, gate_of, gate_shift, gate_tensor, layers_before
from caq.conditional import SCORE_LIMIT
from caq.errors import StateFormatError
from caq.model import Model
from caq.native import NativePlan, Program, Tables
from caq.plan import Parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Share of the source's samples that may take the twin.
TO_TWIN = 0.15
#: Samples of the stream that gates are fitted to: the last ones; and those that twins' statistics weigh as at most. A
#: domain is not to be mixed with the one before, and the source, which a set's own are to suit too, is no concern.
_LAST, _MEMORY = 100, 100.0
#: Steps of the classifier's fit: statistics have brought features to where the factory's is nearly right.
_FIT_STEPS = 60
#: Of the gate's regression: how strongly weights of standardised sums are drawn to 0, and its steps.
_RIDGE, _STEPS = 1.0, 15
#: A sample that alone says what its score is leaves at least this much of it to others.
_LEAST_LEFT = 0.05
#: Deviations of channels below this part of the largest count as that, so that no weight explodes.
_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class Domain:
    """What the rung knows of the stream's domain.

    twins: in force. statistics: under twins; sums (S, M, C) int32: channel sums of the last samples; examples: labelled
    ones as their twins' classifier reads them. turns: steps with fresh samples so far, of which every other one is for
    twins.
    """

    twins: Twins
    statistics: Running
    sums: NDArray[np.int32]
    examples: Examples
    turns: int = 0

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`."""
        return {
            **owned("twins", self.twins.to_arrays(self.sums.shape[2])),
            **owned("statistics", self.statistics.to_arrays()),
            **owned("examples", self.examples.to_arrays()),
            "sums": self.sums,
            "turns": np.array([self.turns], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, model: Model, sets: tuple[ParameterSet, ...]) -> Domain:
        """What `to_arrays` gave. Raises StateFormatError on anything else."""

        def part(name: str) -> Arrays:
            return {key[len(name) + 1 :]: a for key, a in arrays.items() if key.startswith(f"{name}/")}

        sums, shape = arrays.get("sums"), (len(model.parameters.gain), model.graph.shapes[gate_tensor(model.graph)][2])
        if sums is None or sums.dtype != np.int32 or sums.ndim != 3 or sums.shape[::2] != shape:
            raise StateFormatError(f"domain: channel sums of {shape[0]} sets and {shape[1]} channels are expected")
        turns = arrays.get("turns")
        if turns is None or turns.dtype != np.int64 or turns.shape != (1,) or turns[0] < 0:
            raise StateFormatError("domain: a count of turns is expected")
        twins = Twins.from_arrays(part("twins"), model, sets)
        statistics = Running.from_arrays(part("statistics"), model.parameters)
        return cls(twins, statistics, sums.copy(), Examples.from_arrays(part("examples"), model), int(turns[0]))

    def grown(self, most: int) -> Domain:
        """As large as the stream makes it, with `most` labelled samples."""
        sets, _, channels = self.sums.shape
        sums = np.zeros((sets, _LAST, channels), np.int32)
        return replace(self, sums=sums, examples=self.examples.grown(most))

    def with_sums(self, sums: NDArray[np.int64]) -> NDArray[np.int32]:
        """Channel sums (S, M, C) with those of N more samples, (S, N, C)."""
        joined = np.concatenate([self.sums, sums.astype(np.int32)], axis=1)
        return joined[:, max(joined.shape[1] - _LAST, 0) :]


class DomainRung:
    """Proposes twins and their gates, one set after the other, for a `coded` model with the factory's parameters.

    sets: all of them. source: (N, H, W, C) int16 codes of all source samples, which statistics are brought back to;
    fitted: those of them that gates are fitted to. prior: see StatisticsRung. head: the rung of the classifier,
    or None without; most: labelled samples that are kept for it.
    """

    def __init__(
        self,
        model: Model,
        sets: tuple[ParameterSet, ...],
        source: NDArray[np.int16],
        fitted: NDArray[np.int16],
        prior: float,
        head: HeadRung | None,
        most: int,
    ) -> None:
        graph = model.graph
        self._model, self._sets, self._fitted, self._head, self._most = model, sets, fitted, head, most
        self._tensor, self._shift = gate_tensor(graph), gate_shift(graph)
        fixed = np.zeros((len(model.parameters.gain), len(graph.layers)), bool)
        fixed[:, [layer.index for layer in layers_before(graph)]] = True
        self._statistics = StatisticsRung(model, source, prior, _MEMORY, fixed)
        self._before = up_to(model, self._tensor) if self._tensor else None
        self._source: dict[int, NDArray[np.int64]] = {}
        self._factory = model.parameters.replace(head=factory_head(model, sets))

    def nothing(self) -> Domain:
        """What is known of no sample."""
        sums = np.zeros((len(self._factory.gain), 0, self._model.graph.shapes[self._tensor][2]), np.int32)
        twins, statistics = Twins(self._factory, {}), Running.empty(self._factory)
        return Domain(twins, statistics, sums, Examples.empty(self._model))

    def sums(self, which: ParameterSet, x: NDArray[np.int16]) -> NDArray[np.int64]:
        """Channel sums (N, C) of the gate's tensor, as the gate shifts them, of samples x (N, H, W, C)."""
        codes = x
        if self._before is not None:
            program, layers = Program(self._before), len(self._before.graph.layers)
            codes = run(NativePlan(program, Tables(program, which.assignment[:layers], which.row)), x)
        channels = self._model.graph.shapes[self._tensor][2]
        sums: NDArray[np.int64] = codes.reshape(len(x), -1, channels).sum(1, dtype=np.int64) >> self._shift
        return sums

    def seen(
        self, now: Domain, x: NDArray[np.int16], labelled: NDArray[np.int16], y: NDArray[np.integer], check: Check
    ) -> tuple[Domain, Parameters]:
        """What is known with samples x (N, H, W, C), and `labelled` ones with y (M,); and parameters for it.

        check: may raise, and then nothing was learnt.
        """
        statistics, parameters, sums, read = now.statistics, self._factory, [], []
        for which in self._sets:
            parameters, statistics = self._statistics.propose(which, parameters, statistics, x, check)
            sums.append(self.sums(which, x))
            if self._head is not None and len(y):
                read.append(self._head.features(which, labelled, parameters))
        examples = now.examples
        if read and self._head is not None:
            examples = examples.with_samples(by_row(parameters, self._sets, read), y, self._most)
        return Domain(
            now.twins, statistics, now.with_sums(by_row(parameters, self._sets, sums)), examples, now.turns + 1
        ), parameters

    def measure(self, check: Check) -> None:
        """Measures the source at all sets, which else the first samples wait for. check: may raise now and then."""
        for which in self._sets:
            self._statistics.source(which, check)
            check()
            self._source_sums(which)

    def _source_sums(self, which: ParameterSet) -> NDArray[np.int64]:
        if which.row not in self._source:
            self._source[which.row] = self.sums(which, self._fitted)
        return self._source[which.row]

    def propose(self, known: Domain, parameters: Parameters, check: Check) -> Twins:
        """Twins of all sets, and their gates, with what `seen` gave. check: may raise now and then."""
        examples = known.examples
        if len(examples.y) and self._head is not None:
            kept, fit = examples.features, self._head.fit
            fits = {w.row: fit(w, kept[w.row], examples.y, check, _FIT_STEPS) for w in self._sets}
            parameters = self._head.candidate(parameters, fits, 1.0, self._sets, check, parameters)
        gates = {}
        for which in self._sets:
            check()
            weights, bias = fit_gate(self._source_sums(which), known.sums[which.row])
            gates[which] = gate_of(self._model.graph, which, len(self._factory.gain), weights, bias)
        return Twins(parameters, gates)


def quantile(values: NDArray[Any], q: float) -> float:
    """As np.quantile, which imports a MiB of numpy (numpy.ma)."""
    return float(np.interp(q * (len(values) - 1), np.arange(len(values)), np.sort(values)))


def fit_gate(source: NDArray[np.integer], stream: NDArray[np.integer]) -> tuple[NDArray[np.int8], int]:
    """Weights (C,) and bias of a gate that tells sums (N, C) of the source from those (M, C) of the stream.

    Integers, as the engine takes them: weights x sums + bias is above 0 for the stream.
    """
    x = np.concatenate([source, stream]).astype(np.float64)
    of_stream = np.arange(len(x)) >= len(source)
    samples = np.where(of_stream, 0.5 * len(x) / max(len(stream), 1), 0.5 * len(x) / max(len(source), 1))
    deviation = x.std(0)
    scale = np.maximum(deviation, max(_FLOOR * float(deviation.max()), 1e-9))
    z = np.c_[(x - x.mean(0)) / scale, np.ones(len(x))]
    ridge = np.full(z.shape[1], _RIDGE)
    ridge[-1] = 1e-6
    b = np.zeros(z.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ b, -30, 30)))
        curvature, wrong = samples * p * (1 - p), samples * (p - of_stream)
        hessian = (z * curvature[:, None]).T @ z + np.diag(ridge)
        b -= np.linalg.solve(hessian, z.T @ wrong + ridge * b)
    # What a sample's score would be without it, by one step of Newton's from the fit with it (Cook and Weisberg, 1982).
    leverage = (z * np.linalg.solve(hessian, z.T).T).sum(1)
    without = leverage * wrong / np.maximum(1 - leverage * curvature, _LEAST_LEFT)
    real = b[:-1] / scale
    unit = 127 / max(float(np.abs(real).max()), 1e-12)
    weights = np.rint(real * unit).astype(np.int8)
    bias = (b[-1] - float(real @ x.mean(0))) * unit
    scores = source @ weights.astype(np.int64) + unit * without[: len(source)]
    bias = min(bias, -quantile(scores, 1 - TO_TWIN)) if len(source) else -math.inf  # none takes what cannot be spared
    return weights, int(np.clip(np.floor(bias), -SCORE_LIMIT // 2, SCORE_LIMIT // 2))
