"""The ladder: rungs that propose parameters for each set, and a judge that promotes or drops what they propose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.biases import fit_biases, log_softmax, output_biases, output_layer, with_output_biases
from caq.calibration.config import CalibratorConfig
from caq.calibration.core import UNLABELLED, CoreSet
from caq.calibration.deadline import Deadline, OutOfTime
from caq.calibration.flips import FlipsRung, flips_of, positions
from caq.calibration.head import Fit, HeadRung
from caq.calibration.judge import Judged, held_out
from caq.calibration.learnt import Learnt, classes
from caq.calibration.sets import ParameterSet, blended, by_row, factory_head, logits, with_rows
from caq.calibration.state import random_from_array, random_to_array
from caq.calibration.statistics import Check, StatisticsRung
from caq.calibration.twins import Calibration, layers_before
from caq.conditional import ConditionalGate, prefix_rows
from caq.errors import ConfigError, UnsupportedError
from caq.model import Model
from caq.plan import Parameters
from caq.quant import MIN_WIDTH, TOP_WIDTH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caq.calibration.domains import DomainRung

#: Of the time that is left, what a rung may take to propose; the rest is for the judge, and for rungs above.
_TO_PROPOSE = 0.5

#: Parts of the way to what a rung proposes, tried in turn until they help: the whole way often costs the source more
#: than a quarter of it, and gains no more. The head's way begins at the factory, and most of its gain is near its end.
#: A twin is there or not.
SHARES, HEAD_SHARES = (1.0, 0.5, 0.25), (1.0, 0.75, 0.5)
_SHARES_OF = {"head": HEAD_SHARES, "domain": (1.0,)}
#: Standard errors by which the stream's cross entropy may rise with a new head: it is fitted anew, to all that the one
#: in force was fitted to and more, so a rise on a few samples is chance more often than not.
_HEAD_DOUBT = 1.0
#: For twins the same, once a set has one; a first one has to be better by more than chance, as the source pays for it.
#: A set goes on without it if that is as much better.
_TWIN_DOUBT, _FIRST_TWIN_DOUBT, _NO_TWIN_DOUBT = 1.0, -1.0, -1.0

#: `Judge.__call__` on the step's slice.
Judging = Callable[
    [Calibration, Calibration, tuple[ParameterSet, ...], float, Mapping[ParameterSet, float], Deadline], "Judged | None"
]

#: Gives a candidate: a calibration of some sets, a part of the way to what a rung proposes. It may call the last
#: argument before each piece of work.
Candidate = Callable[[float, "tuple[ParameterSet, ...]", "Check"], Calibration]

#: What a rung comes to: all that was learnt, its candidates, and the sets that they are for: None out of turn.
Proposal = tuple[Learnt, Candidate, tuple[ParameterSet, ...] | None]


class Ladder:
    """The rungs for a `coded` model with the factory's parameters.

    sets: all of them; anchor: samples of the factory's core set; gates: of conditional points. What is before a gate
    stays as it is, as branches share it.

    headless: why the rung of the classifier is passed over, which its records say; None if it is not, or not asked for.
    """

    def __init__(
        self,
        model: Model,
        sets: tuple[ParameterSet, ...],
        anchor: CoreSet,
        config: CalibratorConfig,
        gates: tuple[ConditionalGate, ...],
    ) -> None:
        self._model, self._sets, self._config = model, sets, config
        self._fixed = prefix_rows(model.graph, model.parameters, gates)
        source = anchor.x.astype(np.int16)
        self._statistics = StatisticsRung(model, source, config.prior, config.memory, self._fixed)
        labelled = anchor.y != UNLABELLED
        fit = np.flatnonzero(labelled & ~held_out(anchor.ids, config.seed))
        self._x, self._y = anchor.x[fit].astype(np.int16), anchor.y[fit]
        self._flips = self._flips_rung() if "flips" in config.rungs else None
        self.headless: str | None = None
        self._head = self._head_rung(bool(gates)) if "head" in config.rungs else None
        self._domains: DomainRung | None = None
        if "domain" in config.rungs and not gates:
            self._fixed[:, [layer.index for layer in layers_before(model.graph)]] = True
            from caq.calibration.domains import DomainRung  # what does without it has no room for it

            self._domains = DomainRung(model, sets, source, self._x, config.prior, self._head, config.head_samples)

    def _head_rung(self, gated: bool) -> HeadRung | None:
        try:
            if gated:
                raise UnsupportedError("branches of conditional points share their bit planes")
            c = self._config
            return HeadRung(self._model, self._x, self._y, c.head_weight, c.head_ridge, c.head_spread)
        except UnsupportedError as e:
            self.headless = f"there is no classifier to fit: {e}"
            return None

    def prepared(self, learnt: Learnt) -> Learnt:
        """With what rungs need: the factory's codes of the classifier, and what is to be known of a domain.

        Of a state that was learnt with other rungs, twins are dropped that nothing would follow the stream with; where
        there are to be some, sets begin at the factory that could not share their first layers with them.
        """
        if self._domains is None:
            learnt = replace(learnt, domain=None)
        elif learnt.domain is None:
            none, parameters = np.zeros((0, 0), np.int8), self._shareable(learnt.parameters)
            learnt = replace(learnt, parameters=parameters, latents=none, domain=self._domains.nothing())
        if self._flips is not None and learnt.parameters.flips is None:
            none = np.zeros((len(self._model.parameters.gain), self._model.graph.weights), np.int8)
            learnt = replace(learnt, parameters=learnt.parameters.replace(flips=none), latents=none)
        if self._head is None or learnt.parameters.head is not None:
            return learnt
        parameters = learnt.parameters.replace(head=factory_head(self._model, self._sets))
        return replace(learnt, parameters=parameters)

    def measure(self, check: Check) -> None:
        """Measures what of the source is compared with in every step. check: may raise now and then."""
        if self._domains is not None:
            self._domains.measure(check)

    def grown(self, learnt: Learnt) -> Learnt:
        """As large as what rungs keep of the stream can make it."""
        most, domain = self._config.head_samples if self._head is not None else 0, learnt.domain
        domain = None if domain is None else domain.grown(most)
        return replace(learnt, examples=learnt.examples.grown(most), domain=domain)

    def _shareable(self, parameters: Parameters) -> Parameters:
        """`parameters` with the factory's of sets that have flips, or others before the gate."""
        factory, before = self._model.parameters, layers_before(self._model.graph)
        own = parameters.replace(flips=None)
        changed = np.zeros(len(factory.gain), bool)
        for layer in before:
            span = slice(layer.first_channel, layer.first_channel + layer.channels)
            for name, at in (
                ("gain", span),
                ("bias", span),
                ("gain_exponent", layer.index),
                ("bias_exponent", layer.index),
            ):
                same = getattr(own, name)[:, at] == getattr(factory, name)[:, at]
                changed |= ~same.reshape(len(changed), -1).all(axis=1)
        if parameters.flips is not None:
            changed |= parameters.flips.any(axis=1)
        if parameters.head is not None:
            factory = factory.replace(head=factory_head(self._model, self._sets))
        return with_rows(own, tuple(which for which in self._sets if changed[which.row]), factory)

    def _flips_rung(self) -> FlipsRung:
        model, (low, high) = self._model, self._config.flip_rates
        if model.flip_network is None:
            raise ConfigError("rungs: flips need a network in the artifact; train with it, or leave flips out")

        def rate(width: int) -> float:
            return float(low * (high / low) ** ((width - MIN_WIDTH) / (TOP_WIDTH - MIN_WIDTH)))

        return FlipsRung(model, model.flip_network, rate, self._config.flip_rounds)

    def climb(
        self, now: Learnt, x: NDArray[np.int8], y: NDArray[np.int16], fresh: int, judge: Judging, deadline: Deadline
    ) -> tuple[Learnt, list[dict[str, Any]]]:
        """What is learnt from samples x (N, H, W, C), y (N,), and a record for each rung that proposed something.

        The first `fresh` samples are new; of the others only the labels are.
        """
        records = []
        rungs: dict[str, Callable[[Learnt, NDArray[np.int16], NDArray[np.int16], Deadline], Proposal]] = {
            "statistics": self._propose_statistics,
            "biases": self._propose_biases,
            "head": partial(self._propose_head, fresh),
            "domain": partial(self._propose_domain, fresh),
            "flips": self._propose_flips,
        }
        labelled = bool(classes(self._model) and (y != UNLABELLED).any())
        for name in self._config.rungs:
            guessed = name == "biases" and not labelled and self._config.pseudo_labels is not None
            if name not in ("statistics", "domain") and not labelled and not (guessed and fresh):
                continue
            if name in ("statistics", "domain") and not fresh:
                continue
            if name in ("statistics", "biases") and labelled and self._head is not None:
                continue  # labels say more, and the head, which has biases too, is fitted to the factory's features
            if name == "head" and self.headless is not None:
                records.append(_dropped(name, self.headless) | {"ms": 0.0})
                continue
            if name == "domain" and self._domains is None:
                records.append(_dropped(name, "branches of conditional points have no twins") | {"ms": 0.0})
                continue
            given = fresh if name == "statistics" else len(x)
            begin, share = deadline.now(), deadline.share(_TO_PROPOSE)
            samples, labels = x[:given].astype(np.int16), y[:given]
            if guessed:
                labels = self._pseudo_labels(now, samples)
                if (labels == UNLABELLED).all():
                    records.append(_dropped(name, "no answer is sure enough to stand for a label") | {"ms": 0.0})
                    continue
            if name == "domain" and self._domains_turn(now, fresh):
                now, without = self._without_worse(now, judge, deadline)
                records += without
            now, candidate, sets = rungs[name](now, samples, labels, share)
            if sets is None:
                continue
            now, record = self._judged(name, labelled, now, candidate, sets, judge, deadline)
            if guessed:
                record["pseudo_labels"] = int((labels != UNLABELLED).sum())
            records.append({**record, "ms": round(1000 * (deadline.now() - begin), 3)})
        return now, records

    def _propose_statistics(
        self, now: Learnt, x: NDArray[np.int16], y: NDArray[np.int16], deadline: Deadline
    ) -> Proposal:
        order = self._sets[now.turn :] + self._sets[: now.turn]
        proposed, statistics, done = now.parameters, now.statistics, 0
        try:
            for which in order:
                proposed, statistics = self._statistics.propose(which, proposed, statistics, x, deadline.check)
                done += 1
        except OutOfTime:
            pass  # the others come first in the next step
        turn = (now.turn + done) % len(self._sets)
        return replace(now, statistics=statistics, turn=turn), self._toward(now, proposed), order[:done]

    def _toward(self, now: Learnt, proposed: Parameters) -> Candidate:
        """Candidates between parameters in force and proposed ones."""
        twins = now.calibration.twins
        return lambda share, sets, check: Calibration(
            blended(self._model.graph, now.parameters, proposed, share), twins
        )

    def _pseudo_labels(self, now: Learnt, x: NDArray[np.int16]) -> NDArray[np.int16]:
        """What the widest set says of samples x (N, H, W, C), (N,); UNLABELLED where it is less sure than that.

        Lee, "Pseudo-label", 2013, with a threshold as in Sohn et al., "FixMatch", 2020.
        """
        assert self._config.pseudo_labels is not None  # else none are asked for
        widest = self._sets[len(self._model.graph.widths) - 1]
        logs = log_softmax(logits(self._model.replace(parameters=now.parameters), (widest,), x)[widest.name])
        sure = np.exp(logs.max(1)) > self._config.pseudo_labels
        return np.where(sure, logs.argmax(1), UNLABELLED).astype(np.int16)

    def _propose_biases(self, now: Learnt, x: NDArray[np.int16], y: NDArray[np.int16], deadline: Deadline) -> Proposal:
        config, factory, layer = self._config, self._model.parameters, output_layer(self._model.graph)
        assert layer is not None  # else there are no classes
        labelled = y != UNLABELLED
        x, y = np.concatenate([self._x, x[labelled]]), y[labelled]
        answers = np.concatenate([self._y, y])
        weights = np.concatenate([np.full(len(self._y), config.core_weight), np.ones(len(y))])
        proposed, past, done = now.parameters, now.biases, []
        sets = tuple(which for which in self._sets if not self._fixed[which.row, layer.index])
        try:
            found = logits(self._model.replace(parameters=proposed), sets, x, deadline.check)
        except OutOfTime:
            return now, self._toward(now, proposed), ()
        for which in sets:
            z, row = found[which.name] - output_biases(proposed, factory, layer, which.row), which.row
            a = past.a[row] + config.bias_prior * np.eye(z.shape[1])
            b = fit_biases(z, answers, weights, a, past.c[row])
            past = past.with_batch(row, z[len(self._y) :], y, b, config.bias_memory)
            proposed = with_output_biases(proposed, factory, layer, row, b)
            done.append(which)
        return replace(now, biases=past), self._toward(now, proposed), tuple(done)

    def _propose_head(
        self, fresh: int, now: Learnt, x: NDArray[np.int16], y: NDArray[np.int16], deadline: Deadline
    ) -> Proposal:
        assert self._head is not None  # else it is passed over
        labelled, read, most = y != UNLABELLED, [], self._config.head_samples
        fits: dict[int, Fit] = {}
        order = self._sets[now.turn :] + self._sets[: now.turn]
        try:
            for which in self._sets:
                deadline.check()
                read.append(self._head.features(which, x[labelled]))
            now = replace(
                now, examples=now.examples.with_samples(by_row(now.parameters, self._sets, read), y[labelled], most)
            )
            if self._domains_turn(now, fresh):
                return now, self._toward(now, now.parameters), None
            for which in order:
                features = now.examples.features[which.row]
                fits[which.row] = self._head.fit(which, features, now.examples.y, deadline.check)
        except OutOfTime:
            pass
        now, head = replace(now, turn=(now.turn + len(fits)) % len(self._sets)), self._head

        def candidate(share: float, sets: tuple[ParameterSet, ...], check: Check) -> Calibration:
            return Calibration(head.candidate(now.parameters, fits, share, sets, check), now.calibration.twins)

        return now, candidate, order[: len(fits)]

    def _propose_domain(
        self, fresh: int, now: Learnt, x: NDArray[np.int16], y: NDArray[np.int16], deadline: Deadline
    ) -> Proposal:
        assert self._domains is not None and now.domain is not None  # else it is passed over, and `prepared` has it
        known, nothing, turn = y != UNLABELLED, self._toward(now, now.parameters), self._domains_turn(now, fresh)
        domain = now.domain
        now = replace(now, domain=replace(domain, turns=domain.turns + 1))  # it has had its turn, if time is over too
        try:
            domain, parameters = self._domains.seen(domain, x[:fresh], x[known], y[known], deadline.check)
            now = replace(now, domain=domain)
            if not turn:
                return now, nothing, None
            twins = self._domains.propose(domain, parameters, deadline.check)
        except OutOfTime:
            return now, nothing, ()
        return now, lambda share, sets, check: Calibration(now.parameters, twins), self._sets

    def _domains_turn(self, now: Learnt, fresh: int) -> bool:
        """Whether this step is for twins, if there is anything new; the next one is for the sets' own classifiers."""
        return fresh > 0 and now.domain is not None and (self._head is None or now.domain.turns % 2 == 1)

    def _without_worse(self, now: Learnt, judge: Judging, deadline: Deadline) -> tuple[Learnt, list[dict[str, Any]]]:
        """Without twins that do worse than their sets by themselves, by more than chance; and a record of that."""
        (parameters, twins), sets = now.calibration, tuple(now.calibration.gates)
        if not sets or twins is None or not self._config.guarded:
            return now, []
        alone = Calibration(parameters, replace(twins, gates={}))
        try:
            judged = judge(now.calibration, alone, sets, math.inf, dict.fromkeys(sets, _NO_TWIN_DOUBT), deadline)
        except OutOfTime:
            return now, []
        if judged is None or not judged.verdict.promote:
            return now, []
        names = [which.name for which in judged.sets]
        record = judged.verdict.record("domain", nbytes=0, ms=0.0) | {
            "sets": names,
            "shares": dict.fromkeys(names, 0.0),
        }
        return now.with_calibration(now.calibration.with_sets(judged.sets, alone)), [record]

    def _propose_flips(self, now: Learnt, x: NDArray[np.int16], y: NDArray[np.int16], deadline: Deadline) -> Proposal:
        assert self._flips is not None and now.parameters.flips is not None  # the configuration has this rung
        labelled, kept = y != UNLABELLED, self._streamed(now.core)
        samples = np.concatenate([self._x, kept.x, x[labelled]]).astype(np.int8)
        answers = np.concatenate([self._y, kept.y, y[labelled]])
        source = np.arange(len(answers)) < len(self._y)
        weights = np.where(source, self._config.core_weight, 1.0)
        latents, flips, done = now.latents.copy(), now.parameters.flips.copy(), []
        rng = random_from_array(now.random)
        try:
            for which in self._sets:
                latents[which.row] = self._flips.propose(
                    which, now.parameters, latents[which.row], samples, answers, weights, source, rng, deadline.check
                )
                flips[which.row] = flips_of(latents[which.row], positions(self._model, which))
                done.append(which)
        except OutOfTime:
            pass
        learnt = replace(now, latents=latents, random=random_to_array(rng))
        return learnt, self._toward(now, now.parameters.replace(flips=flips)), tuple(done)

    def _streamed(self, core: CoreSet) -> CoreSet:
        """Labelled samples of the stream in the core set that no slice has."""
        usable = ~core.from_factory & (core.y != UNLABELLED) & ~held_out(core.ids, self._config.seed)
        return core.take(np.flatnonzero(usable))

    def _judged(
        self,
        name: str,
        labelled: bool,
        now: Learnt,
        candidate_for: Candidate,
        sets: tuple[ParameterSet, ...],
        judge: Judging,
        deadline: Deadline,
    ) -> tuple[Learnt, dict[str, Any]]:
        if not sets:
            return now, _dropped(name, "time was over before a set was done; give a larger max_ms")
        calibration, rest, config = now.calibration, sets, self._config
        fitted = name == "head" or (name == "domain" and labelled and self._head is not None)
        forgetting = config.head_forgetting if fitted else config.forgetting
        doubt = dict.fromkeys(sets, _HEAD_DOUBT if name == "head" else 0.0)
        before = now.calibration
        if name == "domain":
            doubt = {which: _TWIN_DOUBT if which in before.gates else _FIRST_TWIN_DOUBT for which in sets}
        else:  # a set by itself is to be right for what takes it, so twins are left out
            before = Calibration(now.parameters)
        record: dict[str, Any] = {}
        shares: dict[str, float] = {}
        try:
            for share in _SHARES_OF.get(name, SHARES):
                candidate = candidate_for(share, rest, deadline.check)
                if not self._config.guarded:
                    record = {"what": name, "promoted": True, "reasons": ["there is no guard"]}
                    calibration = calibration.with_sets(sets, candidate)
                    return now.with_calibration(calibration), {**record, "sets": [which.name for which in sets]}
                after = candidate if name == "domain" else Calibration(candidate.parameters)
                judged = judge(before, after, rest, forgetting, doubt, deadline)
                if judged is None:
                    return now, _dropped(name, "nothing to judge it on: no sample of the stream was held out")
                nbytes = len(judged.sets) * _row_bytes(candidate.parameters)
                found = judged.verdict.record(name, nbytes=nbytes, ms=0.0)
                if judged.verdict.promote:
                    calibration = calibration.with_sets(judged.sets, candidate)
                    shares |= {which.name: share for which in judged.sets}
                    rest = tuple(which for which in rest if which not in judged.sets)
                    record = _merged(record, found)
                elif not record:
                    record = found
                if not rest:
                    break
        except OutOfTime:
            if not record:
                return now, _dropped(name, "time was over before it was judged; give a larger max_ms")
        return now.with_calibration(calibration), {**record, "sets": list(shares), "shares": shares}


def _merged(record: dict[str, Any], promoted: dict[str, Any]) -> dict[str, Any]:
    """One record of sets that were promoted one after the other; what was refused before says nothing then."""
    if not record.get("promoted"):
        return promoted
    scores = {key: {**record[key], **promoted[key]} for key in ("accuracy_before", "accuracy_after")}
    return {**record, **scores, "bytes": record["bytes"] + promoted["bytes"]}


def _dropped(name: str, reason: str) -> dict[str, Any]:
    return {"what": name, "promoted": False, "reasons": [reason], "sets": []}


def _row_bytes(p: Parameters) -> int:
    rows = (p.gain, p.gain_exponent, p.bias, p.bias_exponent, *(() if p.head is None else (p.head,)))
    return sum(values[0].nbytes for values in rows)
