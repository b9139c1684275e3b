"""The gain of a pre-sample: its equations against draws, and what training measures of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.reference import gain as reference
from tf_importance import fresh, gain, plans

N, D, B, b = 2000, 8, 96, 16


@pytest.fixture(scope="module")
def population():
    """Gradients [n, d] of very different sizes, and scores that know them roughly."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(N, D))
    sizes = np.exp(1.2 * rng.normal(size=(N, 1)))
    gradients *= sizes / np.linalg.norm(gradients, axis=1, keepdims=True)
    gradients += 0.15
    scores = np.linalg.norm(gradients, axis=1) * np.exp(0.2 * rng.normal(size=N))
    return gradients.astype(np.float32), scores.astype(np.float32)


def as_moments(exact: reference.Moments, rounding=()) -> gain.Moments:
    return gain.Moments(*map(tf.constant, exact), tf.constant(rounding, tf.float32))


def drawn_of(scores, batch_size: int, draws: int, resample, seed) -> tfi.proposals.Draw:
    """Batches by scores [B]: positions and weights, [R, b] each."""
    way = fresh.Way(None, 0.0, resample, batch_size)
    return way.positions(tfi.proposals.normalize(scores), seed, draws)


def sums_of_draws(population, draws: int, resample, number: int):
    """Mean gradients [number, R, d] of the batches of `number` pre-samples."""
    gradients, scores = map(tf.constant, population)

    def batches(seed):
        chosen = tf.random.experimental.stateless_shuffle(tf.range(N), tf.stack([seed, 1]))[:B]
        drawn = drawn_of(tf.gather(scores, chosen), b, draws, resample, tf.stack([seed, 2]))
        rows = tf.gather(gradients, tf.gather(chosen, drawn.indices))
        return tf.reduce_mean(drawn.weights[..., tf.newaxis] * rows, axis=1)

    @tf.function
    def all_of_them():
        return tf.map_fn(batches, tf.range(number), fn_output_signature=tf.float32)

    return all_of_them().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("systematic", [False, True], ids=["multinomial", "systematic"])
def test_the_variance_of_drawn_batches(population, draws, systematic):
    """The steps of a pre-sample, taken together, scatter as `drawn_square` says.

    3,000 pre-samples: the standard error of the mean square is about 1.5 %.
    """
    resample = tfi.proposals.systematic if systematic else tfi.proposals.multinomial
    batches = sums_of_draws(population, draws, resample, 3000)
    exact = reference.moments(*population)
    together = batches.mean(axis=1) - population[0].mean(axis=0)
    found = exact.mean_square + draws * (together**2).sum(axis=1).mean()
    rate = draws * b / B
    rounding = reference.rounding(*population, rate) if systematic else 1.0
    predicted = gain.drawn_square(as_moments(exact), b, rate, rounding)
    assert found == pytest.approx(float(predicted), rel=0.07)
    # It is told apart from a uniform batch's, and from what τ alone would have it be.
    assert float(gain.uniform_square(as_moments(exact), b)) > 1.3 * found
    assert found > 1.1 * (exact.mean_square + (exact.drawn_square - exact.mean_square) / B)


@pytest.mark.parametrize("draws", [1, 2, 6])
def test_equal_scores_gain_nothing_and_lose_nothing(draws):
    """Systematic draws of equal scores are a uniform batch without repetitions."""
    moments = gain.Moments(*map(tf.constant, (0.3, 2.0, 1.0, 2.0)), tf.zeros([0]))
    rate = draws * b / B
    ones = tf.ones([50])
    squares = gain.rounded_squares(ones, 2 * ones, ones, [rate], tf.constant(1.0))
    factor = moments._replace(rounding=squares).rounding_factor(0)
    assert float(factor) == pytest.approx(1 - rate, abs=1e-6)
    drawn = gain.drawn_square(moments, b, rate, factor)
    assert float(gain.gain_ratio(gain.uniform_square(moments, b), drawn)) == pytest.approx(1)


@pytest.mark.parametrize("rate", [0.1, 0.5, 2.5])
def test_rounding_against_numpy(population, rate):
    squares, scores = (population[0] ** 2).sum(axis=1), population[1]
    found = gain.rounded_squares(
        *map(tf.constant, (scores, squares)), tf.ones([N]), [rate], tf.constant(scores.mean())
    )
    expected = reference.rounded(squares.astype(np.float64), scores.astype(np.float64), rate)
    assert float(found[0]) == pytest.approx(expected, rel=1e-3)


