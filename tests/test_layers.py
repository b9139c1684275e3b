"""Importance-weighted batch normalization against NumPy and against Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi

WEIGHTS = np.random.default_rng(0).uniform(0.1, 4, size=6).astype(np.float32)
SHAPES = {"points": (6, 3), "sequence": (6, 5, 3), "images": (6, 4, 4, 3)}


def values(shape) -> np.ndarray:
    return np.random.default_rng(1).normal(2, 3, size=shape).astype(np.float32)


def trained(layer, x, weights):
    with tfi.layers.importance_weights(None if weights is None else tf.constant(weights)):
        return np.asarray(layer(x, training=True))


def state(layer):
    return np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_statistics_are_weighted(shape, axis):
    x = values(shape)
    layer = tfi.layers.BatchNormalization(axis=axis, epsilon=1e-3)
    outputs = trained(layer, x, WEIGHTS)
    axes = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    full = WEIGHTS.reshape([-1] + [1] * (len(shape) - 1)) * np.ones_like(x, np.float64)
    mean = (full * x).sum(axes, keepdims=True) / full.sum(axes, keepdims=True)
    variance = (full * (x - mean) ** 2).sum(axes, keepdims=True) / full.sum(axes, keepdims=True)
    np.testing.assert_allclose(outputs, (x - mean) / np.sqrt(variance + 1e-3), atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_moving_statistics_follow_the_docstring(shape):
    x, layer = values(shape), tfi.layers.BatchNormalization(momentum=0.9)
    trained(layer, x, WEIGHTS)
    axes = tuple(range(len(shape) - 1))
    full = WEIGHTS.reshape([-1] + [1] * (len(shape) - 1)) * np.ones_like(x, np.float64)
    mean = (full * x).sum(axes) / full.sum(axes)
    variance = (full * (x - mean) ** 2).sum(axes) / full.sum(axes)
    decay = 0.9 ** WEIGHTS.mean()
    kappa = 6 * (WEIGHTS**2).sum() / WEIGHTS.sum() ** 2
    moving_mean, moving_variance = state(layer)
    np.testing.assert_allclose(moving_mean, (1 - decay) * mean, rtol=1e-4)
    between = (1 - 1 / kappa) * mean**2
    np.testing.assert_allclose(
        moving_variance, decay + (1 - decay) * (variance + between), rtol=1e-4
    )


@pytest.mark.parametrize("shape", [SHAPES["points"], SHAPES["sequence"]])
def test_weights_of_one_are_keras(shape):
    x = values(shape)
    ours, theirs = tfi.layers.BatchNormalization(), keras.layers.BatchNormalization()
    np.testing.assert_allclose(
        trained(ours, x, np.ones(6, np.float32)), theirs(x, training=True), atol=1e-5
    )
    for a, b in zip(state(ours), state(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_without_weights_it_is_keras_to_the_last_digit(training):
    x = values(SHAPES["images"])
    ours, theirs = tfi.layers.BatchNormalization(), keras.layers.BatchNormalization()
    np.testing.assert_array_equal(ours(x, training=training), theirs(x, training=training))
    for a, b in zip(state(ours), state(theirs)):
        np.testing.assert_array_equal(a, b)


def test_inference_and_frozen_layers_ignore_the_weights():
    x, layer = values(SHAPES["points"]), tfi.layers.BatchNormalization()
    layer(x)
    before = state(layer)
    with tfi.layers.importance_weights(tf.constant(WEIGHTS)):
        inference = np.asarray(layer(x, training=False))
        layer.trainable = False
        frozen = np.asarray(layer(x, training=True))
    np.testing.assert_array_equal(inference, frozen)
    for a, b in zip(before, state(layer)):
        np.testing.assert_array_equal(a, b)


def test_examples_of_weight_zero_do_not_count():
    x = values((6, 3))
    weights = np.array([1, 1, 1, 1, 0, 0], np.float32)
    ours, theirs = tfi.layers.BatchNormalization(), keras.layers.BatchNormalization()
    outputs = trained(ours, x, weights)
    np.testing.assert_allclose(outputs[:4], theirs(x[:4], training=True), atol=1e-5)


def test_all_weights_zero_normalizes_without_them_and_moves_nothing():
    x, layer = values((6, 3)), tfi.layers.BatchNormalization()
    outputs = trained(layer, x, np.zeros(6, np.float32))
    assert np.all(np.isfinite(outputs))
    np.testing.assert_array_equal(state(layer)[0], 0)
    np.testing.assert_array_equal(state(layer)[1], 1)


def test_no_example_counts_for_more_than_a_batch():
    """Untruncated, one weight of 1000 makes the moving averages this example's own."""
    x, layer = values((6, 3)), tfi.layers.BatchNormalization(momentum=0.9)
    other = tfi.layers.BatchNormalization(momentum=0.9)
    weights = np.array([1000, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32)
    np.testing.assert_array_equal(
        trained(layer, x, weights), trained(other, x, np.minimum(weights, 6))
    )
    for a, b in zip(state(layer), state(other)):
        np.testing.assert_array_equal(a, b)
    assert np.abs(state(layer)[0]).max() < 0.2 * np.abs(x[0]).max()


def test_masked_positions_do_not_count():
    x, layer = values((6, 5, 3)), tfi.layers.BatchNormalization()
    mask = np.ones((6, 5), bool)
    mask[:, 3:] = False
    other = x.copy()
    other[:, 3:] += 100
    found = []
    for inputs in (x, other):
        layer = tfi.layers.BatchNormalization()
        with tfi.layers.importance_weights(tf.constant(WEIGHTS)):
            layer(inputs, training=True, mask=tf.constant(mask))
        found.append(state(layer))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_an_axis_folded_into_the_batch_repeats_the_weights():
    x = values((3, 4, 2))
    weights = np.array([0.5, 1.0, 1.5], np.float32)
    whole, folded = tfi.layers.BatchNormalization(), tfi.layers.BatchNormalization()
    np.testing.assert_allclose(
        trained(whole, x, weights).reshape(12, 2),
        trained(folded, x.reshape(12, 2), weights),
        atol=1e-5,
    )


@pytest.mark.parametrize("wrapped", ["graph", "xla"])
def test_it_compiles(wrapped):
    layer = tfi.layers.BatchNormalization()
    layer.build((None, 3))

    @tf.function(jit_compile=wrapped == "xla")
    def step(x, weights):
        with tfi.layers.importance_weights(weights):
            return layer(x, training=True)

    x = values((6, 3))
    np.testing.assert_allclose(
        step(tf.constant(x), tf.constant(WEIGHTS)),
        trained(tfi.layers.BatchNormalization(), x, WEIGHTS),
        atol=1e-5,
    )


def drawn_batches(x, norms, batch_size, steps):
    """Batches drawn from x by its norms, with their weights."""
    proposal = norms / norms.sum()
    rng = np.random.default_rng(1)
    for _ in range(steps):
        i = rng.choice(len(x), size=batch_size, p=proposal)
        yield x[i], (1 / (len(x) * proposal[i])).astype(np.float32)


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "negative control"])
def test_moving_statistics_are_the_datas_and_not_the_draws(weighted):
    """A tenth of the data lies far away and is drawn nine times out of ten."""
    rng = np.random.default_rng(0)
    hard = rng.random(5000) < 0.1
    x = rng.normal(size=(5000, 2)).astype(np.float32) + 6 * hard[:, None]
    norms = np.where(hard, 50.0, 0.5) * rng.lognormal(sigma=0.3, size=5000)
    layer = tfi.layers.BatchNormalization(momentum=0.99)
    layer.build((None, 2))

    @tf.function
    def step(batch, weights):
        with tfi.layers.importance_weights(weights if weighted else None):
            layer(batch, training=True)

    for batch, weights in drawn_batches(x, norms, 32, 3000):
        step(tf.constant(batch), tf.constant(weights))
    mean, variance = state(layer)
    off = np.abs(mean - x.mean(axis=0)).max(), np.abs(variance / x.var(axis=0) - 1).max()
    if weighted:
        assert off[0] < 0.25 and off[1] < 0.25
    else:
        assert off[0] > 3


