"""With nothing drawn, training through the transform is plain Keras on the same batches.

One harness for many usages: the pipeline gives the weights 1, or a user's sample weights, and
whatever goes wrong with weights between the dataset and the update shows as a difference.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick

L = keras.layers
RNG = np.random.default_rng(0)
N, B, b = 24, 8, 4
X = RNG.normal(size=(N, 6)).astype(np.float32)
Y = RNG.integers(3, size=N).astype(np.int32)
S = RNG.uniform(0.5, 2, size=N).astype(np.float32)
TOKENS = np.where(np.arange(5) < RNG.integers(2, 6, size=(N, 1)), RNG.integers(1, 9, (N, 5)), 0)
TAGS = RNG.integers(3, size=(N, 5)).astype(np.int32)


def mlp():
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(8, activation="relu"), L.Dense(3, activation="softmax")]
    )


def tagger():
    return keras.Sequential(
        [keras.Input((5,)), L.Embedding(9, 4, mask_zero=True), L.Dense(3, activation="softmax")]
    )


def sequence():
    return keras.Sequential(
        [keras.Input((6,)), L.Reshape((3, 2)), L.LSTM(4, return_sequences=True), L.Dense(3)]
    )


def two_headed():
    inputs = keras.Input((6,))
    return keras.Model(
        inputs, {"a": L.Dense(3, activation="softmax")(inputs), "b": L.Dense(1)(inputs)}
    )


class Nested(keras.Model):
    def __init__(self):
        super().__init__()
        self.p, self.q, self.r = L.Dense(3, activation="softmax"), L.Dense(1), L.Dense(2)

    def call(self, inputs):
        return {"g": {"a": self.p(inputs), "b": self.q(inputs)}, "c": self.r(inputs)}


SPARSE = "sparse_categorical_crossentropy"
CASES = {
    "mlp": (mlp, (X, Y), {"loss": SPARSE, "metrics": ["accuracy"]}),
    "summed loss": (
        mlp,
        (X, Y),
        {"loss": keras.losses.SparseCategoricalCrossentropy(reduction="sum")},
    ),
    "masked": (tagger, (TOKENS, TAGS), {"loss": SPARSE, "metrics": ["accuracy"]}),
    "two outputs": (
        two_headed,
        (X, {"a": Y, "b": X[:, :1]}),
        {"loss": {"a": SPARSE, "b": "mse"}, "loss_weights": {"a": 1.0, "b": 0.3}},
    ),
    "one output without a loss": (
        two_headed,
        (X, {"a": Y, "b": X[:, :1]}),
        {"loss": {"a": SPARSE, "b": None}},
    ),
    "nested outputs": (
        Nested,
        (X, {"g": {"a": Y, "b": X[:, :1]}, "c": X[:, :2]}),
        {"loss": {"g": {"a": SPARSE, "b": "mse"}, "c": "mae"}},
    ),
    "auc": (
        lambda: keras.Sequential([keras.Input((6,)), L.Dense(1, activation="sigmoid")]),
        (X, (Y > 0).astype(np.float32)[:, None]),
        {"loss": "binary_crossentropy", "metrics": [keras.metrics.AUC, keras.metrics.Precision]},
    ),
    "clipped": (
        mlp,
        (X, Y),
        {"loss": SPARSE, "optimizer": lambda: keras.optimizers.SGD(0.1, clipnorm=0.1)},
    ),
}


def run(case, through_the_transform, weights, n=N, learning_rate=0.1):
    keras.utils.set_random_seed(2)
    net, (x, y), compiled = CASES[case]
    compiled = dict(compiled)
    compiled["optimizer"] = compiled.get("optimizer", lambda: keras.optimizers.SGD(learning_rate))()
    if "metrics" in compiled:
        compiled["metrics"] = [m() if isinstance(m, type) else m for m in compiled["metrics"]]
    net = net()
    net(x[:1])
    data = tf.nest.map_structure(lambda part: part[:n], (x, y, *weights))
    dataset = tf.data.Dataset.from_tensor_slices(data)
    if through_the_transform:
        model = tfi.ISModel(net)
        model.compile(**compiled)
        dataset = dataset.apply(tfi.importance_sample(model, b, B, tau_threshold="never", seed=0))
    else:
        model = net
        model.compile(**compiled)
        dataset = dataset.batch(b)
    history = model.fit(dataset, epochs=2, verbose=0).history
    return net.get_weights(), history


def assert_alike(case, weights=(), n=N, logs=True):
    plain, plain_history = run(case, False, weights, n)
    ours, history = run(case, True, weights, n)
    for a, c in zip(plain, ours):
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-6)
    for name, values in plain_history.items() if logs else ():
        # The names of AUC and Precision count up within a process.
        if name in history:
            np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)
    assert np.all(np.isfinite(history["tau"])) and np.all(np.array(history["tau"]) > 0)
    assert np.all(np.isfinite(history["ess"]))
    return history


@pytest.mark.parametrize("case", quick(CASES, "mlp", "summed loss", "masked"))
def test_it_is_plain_keras(case):
    history = assert_alike(case)
    assert history["importance"] == [0, 0] and history["max_weight"] == [1, 1]


@pytest.mark.parametrize(
    "case", quick([case for case in CASES if case not in ("masked", "auc")], "mlp", "two outputs")
)
def test_with_sample_weights_too(case):
    """Unweighted metrics are the weighted population's here, so only the training is compared."""
    history = assert_alike(case, (S,), logs=False)
    np.testing.assert_allclose(history["loss"], run(case, False, (S,))[1]["loss"], rtol=1e-4)


def test_the_scale_of_sample_weights_reaches_a_masked_loss():
    """Twice the weight is twice the learning rate. (Plain Keras 3 fails on [b] weights here.)"""
    twice, _ = run("masked", True, (np.full(N, 2.0, np.float32),))
    expected, _ = run("masked", False, (), learning_rate=0.2)
    for a, c in zip(expected, twice):
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["mlp", "summed loss"])
def test_a_short_end_too(case):
    assert_alike(case, n=N - 3, logs=False)


def test_tau_with_sample_weights_is_there_from_the_first_step():
    for n in (N, B - 2):  # whole groups, and nothing but a short one
        history = run("mlp", True, (S,), n)[1]
        assert 0.9 < history["tau"][0] < 3


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_tau_ignores_the_scale_of_sample_weights(scale):
    once = run("mlp", True, (np.ones(N, np.float32),))[1]["tau"]
    scaled = run("mlp", True, (np.full(N, scale, np.float32),))[1]["tau"]
    np.testing.assert_allclose(scaled[0], once[0], rtol=0.1)