def test_no_scores_gain_more_than_the_presample_has(population):
    """However good, r stays below 1/ρ = B/(R b)."""
    exact = reference.moments(*population)._replace(mean_square=0.0, square_per_score=1e-9)
    for draws in (1, 2, 3):
        rate = draws * b / B
        drawn = gain.drawn_square(as_moments(exact), b, rate, 0.0)
        ratio = gain.gain_ratio(gain.uniform_square(as_moments(exact), b), drawn)
        assert float(ratio) == pytest.approx(1 / rate, rel=1e-4)


def estimated(population, indices, weights, sampling):
    gradients, scores = population
    rows = tf.gather(tf.constant(gradients), indices)
    batch = tf.reduce_mean(weights[:, tf.newaxis] * rows, axis=0)
    return gain.batch_moments(
        tf.gather(tf.constant(scores), indices),
        tf.reduce_sum(rows**2, axis=1),
        weights,
        tf.reduce_sum(batch**2),
        sampling,
        tf.constant(scores.mean()),
    )


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "drawn independently"])
def test_a_batch_estimates_the_moments_without_bias(population, weighted):
    """z-test of each moment over 4,000 batches; the plain ‖g‖² in place of A must fail it."""
    scores = population[1]
    proposal = tf.constant(scores / scores.sum() if weighted else np.full(N, 1 / N, np.float32))
    sampling = gain.Sampling((b / B,), 0.0)

    def one(seed):
        draw = tfi.proposals.multinomial(proposal, b, tf.stack([seed, 7]))
        found = estimated(population, draw.indices, draw.weights, sampling)
        biased = found.mean_square * (1 - 1 / b) + found.square / b
        return tf.concat([tf.stack([*found[:4], biased]), found.rounding], axis=0)

    run = tf.function(lambda: tf.map_fn(one, tf.range(4000), fn_output_signature=tf.float32))
    values = run().numpy().astype(np.float64)
    exact = reference.moments(*population)
    squares = (population[0] ** 2).sum(axis=1)
    truth = np.array([*exact, exact.mean_square, reference.rounded(squares, scores, b / B)])
    errors = values.std(axis=0) / np.sqrt(len(values))
    distances = np.abs(values.mean(axis=0) - truth)
    kept = [0, 1, 3, 5]
    assert (distances[kept] < 4 * errors[kept] + 1e-5).all()
    assert distances[4] > 10 * errors[4]


@pytest.mark.slow
@pytest.mark.parametrize("systematic", [False, True], ids=["multinomial", "systematic"])
def test_the_mean_square_of_batches_from_presamples_is_corrected(population, systematic):
    gradients, scores = population
    resample = tfi.proposals.systematic if systematic else tfi.proposals.multinomial
    sampling = gain.Sampling((b / B,), 0.0)

    def one(seed):
        chosen = tf.random.experimental.stateless_shuffle(tf.range(N), tf.stack([seed, 1]))[:B]
        proposal = tfi.proposals.normalize(tf.gather(tf.constant(scores), chosen))
        draw = resample(proposal, b, tf.stack([seed, 2]))
        return estimated(
            population, tf.gather(chosen, draw.indices), draw.weights, sampling
        ).mean_square

    run = tf.function(lambda: tf.map_fn(one, tf.range(4000), fn_output_signature=tf.float32))
    values = run().numpy().astype(np.float64)
    exact = reference.moments(gradients, scores)
    moments = as_moments(exact)._replace(mean_square=tf.constant(values.mean(), tf.float32))
    rounding = reference.rounding(gradients, scores, b / B) if systematic else 1.0
    corrected = float(gain.corrected_mean_square(moments, b, B, rounding))
    error = values.std() / np.sqrt(len(values))
    # What is left: normalizing by the pre-sample's own sum, some 1/B of the noise.
    slack = 0.15 * exact.square / B
    assert abs(corrected - exact.mean_square) < 4 * error + slack
    assert abs(values.mean() - exact.mean_square) > 0.3 * exact.square / B


