"""Each method makes the steps of its paper, and has the laws that it is used for."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import tf_importance as tfi
from tests.reference import variance_reduced as reference
from tf_importance import compat
from tf_importance.variance_reduced import scsg

RATE = 0.02


def test_svrg_makes_the_steps_of_the_paper(ridge, drawn):
    batches = drawn(17, 3)
    # The full gradient comes in batches of 10, 10 and 4.
    model = tfi.variance_reduced.SVRG(ridge.net(), ridge.batched(10), inner_steps=5)
    expected = reference.svrg(ridge.gradient, ridge.start, ridge.everything, batches, RATE, 5)
    np.testing.assert_allclose(ridge.iterates(model, batches, RATE), expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("momentum, sigma", [(0.25, 0.0), (0.5, 0.3), (None, 0.0)])
def test_katyusha_makes_the_steps_of_the_paper(ridge, drawn, momentum, sigma):
    batches = drawn(17, 3)
    model = tfi.variance_reduced.Katyusha(
        ridge.net(), ridge.batched(10), inner_steps=5, momentum=momentum, strong_convexity=sigma
    )

    def tau_1(stage):
        return 2 / (stage + 4) if momentum is None else momentum

    expected = reference.katyusha(
        ridge.gradient, ridge.start, ridge.everything, batches, RATE, 5, tau_1, 0.5, sigma
    )
    np.testing.assert_allclose(ridge.iterates(model, batches, RATE), expected, atol=1e-6)


def test_scsg_makes_the_steps_of_the_paper_with_growing_batches(ridge, drawn):
    batches = drawn(16, 3)
    model = tfi.variance_reduced.SCSG(
        ridge.net(), ridge.batched(2), large_batch=4, growth_rate=2.0, inner_steps=3
    )
    # 4, 8, 16, 24 (a whole pass) and 24 again, read on from where the last one ended.
    order = np.tile(ridge.everything, 4)
    starts = np.cumsum([0, 4, 8, 16, 24, 24])
    large = [order[begin:end] for begin, end in zip(starts, starts[1:])] + [order[:24]]
    expected = reference.scsg(ridge.gradient, ridge.start, large, batches, RATE, [3] * 6)
    np.testing.assert_allclose(ridge.iterates(model, batches, RATE), expected, atol=1e-9)


def test_scsg_draws_the_number_of_steps_as_in_the_paper(ridge, drawn):
    batches = drawn(12, 3)
    model = tfi.variance_reduced.SCSG(
        ridge.net(), ridge.batched(2), large_batch=6, batch_size=3, seed=5
    )
    rngs = [np.random.default_rng([5, stage]) for stage in range(20)]
    steps = [scsg.geometric_steps(6, 3, rng) for rng in rngs]
    assert 0 in steps, "a stage without steps is part of the test"
    # Such a stage reads no data here.
    taken = [number for number in steps if number]
    order = np.tile(ridge.everything, 6)
    large = [order[6 * stage : 6 * stage + 6] for stage in range(20)]
    expected = reference.scsg(ridge.gradient, ridge.start, large, batches, RATE, taken)
    np.testing.assert_allclose(ridge.iterates(model, batches, RATE), expected, atol=1e-9)


def test_the_drawn_numbers_of_steps_have_their_mean_and_variance():
    rng = np.random.default_rng(0)
    drawn = np.array([scsg.geometric_steps(60, 20, rng) for _ in range(20_000)])
    # Geometric of mean μ = B/b = 3: variance μ(μ+1).
    assert abs(drawn.mean() - 3) / np.sqrt(12 / len(drawn)) < 4
    assert drawn.var() == pytest.approx(12, rel=0.1) and drawn.min() == 0


def _methods(problem):
    step = {"inner_steps": 48}
    reduced = tfi.variance_reduced
    return {
        "svrg": reduced.SVRG(problem.net(), problem.batched(24), **step),
        "katyusha": reduced.Katyusha(problem.net(), problem.batched(24), momentum=0.3, **step),
        "scsg": reduced.SCSG(
            problem.net(), problem.batched(6), large_batch=6, growth_rate=2.0, **step
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svrg", "katyusha", "scsg"])
def test_convergence_is_linear_where_sgd_stalls(ridge, drawn, name):
    ridge = ridge._replace(penalty=0.2)
    batches = drawn(48 * 25, 1)
    model = _methods(ridge)[name]
    reached = ridge.iterates(model, batches, 0.01)
    plain = reference.sgd(ridge.gradient, ridge.start, batches, 0.01)
    distances = np.linalg.norm(reached - ridge.solution, axis=1)[::48]
    plateau = np.median(np.linalg.norm(plain[-480:] - ridge.solution, axis=1))
    assert distances[-1] < 1e-3 * plateau
    # Linear: each third of what is left falls by a factor.
    slopes = np.diff(np.log(distances[10:])).reshape(3, -1).sum(axis=1)
    assert np.all(slopes < -0.5)


def _corrected(problem, model, batches):
    """The variance-reduced gradients of batches, as the SGD step of rate 1 shows them."""
    (kernel,) = model.net.trainable_variables
    before = problem.start
    found = []
    for batch in batches:
        kernel.assign(before[:, None])
        model.train_on_batch(problem.x[batch], problem.y[batch])
        found.append(before - compat.value(kernel).numpy()[:, 0])
    return np.array(found)


def test_the_gradient_is_unbiased_and_has_no_variance_at_the_snapshot(ridge):
    model = tfi.variance_reduced.SVRG(ridge.net(), ridge.batched(24), inner_steps=1000)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    singles = ridge.everything[:, None]
    (kernel,) = model.net.trainable_variables
    model.take_snapshot()
    at_snapshot = _corrected(ridge, model, singles)
    full = ridge.gradient(ridge.start, ridge.everything)
    np.testing.assert_allclose(at_snapshot, np.tile(full, [24, 1]), atol=1e-9)

    variances = []
    for distance in (0.1, 1.0):
        elsewhere = ridge._replace(start=ridge.start + distance)
        gradients = _corrected(elsewhere, model, singles)
        full = ridge.gradient(elsewhere.start, ridge.everything)
        np.testing.assert_allclose(gradients.mean(axis=0), full, atol=1e-9)
        variances.append(gradients.var(axis=0).sum())
    # The gradients of a quadratic differ in proportion to the distance.
    assert variances[1] == pytest.approx(100 * variances[0])
    plain = [ridge.gradient(ridge.start, batch) for batch in singles]
    assert variances[0] < 0.1 * np.var(plain, axis=0).sum()
