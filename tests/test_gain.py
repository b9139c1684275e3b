"""The gain ratio: gradients of the last layer, eq. 7, and the exact ratio on a small net."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import gain, losses, variance
from tf_importance.samplers.gain import GainEstimator
from tf_importance.scorers import forward, last_layer

L = keras.layers
RNG = np.random.default_rng(0)
N, CLASSES = 24, 3
X = RNG.normal(size=(N, 4)).astype(np.float32)
Y = RNG.integers(CLASSES, size=N).astype(np.int32)
WEIGHTS = RNG.gamma(1.0, 1.0, N).astype(np.float32)
L2 = keras.regularizers.L2(0.05)


class OwnNet(keras.Model):
    """Ends in a dense layer that is no layer of a functional graph."""

    def __init__(self):
        super().__init__()
        self.hidden = L.Dense(5, activation="tanh")
        self.last = L.Dense(CLASSES, kernel_regularizer=L2)

    def call(self, inputs):
        return self.last(self.hidden(inputs))


def sequential(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


NETS = {
    "logits": (lambda: sequential(L.Dense(5, "tanh"), L.Dense(CLASSES)), True),
    "softmax": (lambda: sequential(L.Dense(CLASSES, "softmax", kernel_regularizer=L2)), False),
    "no_bias": (lambda: sequential(L.Dense(5), L.Dense(CLASSES, use_bias=False)), True),
    "own": (OwnNet, True),
}


def compiled(make, from_logits, scorer=tfi.scorers.upper_bound):
    keras.utils.set_random_seed(1)
    model = tfi.ISModel(make(), scorer=scorer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model.compile(keras.optimizers.SGD(0.1), loss)
    model(X[:1])
    return model


def squares_of(model, weights, function=tf.function):
    @function
    def squares():
        with forward.recorded() as passes:
            model(X, training=True)
            return last_layer.gradient_squares(
                model.net, model.objective, Y, passes[-1], tf.constant(weights)
            )

    return squares()


def gradient(model, rows, weights, variables, penalty=False):
    """∇ of the weighted mean loss by a tape, flat."""
    with tf.GradientTape() as tape:
        values = losses.per_example_losses(model.objective, Y[rows], model(X[rows], training=True))
        total = tf.reduce_mean(values * weights)
        if penalty and model.losses:
            total += tf.add_n(model.losses)
    parts = tape.gradient(total, variables)
    return np.concatenate([np.ravel(tf.convert_to_tensor(part)) for part in parts])


@pytest.mark.parametrize("name", NETS)
def test_last_layer_gradients_are_those_of_a_tape(name):
    model = compiled(*NETS[name])
    found = squares_of(model, WEIGHTS)
    variables = model.net.layers[-1].trainable_variables
    each = [gradient(model, [i], [1.0], variables) for i in range(N)]
    np.testing.assert_allclose(found.per_example, [g @ g for g in each], rtol=1e-3)
    batch = gradient(model, np.arange(N), WEIGHTS, variables, penalty=True)
    assert float(found.batch) == pytest.approx(batch @ batch, rel=1e-3)


SEQUENCE_NETS = {
    "dense": lambda: sequential(L.Reshape((2, 2)), L.Dense(5, "tanh"), L.Dense(CLASSES)),
    "no bias": lambda: sequential(L.Reshape((2, 2)), L.Dense(CLASSES, use_bias=False)),
    "penalty": lambda: sequential(L.Reshape((2, 2)), L.Dense(CLASSES, kernel_regularizer=L2)),
    "two axes": lambda: sequential(L.Reshape((2, 1, 2)), L.Dense(5), L.Dense(CLASSES)),
    "recurrent": lambda: sequential(
        L.Reshape((4, 1)), L.GRU(3, return_sequences=True), L.Dense(CLASSES)
    ),
}


@pytest.mark.parametrize("name", SEQUENCE_NETS)
def test_a_head_at_several_positions_adds_up_their_gradients(name):
    model = compiled(SEQUENCE_NETS[name], True)
    labels = RNG.integers(CLASSES, size=(N, *model.net.output_shape[1:-1]))

    @tf.function
    def squares():
        with forward.recorded() as passes:
            model(X, training=True)
            return last_layer.gradient_squares(
                model.net, model.objective, labels, passes[-1], tf.constant(WEIGHTS)
            )

    def gradient_of(rows, weights, penalty=False):
        with tf.GradientTape() as tape:
            values = losses.per_example_losses(model.objective, labels[rows], model(X[rows]))
            total = tf.reduce_mean(values * weights)
            if penalty and model.losses:
                total += tf.add_n(model.losses)
        parts = tape.gradient(total, model.net.layers[-1].trainable_variables)
        return np.concatenate([np.ravel(tf.convert_to_tensor(part)) for part in parts])

    found, each = squares(), [gradient_of([i], [1.0]) for i in range(N)]
    np.testing.assert_allclose(found.per_example, [g @ g for g in each], rtol=1e-3)
    batch = gradient_of(np.arange(N), WEIGHTS, penalty=True)
    assert float(found.batch) == pytest.approx(batch @ batch, rel=1e-3)


def test_where_the_last_layer_is_out_of_sight_the_gradient_is_a_biass():
    model = compiled(*NETS["logits"])
    found = squares_of(model, WEIGHTS, function=lambda f: f)
    bias = model.net.layers[-1].trainable_variables[1:]
    each = [gradient(model, [i], [1.0], bias) for i in range(N)]
    np.testing.assert_allclose(found.per_example, [g @ g for g in each], rtol=1e-3)
    batch = gradient(model, np.arange(N), WEIGHTS, bias)
    assert float(found.batch) == pytest.approx(batch @ batch, rel=1e-3)


def test_the_estimator_is_a_ratio_of_exponential_averages_within_its_error():
    """With α = 0.1 of (q, ‖g‖²); the error is that of the weighted mean of q/q̄ − ‖g‖²/mean."""
    estimator, rng = GainEstimator(0.1), np.random.default_rng(0)
    rows = rng.gamma([[20.0, 5.0, 1.0]], 1.0, [60, 3])
    for count, row in enumerate(rows, start=1):
        estimator.learn(tf.constant([row], tf.float32))
        shares = 0.1 * 0.9 ** np.arange(count)[::-1]
        shares /= shares.sum()
        uniform, drawn = shares @ rows[:count, 0], shares @ rows[:count, 1]
        apart = rows[:count, 0] / uniform - rows[:count, 1] / drawn
        error = np.sqrt(shares @ apart**2 * np.sum(shares**2))
        ratio = uniform / drawn
        expected = np.clip(1, ratio * (1 - 1.645 * error), ratio * (1 + 1.645 * error))
        assert float(estimator.ratio) == pytest.approx(expected, rel=1e-3)
    assert 1.5 < float(estimator.ratio) < ratio


def test_uniform_batches_have_gain_1_and_bad_ones_are_left_out():
    estimator = GainEstimator(0.5)

    def ratio_after(*row: float) -> float:
        estimator.learn(tf.constant([row]))
        return float(estimator.ratio)

    assert ratio_after(3.0, 3.0, 1.0) == 1
    before = estimator.averages.numpy()
    for bad in (np.nan, np.inf):
        assert ratio_after(bad, 0.1, 1.0) == ratio_after(1.0, bad, 1.0) == 1
    np.testing.assert_array_equal(estimator.averages, before)
    estimator = GainEstimator(0.5)
    assert ratio_after(0.0, 0.0, 1.0) == 1


@pytest.mark.parametrize("block", [1, 8, 32])
def test_what_no_batch_says_of_itself_uniform_ones_among_them_show(block):
    """q is 4 times ‖g‖², and of one batch in 32, which is uniform, ‖g‖² is no larger."""
    estimator, rng = GainEstimator(), np.random.default_rng(0)
    squares = rng.gamma(4.0, 0.25, 2048)
    rows = np.stack([4 * squares, squares, np.ones(2048)], axis=1).astype(np.float32)
    uniform = np.arange(2048) % 32 == 16
    learn = tf.function(estimator.learn, autograph=False)
    for compares in (False, True):
        for first in range(0, 2048, block):
            part = slice(first, first + block)
            those = tf.constant(uniform[part]) if compares else None
            learn(tf.constant(rows[part]), those)
        assert float(estimator.ratio) < 1.6 if compares else 3.9 < float(estimator.ratio) < 4.1
    count, ratio, *_ = estimator.comparisons.numpy()
    assert count == 64 and ratio == pytest.approx(1, rel=0.2)


def test_a_common_factor_of_the_weights_is_no_gain():
    found = []
    for normalized in (False, True):
        estimator = GainEstimator(normalized=normalized)
        estimator.learn(tf.constant([[2.0, 1.0 / 9, 1 / 3]] * 40))
        found.append(float(estimator.ratio))
    np.testing.assert_allclose(found, [18, 2], rtol=1e-4)


def squared(vectors) -> np.ndarray:
    return np.sum(np.square(vectors), axis=-1)


def of_uniform(gradients, batch):
    mean = squared(gradients.mean(0))
    return mean + (squared(gradients).mean() - mean) / batch


def test_what_a_batch_says_of_uniform_ones_is_exact_over_all_draws():
    """Two draws of four by p; or two of three that p drew, by other scores."""
    rng, batch, presample = np.random.default_rng(0), 2, 3
    gradients, p = rng.normal(size=(4, 3)) + 0.5, np.array([0.1, 0.2, 0.3, 0.4])
    scores = rng.gamma(1.0, 1.0, 4)

    def said(drawn, weights, presampled=None) -> float:
        square = squared((weights[:, None] * gradients[drawn]).mean(0))
        return float(
            gain.uniform_square_by(
                tf.constant(squared(gradients[drawn])),
                tf.constant(weights),
                tf.constant(square),
                presampled,
            )
        )

    alone = together = 0.0
    for drawn in map(list, np.ndindex(*[4] * batch)):
        alone += np.prod(p[drawn]) * said(drawn, 1 / (4 * p[drawn]))
    for first in map(list, np.ndindex(*[4] * presample)):
        memory = 1 / (4 * p[first])
        g = memory * scores[first] / np.sum(memory * scores[first])
        for second in map(list, np.ndindex(*[presample] * batch)):
            drawn, weights = np.array(first)[second], memory[second] / (presample * g[second])
            presampled = gain.Presampled(
                presample, tf.constant(memory[second]), tf.ones([batch], tf.float64)
            )
            chance = np.prod(p[first]) * np.prod(g[second])
            together += chance * said(drawn, weights, presampled)
    expected = of_uniform(gradients, batch)
    assert alone == pytest.approx(expected, rel=1e-9)
    assert together == pytest.approx(expected, rel=1e-9)


def test_what_a_systematic_batch_says_of_uniform_ones_is_their_mean():
    """By scores that are not in proportion to the norms.

    Equation 7 takes the pre-sample's noise for gradient.
    """
    rng, batch, presample, count = np.random.default_rng(0), 16, 24, 400
    gradients = rng.normal(size=(count, 4)) * rng.gamma(0.5, 1.0, [count, 1]) + 0.3
    p = rng.gamma(1.0, 1.0, count) + 0.3
    p /= p.sum()
    scores = np.sqrt(squared(gradients)) * rng.gamma(4.0, 0.25, count) + 0.2

    @tf.function
    def said(squares, weights, square, memory, variances):
        presampled = gain.Presampled(presample, memory, variances)
        with_it = gain.uniform_square_by(squares, weights, square, presampled)
        return tf.stack([with_it, gain.uniform_square_by(squares, weights, square)])

    found = []
    for _ in range(4000):
        first = rng.choice(count, presample, p=p)
        memory = 1 / (count * p[first])
        g = memory * scores[first] / np.sum(memory * scores[first])
        points = (rng.random() + np.arange(batch)) / batch
        second = np.minimum(np.searchsorted(np.cumsum(g), points), presample - 1)
        drawn, counts = first[second], batch * g[second]
        weights = memory[second] / (presample * g[second])
        fractions = counts % 1
        square = squared((weights[:, None] * gradients[drawn]).mean(0))
        variances = fractions * (1 - fractions) / counts
        parts = (squared(gradients[drawn]), weights, square, memory[second], variances)
        found.append(said(*map(tf.constant, parts)).numpy())
    by_counts, by_equation_7 = np.mean(found, axis=0)
    expected = of_uniform(gradients, batch)
    error = np.std(np.array(found)[:, 0]) / len(found) ** 0.5
    assert abs(by_counts - expected) < 0.05 * expected + 3 * error
    assert by_equation_7 > 1.1 * expected


def exact_second_moment(gradients, p, batch, penalty):
    """E‖g‖² of eq. 4 by its definition: variance of a mean plus the square of the mean."""
    weighted = gradients / (N * p[:, None])
    mean = gradients.mean(axis=0)
    variance = np.sum(p * np.sum((weighted - mean) ** 2, axis=1))
    return variance / batch + np.sum((mean + penalty) ** 2)


@pytest.mark.parametrize("batch", [1, 8])
def test_the_oracles_gain_is_exact(batch):
    model = compiled(*NETS["softmax"])
    oracle = tfi.samplers.Oracle(N, model, scored_at_once=10)
    oracle.attach(lambda indices: (tf.gather(X, indices), tf.gather(Y, indices)))
    oracle.draw(batch, 0)
    variables = model.trainable_variables
    each = np.stack([gradient(model, [i], [1.0], variables) for i in range(N)])
    penalty = gradient(model, np.arange(N), 1.0, variables, True) - each.mean(axis=0)
    norms = np.linalg.norm(each, axis=1)
    moments = [
        exact_second_moment(each, p, batch, penalty)
        for p in (np.full(N, 1 / N), norms / norms.sum())
    ]
    assert float(oracle.gain.ratio) == pytest.approx(moments[0] / moments[1], rel=1e-3)
    assert float(oracle.gain.ratio) > 1.01


@pytest.mark.slow
def test_the_estimated_gain_converges_to_the_exact_one():
    """A net of one layer: its last layer is all of it. The learning rate is 0."""
    batch = 8
    model = compiled(*NETS["softmax"])
    sampler = tfi.samplers.Proportional(N, alpha=1.0, gain_smoothing=1e-3)
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.SGD(0.0), loss, sampler=sampler)
    batches = tfi.history_sample((X, Y), sampler, batch, seed=0).repeat()
    model.fit(batches, steps_per_epoch=4000, verbose=0)
    variables = model.trainable_variables
    each = np.stack([gradient(model, [i], [1.0], variables) for i in range(N)])
    penalty = gradient(model, np.arange(N), 1.0, variables, True) - each.mean(axis=0)
    norms, scores = np.linalg.norm(each, axis=1), np.asarray(model.scorer(model, X, Y), np.float64)
    p = scores / scores.sum()
    moments = [exact_second_moment(each, q, batch, penalty) for q in (np.full(N, 1 / N), p)]
    exact = moments[0] / moments[1]
    assert float(sampler.gain.ratio) == pytest.approx(exact, abs=0.1 * (exact - 1))
    # Negative control: without the batch's own gradient in it, the gain would be larger.
    assert np.mean(norms**2) / np.mean(norms) ** 2 - exact > 0.1 * (exact - 1)


def test_exact_gain_is_at_least_1_and_1_without_gradients():
    norms = tf.constant([1.0, 5.0, 0.1])
    assert float(variance.exact_gain_ratio(norms, 0.5, 0.5, 4)) > 1
    assert float(variance.exact_gain_ratio(tf.ones([3]), 0.5, 0.5, 4)) == 1
    assert float(variance.exact_gain_ratio(tf.zeros([3]), 0.0, 0.0, 4)) == 1
