"""How much importance sampling reduces the variance, and when that pays. Pure functions.

Sizes: B scored (the pre-sample), b trained on (the batch). A forward pass costs one unit, a
backward pass two, so a uniform step costs 3b and a step with importance sampling B + 3b.
"""

from __future__ import annotations

import math

import tensorflow as tf


def equivalent_batch_increase(proposal: tf.Tensor) -> tf.Tensor:
    """Batch-size factor τ that reduces variance as much as sampling from g.

    τ = (1 − ‖g − u‖² / Σg²)^(−1/2) = √(B Σg²)   (Katharopoulos & Fleuret 2018, eq. 26)

    Args:
        proposal: [B] sampling distribution g.
    Returns:
        Scalar, at least 1; 1 when g is uniform.
    """
    size = tf.cast(tf.size(proposal), proposal.dtype)
    return tf.sqrt(size * tf.reduce_sum(proposal**2))


def estimated_batch_increase(
    scores: tf.Tensor,
    weights: tf.Tensor | None = None,
    mean_sample_weight: float | tf.Tensor | None = None,
) -> tf.Tensor:
    """τ of the population, estimated from drawn examples and their weights.

    τ = √mean(w Ĝ²) / mean(w Ĝ), which for w = 1 is eq. 26 of the batch itself (line 17 of
    Algorithm 1), since g_i ∝ Ĝ_i.

    When a user's sample weights s are multiplied into w, mean(w) is E[s] rather than 1. The
    population is then taken to count each example s times: τ = √(E[s] mean(w Ĝ²)) / mean(w Ĝ),
    which does not depend on the scale of s.

    Args:
        scores: [b] scores of the drawn examples.
        weights: [b] their weights; all 1 by default.
        mean_sample_weight: E[s]; 1 by default.
    Returns:
        Scalar; not finite where the scores are unusable.
    """
    weighted = scores if weights is None else tf.cast(weights, scores.dtype) * scores
    second_moment = tf.reduce_mean(weighted * scores)
    if mean_sample_weight is not None:
        second_moment *= tf.cast(mean_sample_weight, scores.dtype)
    return tf.sqrt(second_moment) / tf.reduce_mean(weighted)


def effective_sample_size(proposal: tf.Tensor) -> tf.Tensor:
    """ESS = 1/Σg²: B when g is uniform, 1 when one example has all of it; B/ESS = τ².

    Args:
        proposal: [B] sampling distribution g.
    Returns:
        Scalar in [1, B].
    """
    return 1 / tf.reduce_sum(proposal**2)


def variance_reduction(scores: tf.Tensor) -> tf.Tensor:
    """Tr(V_u[G_i]) − Tr(V_g[w_i G_i]) = (mean ‖G_i‖)² B ‖g − u‖²   (eq. 23).

    Args:
        scores: [B] gradient norms ‖G_i‖.
    Returns:
        Scalar, at least 0, in squared gradient units, for a single draw.
    """
    size = tf.cast(tf.size(scores), scores.dtype)
    proposal = scores / tf.reduce_sum(scores)
    distance = tf.reduce_sum((proposal - 1 / size) ** 2)
    return tf.reduce_mean(scores) ** 2 * size * distance


def presample_batch_increase(
    tau: float | tf.Tensor, presample_size: int, batch_size: int
) -> tf.Tensor:
    """Batch-size factor κ = 1/(b/B + 1/τ²) that counts the pre-sample's own noise.

    The B scored examples are a uniform sample themselves. Drawing b of them from g leaves
    the variance of a uniform batch of B plus 1/τ² of that of a uniform batch of b, in all
    that of a uniform batch of κ b, at most B. (Cautious: the exact 1/κ is smaller by 1/B.)

    Args:
        tau: τ, at least 1.
        presample_size: B.
        batch_size: b.
    Returns:
        Scalar, at most B/b.
    """
    tau = tf.convert_to_tensor(tau, dtype_hint=tf.float32)
    return 1 / (batch_size / presample_size + 1 / tau**2)


def step_cost(presample_size: int, batch_size: int) -> float:
    """Cost of a step with importance sampling over a uniform one, (B + 3b)/(3b)."""
    return (presample_size + 3 * batch_size) / (3 * batch_size)