def test_each_of_several_batches_is_unbiased(population):
    """z-test of the first batch that leaves; without the random order it must fail."""
    batches = sums_of_draws(population, 3, tfi.proposals.systematic, 2000)
    truth = population[0].mean(axis=0)
    first = batches[:, 0]
    z = (first.mean(axis=0) - truth) / (first.std(axis=0) / np.sqrt(len(first)))
    assert (np.abs(z) < 4.5).all()


def test_without_the_random_order_the_first_batch_is_biased():
    """Two examples, one of them drawn first always: the control of the test above."""
    scores = tf.constant([1.0, 1.0])

    def first(seed, shuffled):
        seed = tf.stack([seed, 3])
        if shuffled:
            return drawn_of(scores, 1, 2, tfi.proposals.systematic, seed).indices[0, 0]
        return tfi.proposals.systematic(tfi.proposals.normalize(scores), 2, seed).indices[0]

    assert {int(first(seed, shuffled=False)) for seed in range(30)} == {0}
    share = np.mean([int(first(seed, shuffled=True)) for seed in range(200)])
    assert 0.35 < share < 0.65


def test_several_batches_do_not_repeat_each_other():
    """b R = B equal scores: every example exactly once."""
    drawn = drawn_of(tf.ones([12]), 4, 3, tfi.proposals.systematic, tf.constant([1, 2]))
    assert sorted(drawn.indices.numpy().ravel()) == list(range(12))
    np.testing.assert_allclose(drawn.weights, np.ones([3, 4]), rtol=1e-6)


def exact_of(model, x, y, sampling):
    """Moments of the whole data, of a net that is its last layer: (moments, D)."""
    logits = model(x).numpy().astype(np.float64)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    deltas = chances / chances.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[y]
    inputs = np.concatenate([x, np.ones([len(x), 1])], axis=1)
    gradients = (inputs[:, :, np.newaxis] * deltas[:, np.newaxis]).reshape(len(x), -1)
    scores = np.linalg.norm(deltas, axis=1)
    scores += sampling.smoothing * scores.mean()
    squares = (gradients**2).sum(axis=1)
    return reference.moments(gradients, scores), reference.rounded(
        squares, scores, sampling.rates[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["uniform", "drawn"])
def test_training_measures_the_exact_moments(switch, blobs):
    """A frozen net, 400 measured steps: every moment within 8 %, and r within 5 %.

    The gradient norms of all parameters are the exact ones, since the net is one layer.
    """
    x, y = blobs
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    net.set_weights([np.array([[2, -2, 0, 0], [0, 0, 2, -1]], np.float32), np.zeros(4)])
    model = tfi.ISModel(net)
    rate = tfi.schedules.GainAdapted(1e-9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss)
    chosen = tfi.switches.Always() if switch == "drawn" else tfi.switches.Never()
    train = (
        tf.data.Dataset.from_tensor_slices((x, y))
        .repeat()
        .shuffle(512, seed=1)
        .apply(
            tfi.importance_sample(
                model, 16, 64, switch=chosen, resampling="systematic", smoothing=0.2, seed=0
            )
        )
    )
    # One uniform step in four is measured.
    model.fit(train, steps_per_epoch=400 if switch == "drawn" else 1600, verbose=0)
    sampling = gain.Sampling((0.25,), 0.2)
    measured, enough = model.meter_of(sampling).moments()
    exact, rounded = exact_of(model, x, y, sampling)
    assert bool(enough)
    found = np.array([float(part) for part in measured[1:4]])
    np.testing.assert_allclose(found, exact[1:], rtol=0.08)
    assert float(measured.rounding[0]) == pytest.approx(rounded, rel=0.1)
    setting = tfi.switches.Setting(
        model,
        64,
        (plans.Plan(16), plans.Plan(16, 1, 64)),
        systematic=True,
        meter=model.meter_of(sampling),
    )
    in_force = tf.constant(1 if switch == "drawn" else 0)
    ratio = float(setting.judged(in_force).predicted[1])
    truth = as_moments(exact, [rounded])
    expected = gain.gain_ratio(
        gain.uniform_square(truth, 16),
        gain.drawn_square(truth, 16, 0.25, rounded / exact.drawn_square),
    )
    assert float(expected) > 1.2
    assert ratio == pytest.approx(float(expected), rel=0.05)