def test_conversion_keeps_weights_and_works_in_place():
    inputs = keras.Input((4,))
    inner = keras.Sequential(
        [keras.layers.Dense(3), keras.layers.BatchNormalization(name="inner")], name="nested"
    )
    outputs = keras.layers.BatchNormalization(name="outer")(inner(inputs))
    net = keras.Model(inputs, outputs)
    net(values((6, 4)), training=True)
    before, x = net.get_weights(), values((6, 4))
    expected = np.asarray(net(x))
    assert len(tfi.layers.ordinary_batch_normalizations(net)) == 2
    with pytest.warns(FutureWarning, match="adapt_batch_normalization"):
        assert tfi.layers.weight_batch_normalization(net) is net
    assert not tfi.layers.ordinary_batch_normalizations(net)
    np.testing.assert_array_equal(net(x), expected)
    for a, b in zip(before, net.get_weights()):
        np.testing.assert_array_equal(a, b)
    with tfi.layers.importance_weights(tf.constant(WEIGHTS)):
        weighted = np.asarray(net(x, training=True))
    assert np.abs(weighted - np.asarray(net(x, training=True))).max() > 1e-3


@pytest.mark.filterwarnings("ignore:weight_batch_normalization")
def test_a_converted_net_is_saved_and_restored(tmp_path):
    net = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    tfi.layers.weight_batch_normalization(net)
    net.save(tmp_path / "net.keras")
    restored = keras.models.load_model(tmp_path / "net.keras")
    assert isinstance(restored.layers[-1], tfi.layers.BatchNormalization)


