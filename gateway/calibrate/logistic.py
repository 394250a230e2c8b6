"""How are the layer's weights fitted?   Penalised logistic regression on a decision's inputs, with Gaussian priors."""

import math
from collections.abc import Mapping, Sequence

from gateway.calibration import EDGE, Layer, Row, sigmoid, taken
from gateway.off_policy import effective

STEPS = 25
Prior = tuple[float, float]  # a weight's mean, for a standardised input, and its precision (L2 penalty)


def fit(
    rows: Sequence[Row],
    hits: Sequence[bool | None],
    priors: Mapping[str, Prior],
    stand_for: Sequence[float] | None = None,
) -> Layer:
    """The layer fitted to the outcomes `hits` (None: not known), on the inputs that `priors` name, each with two values
    or more.

    `stand_for`: importance weights of the outcomes, 1 by default; they are scaled to sum up to the effective sample
    size. Means and scales are those of all rows, so without any outcome the layer has the priors' means.
    """
    columns = {name: [taken(name, row[name]) for row in rows if name in row] for name in priors}
    means = {name: sum(column) / len(column) for name, column in columns.items()}
    scales = {name: _spread(column, means[name]) for name, column in columns.items()}
    counts = stand_for or [1.0] * len(rows)
    known = [one for one in zip(rows, hits, counts, strict=True) if one[1] is not None]
    inputs = [
        [1.0, *((taken(name, row[name]) - means[name]) / scales[name] if name in row else 0.0 for name in priors)]
        for row, _, _ in known
    ]
    scale = effective([count for _, _, count in known]) / (sum(count for _, _, count in known) or 1.0)
    outcomes = [(bool(hit), scale * count) for _, hit, count in known]
    intercept, *weights = _newton(inputs, outcomes, [(0.0, EDGE), *priors.values()])
    return Layer(intercept, dict(zip(priors, weights, strict=True)), means, scales)


def _spread(column: Sequence[float], mean: float) -> float:
    """The standard deviation."""
    return math.sqrt(sum((value - mean) ** 2 for value in column) / len(column))


def _newton(
    inputs: Sequence[Sequence[float]], outcomes: Sequence[tuple[bool, float]], priors: Sequence[Prior]
) -> list[float]:
    """The weights of maximum penalised likelihood (MAP), by Newton's method with bounded steps; `outcomes`: hit and
    weight."""
    size = len(priors)
    weights = [mean for mean, _ in priors]
    for _ in range(STEPS):
        slope = [penalty * (mean - weight) for weight, (mean, penalty) in zip(weights, priors, strict=True)]
        bend = [[priors[i][1] if i == j else 0.0 for j in range(size)] for i in range(size)]
        for row, (hit, count) in zip(inputs, outcomes, strict=True):
            p = sigmoid(sum(map(float.__mul__, weights, row)))
            _gather(slope, bend, row, (count * (hit - p), count * max(p * (1 - p), 1e-9)))
        move = solve(bend, slope)
        weights = [weight + min(max(step, -2.0), 2.0) for weight, step in zip(weights, move, strict=True)]
        if max(map(abs, move)) < 1e-6:
            break
    return weights


def _gather(slope: list[float], bend: list[list[float]], row: Sequence[float], pull: tuple[float, float]) -> None:
    """Adds one row's share to the gradient and to the lower half of the Hessian."""
    off, weight = pull
    for i, value in enumerate(row):
        slope[i] += off * value
        scaled, line = weight * value, bend[i]
        for j in range(i + 1):
            line[j] += scaled * row[j]


def solve(lower: list[list[float]], right: Sequence[float]) -> list[float]:
    """x with A x = right, for a symmetric positive definite A given by its lower half (Cholesky)."""
    size = len(right)
    root = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = lower[i][j] - sum(map(float.__mul__, root[i][:j], root[j][:j]))
            root[i][j] = math.sqrt(rest) if i == j else rest / root[j][j]
    down: list[float] = []
    for i in range(size):
        down.append((right[i] - sum(map(float.__mul__, root[i][:i], down))) / root[i][i])
    up = [0.0] * size
    for i in reversed(range(size)):
        up[i] = (down[i] - sum(root[k][i] * up[k] for k in range(i + 1, size))) / root[i][i]
    return up
