"""Robust importance sampling (Johnson & Guestrin 2018, section 4): the uncertainty set. Pure.

The gradient norms v* of the n examples are unknown. RAIS describes them by an axis-aligned
ellipsoid around an estimate, ⟨c, s_i⟩ ± √⟨d, s_i⟩, linear in non-negative features s_i [K] of
each example, and draws by the proposal that is best for the worst v in it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.optimize
import tensorflow as tf

# Of the mean feature, in units of the bias: keeps ⟨d, s⟩, by which (PT) divides, above 0.
_SMALLEST_UNCERTAINTY = 1e-6
_ITERATIONS = 300


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
    largest = estimates + tf.sqrt(threshold * uncertainties)
    outlier = (norms > largest) & (uncertainties > 0)
    return tf.where(outlier, tf.math.divide_no_nan(largest, norms), tf.ones_like(norms))


def train(
    data: TrainingSet, start: UncertaintySet | None = None, smallest_estimate: float = 0.0
) -> UncertaintySet | None:
    """c, d = argmin {Σ_i⟨d, s_i⟩ : c, d ≥ 0, mean_j w̃_j Q_cd(s̃_j, ṽ_j) ≤ 1}  (PT).

    With A(d) the mean of ⟨d, s_i⟩ and B(c, d) the constraint's left side: scaling d by t
    scales A by t and B by 1/t, so that the optimum has B = 1 and minimizes A·B. So does
    A + B, whose minimum along a ray of d is 2√(AB), and which is convex without constraint.
    L-BFGS-B minimizes it, in units in which the mean norm and all mean features are 1; then d
    is scaled to B = 1.

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
    found = scipy.optimize.minimize(
        objective,
        np.maximum(first, lower),
        args=(scaled,),
        jac=True,
        method="L-BFGS-B",
        bounds=[(bound, None) for bound in lower],
        options={"maxiter": _ITERATIONS, "ftol": 1e-9, "gtol": 1e-7, "maxcor": 2 * size},
    )
    c, d = np.split(found.x, 2)
    tight = constraint(c, d, scaled)
    return UncertaintySet(c * unit / units, d * tight * unit**2 / units)


def constraint(c: np.ndarray, d: np.ndarray, data: TrainingSet) -> float:
    """B = mean_j w̃_j Q_cd(s̃_j, ṽ_j), the left side of (PT)'s constraint."""
    residuals = data.features @ c - data.norms
    return float(np.mean(data.weights * residuals**2 / (data.features @ d)))


def objective(parameters: np.ndarray, data: TrainingSet) -> tuple[float, np.ndarray]:
    """A(d) + B(c, d) of `train` and its gradient.

    Args:
        parameters: [2K] c and d.
        data: the training set.
    Returns:
        Value and [2K] gradient.
    """
    c, d = np.split(parameters, 2)
    residuals = data.features @ c - data.norms
    shares = residuals / (data.features @ d)
    pulls = data.weights * shares / len(residuals)
    value = data.mean_features @ d + pulls @ residuals
    by_c = 2 * data.features.T @ pulls
    by_d = data.mean_features - data.features.T @ (pulls * shares)
    return float(value), np.concatenate([by_c, by_d])


def _scaled(data: TrainingSet) -> tuple[TrainingSet, float, np.ndarray] | None:
    """The training set in units of its mean norm and mean features, and these units."""
    features, norms, weights, means = (np.asarray(part, np.float64) for part in data)
    total = weights.sum()
    unit = weights @ norms / total if total > 0 else 0.0
    if not (np.isfinite(unit) and unit > 0):
        return None
    units = weights @ features / total
    # A feature that is always 0 has no unit and no use.
    units = np.where(units > 0, units, 1.0)
    return TrainingSet(features / units, norms / unit, weights, means / units), unit, units