@pytest.mark.filterwarnings("ignore:weight_batch_normalization")
def test_a_layer_that_changes_batch_normalization_is_not_converted():
    class Own(keras.layers.BatchNormalization):
        pass

    with pytest.raises(ValueError, match="'own'.*class Own.*tfi.layers.BatchNormalization"):
        tfi.layers.weight_batch_normalization(keras.Sequential([Own(name="own")]))


@pytest.mark.parametrize("case", ["points", "image", "axis 1", "masked", "not scaled", "zeros"])
def test_its_gradient_is_that_of_its_equations(case):
    """Against TensorFlow's own derivative of the same statistics, in float64."""
    rng = np.random.default_rng(0)
    shape = {"image": (5, 4, 3, 2), "axis 1": (5, 2, 4), "masked": (5, 4, 2)}.get(case, (5, 2))
    axis = 1 if case == "axis 1" else len(shape) - 1
    x, upstream = tf.constant(rng.normal(size=shape)), tf.constant(rng.normal(size=shape))
    weights = tf.constant(np.zeros(5) if case == "zeros" else rng.uniform(0.2, 3.0, 5))
    mask = tf.constant(rng.random(shape[:-1]) < 0.7) if case == "masked" else None
    options = {"scale": False, "center": False} if case == "not scaled" else {}
    layer = tfi.layers.BatchNormalization(axis=axis, dtype="float64", **options)
    layer.build(shape)
    for variable in layer.trainable_variables:
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    counts = tf.reshape(
        weights if case != "zeros" else tf.ones(5, tf.float64), [5, *[1] * (len(shape) - 1)]
    )
    if mask is not None:
        counts *= tf.cast(mask, tf.float64)[..., tf.newaxis]
    counts *= tf.ones_like(x)
    axes = [i for i in range(len(shape)) if i != axis]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        total = tf.reduce_sum(counts, axes, keepdims=True)
        mean = tf.reduce_sum(counts * x, axes, keepdims=True) / total
        variance = tf.reduce_sum(counts * (x - mean) ** 2, axes, keepdims=True) / total
        inner = [shape[i] if i == axis else 1 for i in range(len(shape))]
        parts = [tf.reshape(tf.convert_to_tensor(v), inner) for v in layer.trainable_variables]
        gamma, beta = parts or (1.0, 0.0)
        truth = gamma * (x - mean) / tf.sqrt(variance + layer.epsilon) + beta
        with tfi.layers.importance_weights(weights):
            found = layer(x, training=True, mask=mask)
        their_sum, our_sum = tf.reduce_sum(truth * upstream), tf.reduce_sum(found * upstream)
    np.testing.assert_allclose(found, truth, rtol=1e-6)
    variables = [x, *layer.trainable_variables]
    for mine, theirs in zip(tape.gradient(our_sum, variables), tape.gradient(their_sum, variables)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)
