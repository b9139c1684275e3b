"""Robust importance sampling (Johnson & Guestrin 2018, section 4): the uncertainty set. Pure.

The gradient norms v* of the n examples are unknown. RAIS describes them by an axis-aligned
ellipsoid around an estimate, ⟨c, s_i⟩ ± √⟨d, s_i⟩, linear in non-negative features s_i [K] of
each example, and draws by the proposal that is best for the worst v in it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Of the mean feature, in units of the bias: keeps ⟨d, s⟩, by which (PT) divides, above 0.
_SMALLEST_UNCERTAINTY = 1e-6
_ITERATIONS = 100
_TOLERANCE = 1e-5
_SMALLEST_STEP = 1e-6
_AT_THE_BOUND = 1e-9
_EXCHANGES = 10
_RIDGE = 1e-5
# Multiplications in a product for which OpenBLAS wakes no other thread.
_OF_ONE_THREAD = 1 << 18


class UncertaintySet(NamedTuple):
    """U_cd = {v ≥ 0 : mean_i Q_cd(s_i, v_i) ≤ 1}  (section 4.2).

    Attributes:
        c: [K] ≥ 0; ⟨c, s_i⟩ estimates the norm v_i.
        d: [K] ≥ 0; ⟨d, s_i⟩ is the estimate's uncertainty, a variance.
    """

    c: np.ndarray
    d: np.ndarray


class TrainingSet(NamedTuple):
    """Recent visits, by which c and d are trained (section 4.3).

    Attributes:
        features: [D, K] s̃, non-negative, as they were before the visit.
        norms: [D] ṽ, the norms that the visits saw.
        weights: [D] w̃ = 1/(n p_i) at the visits' times.
        mean_features: [K] the mean of s_i over all n examples.
    """

    features: np.ndarray
    norms: np.ndarray
    weights: np.ndarray
    mean_features: np.ndarray


def robustness(num_examples, total_uncertainty: tf.Tensor) -> tf.Tensor:
    """k = √(n / Σ_j⟨d, s_j⟩)  (Proposition 4.1); 0 where nothing is uncertain.

    Args:
        num_examples: n.
        total_uncertainty: Σ_j⟨d, s_j⟩ over all examples.
    """
    total = tf.convert_to_tensor(total_uncertainty)
    return tf.sqrt(tf.math.divide_no_nan(tf.cast(num_examples, total.dtype), total))


def worst_case_norms(estimates: tf.Tensor, uncertainties: tf.Tensor) -> tf.Tensor:
    """v_i = ⟨c, s_i⟩ + k⟨d, s_i⟩, the solution of (PRC′)  (Proposition 4.1).

    Args:
        estimates: [n] ⟨c, s_i⟩. uncertainties: [n] ⟨d, s_i⟩.
    Returns:
        [n] v; the minimax optimal proposal is v_i / Σ_j v_j.
    """
    k = robustness(tf.size(uncertainties), tf.reduce_sum(uncertainties))
    return estimates + k * uncertainties


def surprise(estimates: tf.Tensor, uncertainties: tf.Tensor, norms: tf.Tensor) -> tf.Tensor:
    """Q_cd(s, v) = (⟨c, s⟩ − v)² / ⟨d, s⟩, and 0 where both are 0  (section 4.2)."""
    return tf.math.divide_no_nan((estimates - norms) ** 2, uncertainties)


def outlier_scales(
    estimates: tf.Tensor, uncertainties: tf.Tensor, norms: tf.Tensor, threshold: float
) -> tf.Tensor:
    """Factors for the losses of outliers, 1 for all others  (section 4.5).

    An outlier has Q > τ; its f_i is scaled until Q = τ: (⟨c, s⟩ + √(τ⟨d, s⟩)) / v. Read as the
    gradient clipping that it is meant to be: a norm far *below* its estimate would have to be
    scaled up, and is left alone.

    Args:
        estimates, uncertainties: [b] ⟨c, s_i⟩, ⟨d, s_i⟩. norms: [b] v_i, finite.
        threshold: τ.
    Returns:
        [b] in (0, 1].
    """
    return limited(norms, outlier_limits(estimates, uncertainties, threshold))


def outlier_limits(
    estimates: tf.Tensor, uncertainties: tf.Tensor, threshold: float
) -> tf.Tensor:
    """⟨c, s⟩ + √(τ⟨d, s⟩), the largest norm that is no outlier; infinite where ⟨d, s⟩ is 0: [b].

    Args:
        estimates, uncertainties: [b] ⟨c, s_i⟩, ⟨d, s_i⟩. threshold: τ.
    """
    largest = estimates + tf.sqrt(threshold * uncertainties)
    return tf.where(uncertainties > 0, largest, float("inf"))


def limited(norms: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Factors that bring norms above their limits down to them, 1 for all others: [b] in (0, 1]."""
    over = norms > limits
    return tf.where(over, tf.math.divide_no_nan(limits, norms), tf.ones_like(norms))


