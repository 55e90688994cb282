"""Logistic regression that is drawn to what was before, solved without a line search, and put into codes of few bits.

With weights W (K, D), biases b (K,) and the features' root mean squares r, the loss is convex, and its gradient a
product of errors and features:

    minimize    sum over samples of w (log sum exp(z) - z[y]) + ridge / 2 (|(W - W0) r|^2 + |b - b0|^2)
                + spread / 2 tr((W - W0) V (W - W0)^T)                                              z = W x + b

W0, b0: the classifier before. V: the features' covariance within a class, mean of the source's and the stream's: a few
samples of the source stand for its others, which differ from them as samples of a class do (noise on features comes to
such a term: Bishop, "Training with noise is equivalent to Tikhonov regularization", 1995).

The fit is by Böhning's bound ("Multinomial logistic regression algorithm", 1992): the Hessian is at most half of that
of least squares, whatever W is, so one matrix is inverted, once, and steps need no line search. They are accelerated
(Nesterov, with restarts: O'Donoghue and Candès, 2015), and end early: where weights still move after 300 steps, it is
along directions that the samples hardly ask for.

Codes: for each class a unit u and multiplicands m of some bits, near the least of (m u - W) A (m u - W), A the
features' covariance: the unit by search, multiplicands by rounding and then one after the other, each making up for the
errors of the others (coordinate descent, as Nagel et al., "Up or down?", 2020, ask for, on all samples at once; at 8
bits rounding is enough). What rounding moves the mean of the outputs by, the bias takes back. Last, single codes move
by one where that lowers the loss itself: errors at 2 bits are so large that the loss is no quadratic of them any more.

K classes, D features, N samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from caq.calibration.biases import log_softmax
from caq.calibration.statistics import Check
from caq.quant import TOP_WIDTH, multiplicand_limit

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Steps of a fit at most, and at least where there are many samples: so many sample-steps are enough.
STEPS, _FEWEST, _SAMPLE_STEPS = 300, 60, 60_000
#: What the largest change of a step is when it is close enough, and steps between looks at the clock: a third of a
#: millisecond or so, so that a thread that rests there leaves the interpreter to others soon.
_CLOSE, _CHECKED = 1e-4, 4
#: Columns that are rounded at once, up to the first that moves.
_COLUMNS = 16
#: Features up to which a fit of fewer samples looks at all of them: the decomposition's code alone takes 0.7 MiB.
_WIDE = 256
#: Units to try, as shares of that at which no weight is clipped, below 8 bits; passes over the multiplicands.
_UNITS, _PASSES = np.linspace(0.25, 1.0, 16), 3
#: Codes that are moved after that, at most, and what a move is to save of the loss, nats of a sample of weight 1.
_MOVES, _WORTH = 100, 0.02


class Classifier(NamedTuple):
    """Weights (K, D) and biases (K,), float64."""

    weights: NDArray[np.float64]
    biases: NDArray[np.float64]


class Codes(NamedTuple):
    """A classifier whose weights are multiplicands m (K, D) times units (K,), and its biases (K,)."""

    m: NDArray[np.float64]
    unit: NDArray[np.float64]
    biases: NDArray[np.float64]


class Problem(NamedTuple):
    """What is minimized: see the module.

    x (N, D), y (N,): features and labels; samples (N,): what they weigh; before: W0 and b0. within (N', D):
    differences of samples, whose products' sum, within^T within, is V times the spread.
    """

    x: NDArray[np.float64]
    y: NDArray[np.integer]
    samples: NDArray[np.float64]
    before: Classifier
    ridge: float
    within: NDArray[np.float64]

    @property
    def squares(self) -> NDArray[np.float64]:
        """Mean squares (D,) of the features, of which r is the root; 1 for a feature that is 0 everywhere."""
        found: NDArray[np.float64] = self.samples @ np.square(self.x) / self.samples.sum()
        found[found == 0] = 1.0
        return found


def fit_classifier(problem: Problem, check: Check = lambda: None, most: int = STEPS) -> Classifier:
    """The classifier of least loss, nearly. check: called every _CHECKED steps, of which there are at most `most`."""
    x, y, samples, (weights, biases), ridge, within = problem
    rms = np.sqrt(problem.squares)
    read = np.concatenate([x / rms, np.ones((len(x), 1))], axis=1)
    axes = np.eye(read.shape[1])
    if len(axes) > max(len(x), _WIDE):  # changes of what no sample reads are 0: their span is enough
        axes = np.linalg.qr((read * np.sqrt(samples)[:, None]).T)[0].T
    along, apart = read @ axes.T, (within / rms) @ axes[:, :-1].T
    penalty = ridge * np.eye(len(axes)) + apart.T @ apart
    rate = np.linalg.inv((along * (samples / 2)[:, None]).T @ along + penalty)
    z0, one = x @ weights.T + biases, np.eye(len(biases))[y]
    now = ahead = np.zeros((len(biases), len(axes)))
    t = 1.0
    for step in range(min(max(_SAMPLE_STEPS // len(x), _FEWEST), most)):
        if step % _CHECKED == 0:
            check()
        wrong = (np.exp(log_softmax(z0 + along @ ahead.T)) - one) * samples[:, None]
        new = ahead - (wrong.T @ along + ahead @ penalty) @ rate
        change = new - now
        if np.abs(change).max() < _CLOSE:
            now = new
            break
        if ((ahead - new) * change).sum() > 0:  # it overshot: begin again without momentum
            t = 1.0
        next_t = (1 + np.sqrt(1 + 4 * t * t)) / 2
        now, ahead, t = new, new + (t - 1) / next_t * change, next_t
    found = now @ axes
    return Classifier(weights + found[:, :-1] / rms, biases + found[:, -1])


def deviations(x: NDArray[np.float64], y: NDArray[np.integer]) -> NDArray[np.float64]:
    """Rows (N, D) whose products' sum is the covariance of samples x (N, D) within their classes y (N,)."""
    found, known = x.copy(), sorted(set(y.tolist()))
    for label in known:
        found[y == label] -= x[y == label].mean(0)
    return found / np.sqrt(max(len(y) - len(known), 1))


def round_weights(
    weights: NDArray[np.float64], covariance: NDArray[np.float64], width: int, check: Check = lambda: None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Multiplicands (K, D) of `width` bits and units (K,) for weights (K, D) of features with a covariance (D, D)."""
    limit, diagonal = multiplicand_limit(width) - (width == TOP_WIDTH), np.diag(covariance)
    largest = np.abs(weights).max(1)
    largest[largest == 0] = 1.0
    least, m, unit = np.full(len(weights), np.inf), np.zeros_like(weights), largest / limit
    for share in _UNITS if width != TOP_WIDTH else _UNITS[-1:]:
        check()
        u = share * largest / limit
        rounded = _rounded(weights / u[:, None], width)
        off = rounded * u[:, None] - weights
        error = ((off @ covariance) * off).sum(1)
        better = error < least
        least, unit = np.where(better, error, least), np.where(better, u, unit)
        m[better] = rounded[better]
    for _ in range(_PASSES if width != TOP_WIDTH else 0):
        slope, before, j = (m * unit[:, None] - weights) @ covariance, m.copy(), 0
        while j < m.shape[1]:
            check()
            some = slice(j, j + _COLUMNS)
            new = _rounded(m[:, some] - slope[:, some] / (diagonal[some] * unit[:, None]), width)
            (columns,) = (new != m[:, some]).any(axis=0).nonzero()
            if not len(columns):
                j += _COLUMNS
                continue
            first = int(columns[0])
            (moved,) = (new[:, first] != m[:, j + first]).nonzero()
            change = (new[:, first] - m[:, j + first])[moved] * unit[moved]
            slope[moved] += change[:, None] * covariance[j + first]
            m[:, j + first] = new[:, first]
            j += first + 1
        if np.array_equal(m, before):
            break
    # The unit that is best for these multiplicands; one that would turn them round is none.
    projected = m @ covariance
    best = (projected * weights).sum(1) / (projected * m).sum(1).clip(min=1e-30)
    return m, np.where(best > 0, best, unit)


def round_classifier(
    found: Classifier,
    mean: NDArray[np.float64],
    covariance: NDArray[np.float64],
    width: int,
    check: Check = lambda: None,
) -> Codes:
    """A classifier in codes of `width` bits; mean (D,), covariance (D, D): of the features."""
    m, unit = round_weights(found.weights, covariance, width, check)
    return Codes(m, unit, found.biases + (found.weights - m * unit[:, None]) @ mean)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # such moves are not made
def move_codes(problem: Problem, codes: Codes, width: int, check: Check = lambda: None) -> Codes:
    """Codes of `width` bits, single ones of which move, class by class, until the loss falls no more; none of 8 bits.

    Which code, slope and curvature tell; whether it moves, the loss itself. A class' bias follows by Newton's step.
    """
    if width == TOP_WIDTH:
        return codes
    x, y, samples, before, ridge, within = problem
    (m, unit, biases), limit = (codes.m.copy(), codes.unit, codes.biases.copy()), multiplicand_limit(width)
    penalty = within.T @ within
    penalty[np.diag_indices_from(penalty)] += ridge * problem.squares
    diagonal, squares = np.diag(penalty), np.square(x)
    z = x @ (m * unit[:, None]).T + biases
    e = np.exp(z - z.max(1, keepdims=True))
    total, still, moves, k = e.sum(1), 0, 0, 0
    while still < len(biases) and moves < _MOVES:
        if k % _CHECKED == 0:
            check()
        step, own = 2 * unit[k], samples * (y == k)
        p = e[:, k] / total
        pull = penalty @ (m[k] * unit[k] - before.weights[k])
        slope = (samples * p - own) @ x + pull
        curvature = (samples * p * (1 - p)) @ squares + diagonal
        sign = np.where(slope > 0, -1.0, 1.0)
        saved = np.where(np.abs(m[k] + 2 * sign) <= limit, step * (np.abs(slope) - step * curvature / 2), -np.inf)
        j = int(saved.argmax())
        by = step * sign[j]
        moved = e[:, k] * np.exp(by * x[:, j])
        after = total - e[:, k] + moved
        rise = samples @ np.log(after / total) + by * (pull[j] - own @ x[:, j]) + by * by * diagonal[j] / 2
        still += 1
        if saved[j] > _WORTH and rise < -_WORTH:
            p = moved / after
            slope_b = samples @ p - own.sum() + ridge * (biases[k] - before.biases[k])
            back = slope_b / (samples @ (p * (1 - p)) + ridge)
            e_new = moved * np.exp(-back)
            total_new = after - moved + e_new
            if ((total_new > 0) & np.isfinite(total_new)).all():  # else outputs are beyond what differences can tell
                still, moves = 0, moves + 1
                m[k, j] += 2 * sign[j]
                biases[k] -= back
                e[:, k], total = e_new, total_new
        k = (k + 1) % len(biases)
    return Codes(m, unit, biases)


def _rounded(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The nearest multiplicands: integers at 8 bits, odd ones below (caq.quant)."""
    limit = multiplicand_limit(width)
    if width == TOP_WIDTH:
        return np.minimum(np.maximum(np.rint(values), -limit), limit - 1)  # np.clip takes three times as long
    return np.minimum(np.maximum(2 * np.floor(values / 2) + 1, -limit), limit)
