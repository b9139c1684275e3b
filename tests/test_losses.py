"""The law of `losses`: mean_i(w_i ℓ_i) is the loss that Keras computes with weights w."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import compat, losses

K = keras.losses
RNG = np.random.default_rng(0)
SPARSE = RNG.integers(3, size=6).astype(np.int32)
DENSE = np.eye(3, dtype=np.float32)[SPARSE]
LOGITS = RNG.normal(size=(6, 3)).astype(np.float32)
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)).astype(np.float32)
WEIGHTS = RNG.uniform(0.2, 3, size=6).astype(np.float32)


def own_loss(y_true, y_pred):
    return tf.reduce_mean(tf.abs(tf.cast(y_true, y_pred.dtype) - y_pred), axis=-1)


class OwnLoss(K.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_sum((tf.cast(y_true, y_pred.dtype) - y_pred) ** 4, axis=-1)


# Spellings of one loss: idiap's library trains some of these with a wrong gradient, silently.
SAME = {
    "sparse, name": ("sparse_categorical_crossentropy", SPARSE, PROBABILITIES),
    "sparse, function": (K.sparse_categorical_crossentropy, SPARSE, PROBABILITIES),
    "sparse, object": (K.SparseCategoricalCrossentropy(), SPARSE, PROBABILITIES),
    "sparse, logits": (K.SparseCategoricalCrossentropy(from_logits=True), SPARSE, LOGITS),
    "sparse, column": ("sparse_categorical_crossentropy", SPARSE[:, None], PROBABILITIES),
    "dense, name": ("categorical_crossentropy", DENSE, PROBABILITIES),
    "dense, function": (K.categorical_crossentropy, DENSE, PROBABILITIES),
    "dense, object": (K.CategoricalCrossentropy(), DENSE, PROBABILITIES),
    "dense, logits": (K.CategoricalCrossentropy(from_logits=True), DENSE, LOGITS),
}
OTHERS = {
    "smoothed": (K.CategoricalCrossentropy(label_smoothing=0.1), DENSE, PROBABILITIES),
    "mse": ("mse", DENSE, LOGITS),
    "mse, one output": ("mse", LOGITS[:, 0], LOGITS[:, 1:2]),
    "huber": (K.Huber(), DENSE, LOGITS),
    "cosine": (K.CosineSimilarity(), DENSE, LOGITS),
    "poisson": ("poisson", DENSE, PROBABILITIES),
    "binary": (K.BinaryCrossentropy(from_logits=True), DENSE, LOGITS),
    "focal": (K.BinaryFocalCrossentropy(), DENSE, PROBABILITIES),
    "hinge": ("categorical_hinge", DENSE, LOGITS),
    "sum": (K.MeanSquaredError(reduction="sum"), DENSE, LOGITS),
    "sequence": ("mse", np.tile(DENSE[:, None], (1, 4, 1)), np.tile(LOGITS[:, None], (1, 4, 1))),
    "sequence, sum": (
        K.MeanAbsoluteError(reduction="sum"),
        np.tile(DENSE[:, None], (1, 4, 1)),
        np.tile(LOGITS[:, None], (1, 4, 1)),
    ),
    "image": (
        K.SparseCategoricalCrossentropy(from_logits=True),
        RNG.integers(3, size=(6, 6, 5)).astype(np.int32),
        RNG.normal(size=(6, 6, 5, 3)).astype(np.float32),
    ),
    "own function": (own_loss, DENSE, LOGITS),
    "own class": (OwnLoss(), DENSE, LOGITS),
}
if compat.KERAS_3:
    OTHERS["crossentropy"] = ("crossentropy", SPARSE, PROBABILITIES)
    OTHERS["ignored class"] = (
        K.SparseCategoricalCrossentropy(ignore_class=0),
        SPARSE,
        PROBABILITIES,
    )


def passthrough(shape, loss, **kwargs) -> tfi.ISModel:
    """An ISModel whose outputs are its inputs."""
    inputs = keras.Input(shape)
    model = tfi.ISModel(keras.Model(inputs, keras.layers.Identity()(inputs)))
    model.compile("sgd", loss, **kwargs)
    return model


@pytest.mark.parametrize("weights", [np.ones(6, np.float32), WEIGHTS], ids=["ones", "weights"])
@pytest.mark.parametrize("spelling", [*SAME, *OTHERS])
def test_weighted_mean_of_examples_is_the_compiled_loss(spelling, weights):
    loss, labels, outputs = {**SAME, **OTHERS}[spelling]
    model = passthrough(outputs.shape[1:], loss)
    labels, outputs = tf.constant(labels), tf.constant(outputs)
    each = losses.per_example_losses(model.objective, labels, outputs)
    assert each.shape == [6]
    reduced = model.compute_loss(outputs, labels, outputs, tf.constant(weights))
    np.testing.assert_allclose(tf.reduce_mean(weights * each), reduced, rtol=2e-5)


@pytest.mark.parametrize("spelling", OTHERS)
def test_each_example_has_the_loss_it_has_alone(spelling):
    loss, labels, outputs = OTHERS[spelling]
    if spelling in ("sum", "sequence, sum", "ignored class"):
        pytest.skip("a sum counts examples, an ignored class leaves nothing to average")
    model = passthrough(outputs.shape[1:], loss)
    each = losses.per_example_losses(model.objective, tf.constant(labels), tf.constant(outputs))
    for i in range(6):
        one = slice(i, i + 1)
        alone = model.compute_loss(None, tf.constant(labels[one]), tf.constant(outputs[one]))
        np.testing.assert_allclose(each[i], alone, rtol=2e-5, atol=1e-6)


def test_every_spelling_of_crossentropy_gives_the_same_losses_and_gradients():
    found = []
    for loss, labels, outputs in SAME.values():
        inputs = keras.Input((3,))
        from_logits = outputs is LOGITS
        layer = keras.layers.Dense(
            3, kernel_initializer="identity", activation=None if from_logits else "softmax"
        )
        model = tfi.ISModel(keras.Model(inputs, layer(inputs)))
        model.compile("sgd", loss)
        with tf.GradientTape() as tape:
            outputs = model(LOGITS)
            each = losses.per_example_losses(model.objective, tf.constant(labels), outputs)
            reduced = model.compute_loss(None, tf.constant(labels), outputs, tf.constant(WEIGHTS))
        found.append((each.numpy(), tape.gradient(reduced, layer.kernel).numpy()))
    for each, gradient in found[1:]:
        np.testing.assert_allclose(each, found[0][0], rtol=1e-5)
        np.testing.assert_allclose(gradient, found[0][1], rtol=1e-4, atol=1e-7)


TWO = {
    "one for all": ("mse", None),
    "list": (["mse", "mae"], None),
    "dict": ({"a": "mse", "b": "mae"}, None),
    "weighted list": (["mse", "mae"], [0.5, 2.0]),
    "weighted dict": ({"a": "mse", "b": "mae"}, {"a": 0.5, "b": 2.0}),
    "only one": ([None, "mae"], None),
    "unlike shapes": (["mse", own_loss], [1.0, 3.0]),
}


@pytest.mark.parametrize("spelling", TWO)
def test_several_outputs(spelling):
    loss, loss_weights = TWO[spelling]
    inputs = keras.Input((3,))
    a = keras.layers.Dense(2, name="a")(inputs)
    b = keras.layers.Dense(8)(inputs)
    b = keras.layers.Reshape((4, 2), name="b")(b)
    model = tfi.ISModel(keras.Model(inputs, [a, b]))
    model.compile("sgd", loss, loss_weights=loss_weights)
    x = tf.constant(LOGITS)
    outputs = model(x)
    labels = (tf.ones_like(outputs[0]), tf.ones_like(outputs[1]))
    each = losses.per_example_losses(model.objective, labels, outputs)
    reduced = model.compute_loss(x, labels, outputs, tf.constant(WEIGHTS))
    np.testing.assert_allclose(tf.reduce_mean(WEIGHTS * each), reduced, rtol=1e-5)


def test_weights_meet_examples_and_not_time_steps():
    """b = T: the case in which Keras 3 would multiply along the wrong axis and not complain."""
    labels, outputs = tf.zeros([6, 6, 2]), tf.reshape(tf.range(72, dtype=tf.float32), [6, 6, 2])
    model = passthrough((6, 2), "mse")
    reduced = model.compute_loss(None, labels, outputs, tf.constant(WEIGHTS))
    truth = np.mean(WEIGHTS * np.mean(outputs.numpy() ** 2, axis=(1, 2)))
    np.testing.assert_allclose(reduced, truth, rtol=1e-5)


def test_a_mask_counts_with_the_weights():
    """Σ w m ℓ / Σ w m, so that duplicates stand for what they are drawn for."""
    inputs = keras.Input((4, 3))
    model = tfi.ISModel(keras.Model(inputs, keras.layers.Masking()(inputs)))
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    x[0, 1:] = x[3, 2:] = 0
    labels = tf.zeros_like(x)
    values, mask = np.mean(x**2, axis=-1), np.any(x != 0, axis=-1)
    x = tf.constant(x)
    plain = model.compute_loss(x, labels, model(x))
    np.testing.assert_allclose(plain, np.sum(mask * values) / np.sum(mask), rtol=1e-5)
    with tfi.layers.importance_weights(tf.constant(WEIGHTS)):
        drawn = model.compute_loss(x, labels, model(x), tf.constant(WEIGHTS))
    weighted_mask = WEIGHTS[:, None] * mask
    truth = np.sum(weighted_mask * values) / np.sum(weighted_mask)
    np.testing.assert_allclose(drawn, truth, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [lambda y, p: tf.reduce_mean((y - p) ** 2), lambda y, p: tf.reduce_mean((y - p) ** 2, axis=0)],
    ids=["scalar", "over the batch"],
)
def test_a_loss_without_values_for_examples_is_refused(loss):
    model = passthrough((3,), loss)
    with pytest.raises(ValueError, match="no value for each example.*reducing over the last axis"):
        losses.per_example_losses(model.objective, tf.constant(DENSE), tf.constant(LOGITS))


def test_several_losses_of_one_output_are_refused():
    model = passthrough((3,), ["mse", "mae"])
    with pytest.raises(losses.Unscorable, match="one loss, a function that adds them up"):
        losses.per_example_losses(model.objective, tf.constant(DENSE), tf.constant(LOGITS))


def test_weights_for_every_time_step_stay_keras():
    """Of rank above one they are a user's own, in the shape that Keras wants."""
    labels, outputs = tf.zeros([6, 5, 4, 2]), tf.random.normal([6, 5, 4, 2], seed=1)
    weights = tf.random.uniform([6, 5, 4], seed=2)
    model = passthrough((5, 4, 2), "mse")
    reduced = model.compute_loss(None, labels, outputs, weights)
    truth = np.mean(weights * np.mean(outputs**2, axis=-1))
    np.testing.assert_allclose(reduced, truth, rtol=1e-5)


@pytest.mark.skipif(not compat.KERAS_3, reason="a reduction of Keras 3")
def test_a_reduction_that_biases_is_refused():
    with pytest.raises(ValueError, match="mean_with_sample_weight.*sum_over_batch_size"):
        passthrough((3,), K.MeanSquaredError(reduction="mean_with_sample_weight"))


@pytest.mark.parametrize(
    "loss, message",
    [({"c": "mse"}, r"which are \['a', 'b'\]; got \['c'\]"), (["mse"] * 3, "got 3 for 2 outputs")],
)
def test_losses_that_do_not_fit_the_outputs(loss, message):
    objective = losses.Objective(loss, None, ["a", "b"])
    with pytest.raises(ValueError, match=message):
        losses.terms(objective, [DENSE, DENSE], [tf.constant(LOGITS)] * 2)


def test_labels_that_do_not_fit_the_outputs():
    with pytest.raises(ValueError, match="got 1 for 2 outputs"):
        losses.terms(losses.Objective("mse"), [DENSE], [tf.constant(LOGITS)] * 2)