def guaranteed_threshold(presample_size: int, batch_size: int) -> float:
    """τ above which a speedup is guaranteed: B + 3b < 3τb   (section 3.3)."""
    return step_cost(presample_size, batch_size)


def break_even_threshold(presample_size: int, batch_size: int) -> float:
    """τ above which variance per unit of cost falls: τ > √((B + 3b)/(3b)).

    The variance of a mean falls as 1/b, so a uniform step needs a batch of τ² b to match.
    """
    return math.sqrt(step_cost(presample_size, batch_size))


def presample_break_even_threshold(presample_size: int, batch_size: int) -> float:
    """τ above which κ > (B + 3b)/(3b): the break-even with the pre-sample's noise counted.

    Infinite where even τ → ∞ cannot pay, B/b ≤ (B + 3b)/(3b), as for B ≤ 1.5 b.
    """
    margin = 1 / step_cost(presample_size, batch_size) - batch_size / presample_size
    return 1 / math.sqrt(margin) if margin > 0 else math.inf


def maximum_variance_reduction(presample_size: int, batch_size: int) -> float:
    """1/b² − 1/B², the most that drawing b of B can reduce it by (section 3.3)."""
    return 1 / batch_size**2 - 1 / presample_size**2


def maximum_speedup(presample_size: int, batch_size: int) -> float:
    """3B/(B + 3b): a uniform step of B over a step that scores B and trains on b; below 3.

    The paper (section 3.3) calls its reciprocal, the ratio of times, the maximum speedup.
    """
    return 3 * presample_size / (presample_size + 3 * batch_size)


def exact_gain_ratio(
    norms: tf.Tensor,
    mean_gradient_square: tf.Tensor,
    objective_gradient_square: tf.Tensor,
    batch_size: int,
) -> tf.Tensor:
    """r_O of the oracle, p_i ∝ v_i, from all n norms   (RAIS, eq. 5 in eq. 6).

    Args:
        norms: [n] ‖∇f_i‖.
        mean_gradient_square: ‖∇f̄‖², without regularization.
        objective_gradient_square: ‖∇F‖², with it.
        batch_size: |M|.
    Returns:
        Scalar, at least 1; 1 where all gradients are 0.
    """
    uniform, importance = tf.reduce_mean(norms**2), tf.reduce_mean(norms) ** 2
    rest = objective_gradient_square - mean_gradient_square / batch_size
    numerator, denominator = uniform / batch_size + rest, importance / batch_size + rest
    return tf.where(denominator > 0, tf.math.divide_no_nan(numerator, denominator), 1.0)


def covariance_trace(
    norms: tf.Tensor, scores: tf.Tensor, mean_gradient_square: float | tf.Tensor = 0.0
) -> tf.Tensor:
    """Tr Σ(q) of a draw by q_i ∝ ω̃_i, weighted   (Alain et al. 2015, eq. 6 and 9).

    Tr Σ(q) = (mean ω̃) (mean ‖g_i‖²/ω̃_i) − ‖g_TRUE‖²

    Args:
        norms: [n] ‖g_i‖, the true norms. scores: [n] ω̃_i ≥ 0, such as stale norms plus a constant.
        mean_gradient_square: ‖g_TRUE‖², or what stands for it (section B.2).
    Returns:
        Scalar; infinite where an example with a gradient is never drawn.
    """
    ratios = tf.where(norms > 0, norms**2 / scores, tf.zeros_like(norms))
    return tf.reduce_mean(scores) * tf.reduce_mean(ratios) - mean_gradient_square


def ideal_covariance_trace(
    norms: tf.Tensor, mean_gradient_square: float | tf.Tensor = 0.0
) -> tf.Tensor:
    """Tr Σ(q_IDEAL) = (mean ‖g_i‖)² − ‖g_TRUE‖², the least there is   (eq. 7)."""
    return tf.reduce_mean(norms) ** 2 - mean_gradient_square


def uniform_covariance_trace(
    norms: tf.Tensor, mean_gradient_square: float | tf.Tensor = 0.0
) -> tf.Tensor:
    """Tr Σ(q_UNIF) = mean ‖g_i‖² − ‖g_TRUE‖²   (eq. 8)."""
    return tf.reduce_mean(norms**2) - mean_gradient_square
