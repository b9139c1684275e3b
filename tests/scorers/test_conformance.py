"""What every scorer must do, each listed once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)
Y = RNG.integers(3, size=6).astype(np.int32)
SCORERS = pytest.mark.parametrize("scorer", tfi.scorers.BY_NAME.values(), ids=tfi.scorers.BY_NAME)


@pytest.fixture
def model():
    net = keras.Sequential(
        [
            keras.layers.Dense(5, activation="tanh"),
            tfi.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model = tfi.ISModel(net)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model(X)
    return model


@SCORERS
@pytest.mark.parametrize("wrapped", ["eager", "graph", "xla"])
def test_scores_in_eager_graph_and_xla(model, scorer, wrapped):
    def score(x, y):
        return scorer(model, x, y)

    function = score if wrapped == "eager" else tf.function(score, jit_compile=wrapped == "xla")
    scores = function(tf.constant(X), tf.constant(Y))
    assert scores.shape == [6] and scores.dtype == tf.float32
    assert np.all(scores.numpy() > 0)
    np.testing.assert_allclose(scores, scorer(model, X, Y), rtol=1e-4)


@SCORERS
def test_a_score_is_the_examples_own(model, scorer):
    """Inference mode: neither its neighbours nor chance change it."""
    together = scorer(model, tf.constant(X), tf.constant(Y)).numpy()
    alone = [scorer(model, X[i : i + 1], Y[i : i + 1]).numpy()[0] for i in range(6)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


@SCORERS
def test_scoring_changes_nothing(model, scorer):
    before = [np.array(weight) for weight in model.get_weights()]
    scorer(model, tf.constant(X), tf.constant(Y))
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


@SCORERS
def test_scores_follow_the_live_weights(model, scorer):
    score = tf.function(lambda x, y: scorer(model, x, y))
    before = score(X, Y).numpy()
    model.net.layers[0].kernel.assign(2 * np.asarray(model.net.layers[0].kernel))
    after = score(X, Y).numpy()
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, scorer(model, X, Y), rtol=1e-4)


@SCORERS
def test_a_sequence_and_an_image_net(scorer):
    rng = np.random.default_rng(0)
    for layers, x, y in (
        ([keras.layers.LSTM(3)], rng.normal(size=(4, 5, 2)), [0, 1, 2, 0]),
        (
            [keras.layers.Conv2D(3, 3), keras.layers.Flatten()],
            rng.normal(size=(4, 5, 5, 1)),
            [1, 0, 2, 1],
        ),
    ):
        model = tfi.ISModel(keras.Sequential([*layers, keras.layers.Dense(3)]))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x = tf.constant(x, tf.float32)
        model(x)
        assert scorer(model, x, tf.constant(y)).shape == [4]


def test_the_gradient_norm_sums_repeated_embeddings_before_its_norm():
    """One token twice: the two rows of its sparse gradient add up."""
    net = keras.Sequential(
        [keras.layers.Embedding(5, 2), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    )
    model = tfi.ISModel(net)
    model.compile("sgd", "mse")
    tokens, labels = tf.constant([[1, 1, 2], [3, 4, 0]]), tf.constant([[1.0], [2.0]])
    model(tokens)
    scores = tfi.scorers.gradient_norm(model, tokens, labels).numpy()
    for i in range(2):
        with tf.GradientTape() as tape:
            error = tf.reduce_mean((net(tokens[i : i + 1]) - labels[i : i + 1]) ** 2)
        dense = [
            np.asarray(tf.convert_to_tensor(g))
            for g in tape.gradient(error, list(net.trainable_variables))
        ]
        truth = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in dense))
        np.testing.assert_allclose(scores[i], truth, rtol=1e-5)