def train(
    data: TrainingSet, start: UncertaintySet | None = None, smallest_estimate: float = 0.0
) -> UncertaintySet | None:
    """c, d = argmin {Σ_i⟨d, s_i⟩ : c, d ≥ 0, mean_j w̃_j Q_cd(s̃_j, ṽ_j) ≤ 1}  (PT).

    With A(d) the mean of ⟨d, s_i⟩ and B(c, d) the constraint's left side: scaling d by t
    scales A by t and B by 1/t, so that the optimum has B = 1 and minimizes A·B. So does
    A + B, whose minimum along a ray of d is 2√(AB), and which is convex without constraint.
    Newton's method within the bounds minimizes it, in units in which the mean norm and all mean
    features are 1; then d is scaled to B = 1.

    Args:
        data: the training set. Its last feature is the bias, 1 for every example.
        start: where to start from, such as the set before.
        smallest_estimate: the bias's entry of c is at least this share of the mean norm, so
            that every example has a positive probability.
    Returns:
        The set; None where no positive norm with a positive weight is there to learn from.
    """
    problem = _scaled(data)
    if problem is None:
        return None
    scaled, unit, units = problem
    size = len(units)
    first = np.full(2 * size, 1.0 / size)
    if start is not None:
        first = np.concatenate([start.c * units / unit, start.d * units / unit**2])
    lower = np.zeros(2 * size)
    lower[size - 1], lower[-1] = smallest_estimate, _SMALLEST_UNCERTAINTY
    found = _minimized(scaled, np.maximum(first, lower), lower)
    c, d = np.split(found, 2)
    tight = constraint(c, d, scaled)
    return UncertaintySet(c * unit / units, d * tight * unit**2 / units)


def constraint(c: np.ndarray, d: np.ndarray, data: TrainingSet) -> float:
    """B = mean_j w̃_j Q_cd(s̃_j, ṽ_j), the left side of (PT)'s constraint."""
    residuals, uncertainties = _against(c, d, data)
    return float((data.weights * residuals * residuals / uncertainties).mean())


def objective(parameters: np.ndarray, data: TrainingSet) -> float:
    """A(d) + B(c, d) of `train`.

    Args:
        parameters: [2K] c and d.
        data: the training set.
    """
    c, d = np.split(parameters, 2)
    return float(np.dot(data.mean_features, d)) + constraint(c, d, data)


def derivatives(parameters: np.ndarray, data: TrainingSet) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [2K] and Hessian [2K, 2K] of `objective`.

    With x_j = (s̃_j, −(r_j/q_j) s̃_j), r the residual and q = ⟨d, s̃⟩, B has the gradient
    mean_j w̃_j (2 r_j/q_j s̃_j, −(r_j/q_j)² s̃_j) and the Hessian mean_j 2 w̃_j/q_j x_j x_jᵀ,
    which shows that it is convex.
    """
    c, d = np.split(parameters, 2)
    residuals, uncertainties = _against(c, d, data)
    shares = residuals / uncertainties
    weights = data.weights / len(data.norms)
    pulls = weights * shares
    by_c, pulled = np.einsum("pj,jk->pk", np.stack([2 * pulls, pulls * shares]), data.features)
    roots = np.sqrt(2 * weights / uncertainties)
    x = data.features.T * np.stack([roots, -shares * roots])[:, np.newaxis]
    hessian = _squared(x.reshape(len(parameters), -1))
    return np.concatenate([by_c, data.mean_features - pulled]), hessian


def _squared(x: np.ndarray) -> np.ndarray:
    """x xᵀ of x [m, D]; by parts small enough for BLAS to do each in the thread that asks for it.

    Its own threads would wait for each other while steps go on.
    """
    parts = len(x) * x.size // _OF_ONE_THREAD + 1
    return sum(part @ part.T for part in np.array_split(x, parts, axis=1))


def _against(c: np.ndarray, d: np.ndarray, data: TrainingSet) -> np.ndarray:
    """⟨c, s̃⟩ − ṽ and ⟨d, s̃⟩: [2, D]."""
    products = np.einsum("pk,jk->pj", np.stack([c, d]), data.features)
    products[0] -= data.norms
    return products


def _minimized(data: TrainingSet, point: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """argmin objective over parameters ≥ lower, by Newton steps within the bounds."""
    point = _scaled_along_its_ray(point, lower, data)
    value = objective(point, data)
    for _ in range(_ITERATIONS):
        gradient, hessian = derivatives(point, data)
        step, gain = _newton_step(point - lower, gradient, hessian)
        size = 1.0
        # Where no step of worth is in sight, or none is found in spite of it.
        while gain > _TOLERANCE * value and size > _SMALLEST_STEP:
            reached = objective(point + size * step, data)
            if reached < value:
                break
            size /= 4
        else:
            break
        point, value = np.maximum(point + size * step, lower), reached
    return point


def _newton_step(
    room: np.ndarray, gradient: np.ndarray, hessian: np.ndarray
) -> tuple[np.ndarray, float]:
    """The step s ≥ −room that minimizes the model g·s + ½ sᵀHs, and what the model gains by it.

    Within the bounds: to cut a free step off at them, as a projection does, is no descent where
    features are as much alike as these, and stalls far from the optimum.
    """
    units = np.sqrt(np.maximum(np.diag(hessian), np.finfo(np.float32).tiny))
    scaled = hessian / np.outer(units, units)
    # Moving averages of like lengths are nearly the same feature.
    scaled[np.diag_indices_from(scaled)] += _RIDGE
    room = room * units
    pull = scaled @ room - gradient / units
    step = _nonnegative_minimum(scaled, pull, room > 0) - room
    model = gradient / units @ step + step @ scaled @ step / 2
    return step / units, float(-model)


def _nonnegative_minimum(matrix: np.ndarray, pull: np.ndarray, free: np.ndarray) -> np.ndarray:
    """argmin ½ yᵀAy − ⟨pull, y⟩ over y ≥ 0, an active-set method (Lawson & Hanson 1974, 23.10).

    Args:
        matrix: [m, m] A, positive definite.
        pull: [m].
        free: [m] which y to begin with as positive; a guess.
    """
    point, free = np.zeros_like(pull), free.copy()
    for _ in range(_EXCHANGES * len(pull)):
        goal = np.zeros_like(pull)
        goal[free] = np.linalg.solve(matrix[np.ix_(free, free)], pull[free])
        against = free & (goal <= 0)
        if against.any():
            # As far as the first bound; what stands on it is fixed.
            reach = np.min(point[against] / (point[against] - goal[against]), initial=1.0)
            point = np.where(free, point + reach * (goal - point), 0.0)
            free &= ~(against & (point <= _AT_THE_BOUND * np.abs(goal).max()))
            point[~free] = 0.0
            continue
        point = goal
        slopes = np.where(free, 0.0, pull - matrix @ point)
        best = int(np.argmax(slopes))
        if slopes[best] <= _AT_THE_BOUND * np.abs(pull).max():
            break
        free[best] = True
    return point


def _scaled_along_its_ray(point: np.ndarray, lower: np.ndarray, data: TrainingSet) -> np.ndarray:
    """The same c, and the best multiple of d: the one at which A = B."""
    c, d = np.split(point, 2)
    best = np.sqrt(constraint(c, d, data) / (data.mean_features @ d))
    return np.maximum(np.concatenate([c, best * d]), lower)


def _scaled(data: TrainingSet) -> tuple[TrainingSet, float, np.ndarray] | None:
    """The training set in units of its mean norm and mean features, and these units."""
    # A feature in a row: NumPy goes along rows several times faster.
    columns = np.asarray(data.features, np.float64).T.copy()
    norms, weights, means = (np.asarray(part, np.float64) for part in data[1:])
    total = weights.sum()
    unit = np.einsum("j,j", weights, norms) / total if total > 0 else 0.0
    if not (np.isfinite(unit) and unit > 0):
        return None
    units = np.einsum("kj,j->k", columns, weights) / total
    # A feature that is always 0 has no unit and no use.
    units = np.where(units > 0, units, 1.0)
    columns /= units[:, np.newaxis]
    return TrainingSet(columns.T, norms / unit, weights, means / units), unit, units
