"""The upper bound: closed forms, the tape, and the bound itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.reference.equations import softmax
from tf_importance import compat
from tf_importance.scorers import forward
from tf_importance.scorers.upper_bound import closed_form_deltas, taped_deltas

K = keras.losses
L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 5)).astype(np.float32)
SPARSE = RNG.integers(4, size=8).astype(np.int32)
DENSE = np.eye(4, dtype=np.float32)[SPARSE]
BITS = RNG.integers(2, size=(8, 4)).astype(np.float32)
SEQUENCE_X = RNG.normal(size=(8, 6, 5)).astype(np.float32)
SEQUENCE_Y = RNG.integers(4, size=(8, 6)).astype(np.int32)


def model_of(*layers, loss, **kwargs) -> tfi.ISModel:
    model = tfi.ISModel(keras.Sequential(list(layers)))
    model.compile("sgd", loss, **kwargs)
    return model


def logits_of(model, x) -> np.ndarray:
    """Pre-activations of a last Dense layer, by NumPy."""
    *before, last = model.net.layers
    hidden = x
    for layer in before:
        hidden = layer(hidden)
    return np.asarray(hidden) @ np.asarray(last.kernel) + np.asarray(last.bias)


CLOSED = {
    "sparse, softmax": ("softmax", K.SparseCategoricalCrossentropy(), SPARSE),
    "sparse, logits": (None, K.SparseCategoricalCrossentropy(from_logits=True), SPARSE),
    "sparse, name": ("softmax", "sparse_categorical_crossentropy", SPARSE),
    "dense, softmax": ("softmax", K.CategoricalCrossentropy(), DENSE),
    "dense, logits": (None, K.CategoricalCrossentropy(from_logits=True), DENSE),
    "smoothed": (None, K.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2), DENSE),
    "binary, sigmoid": ("sigmoid", K.BinaryCrossentropy(), BITS),
    "binary, name": ("sigmoid", "binary_crossentropy", BITS),
    "binary, smoothed": ("sigmoid", K.BinaryCrossentropy(label_smoothing=0.2), BITS),
    "mse": (None, "mse", BITS),
}
TAPED = {
    "probabilities of no known activation": (tf.nn.relu, "categorical_crossentropy", DENSE),
    "mse of tanh": ("tanh", "mse", BITS),
    "huber of softplus": ("softplus", K.Huber(), BITS),
    "mse of gelu": ("gelu", "mse", BITS),
    "mae of own": (lambda z: z * tf.sigmoid(z) + 1, "mae", BITS),
    "poisson": ("exponential", "poisson", BITS),
    "focal": ("sigmoid", K.BinaryFocalCrossentropy(), BITS),
    "divergence": ("softmax", "kl_divergence", DENSE),
}


@pytest.mark.parametrize("case", CLOSED)
def test_the_closed_form_is_the_tape(case):
    activation, loss, labels = CLOSED[case]
    model = model_of(L.Dense(7, activation="relu"), L.Dense(4, activation=activation), loss=loss)
    passed = forward.of(model, X)
    closed = closed_form_deltas(model.objective, tf.constant(labels), passed)
    assert closed is not None
    taped = taped_deltas(model.objective, tf.constant(labels), passed)
    np.testing.assert_allclose(closed[0], taped[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", [*CLOSED, *TAPED])
def test_scores_are_the_derivatives_norm_by_finite_differences(case):
    """∂ℓ_i/∂z_i from the compiled loss of perturbed pre-activations, in float64."""
    activation, loss, labels = {**CLOSED, **TAPED}[case]
    model = model_of(L.Dense(7, activation="relu"), L.Dense(4, activation=activation), loss=loss)
    scores = tfi.scorers.upper_bound(model, tf.constant(X), tf.constant(labels)).numpy()
    z = logits_of(model, X).astype(np.float64)
    function = keras.activations.get(activation) or (lambda v: v)
    step = 1e-3

    def losses_at(z):
        z = tf.constant(z, tf.float32)
        return tfi.losses.per_example_losses(model.objective, tf.constant(labels), function(z))

    gradient = np.stack(
        [
            (losses_at(z + step * unit).numpy() - losses_at(z - step * unit).numpy()) / (2 * step)
            for unit in np.eye(4)
        ],
        axis=1,
    )
    np.testing.assert_allclose(scores, np.linalg.norm(gradient, axis=1), rtol=2e-2, atol=2e-3)


def test_softmax_crossentropy_is_probabilities_minus_labels():
    model = model_of(L.Dense(4, activation="softmax"), loss="sparse_categorical_crossentropy")
    scores = tfi.scorers.upper_bound(model, tf.constant(X), tf.constant(SPARSE))
    truth = np.linalg.norm(softmax(logits_of(model, X)) - DENSE, axis=1)
    np.testing.assert_allclose(scores, truth, rtol=1e-5)


class OwnNet(keras.Model):
    """A subclassed net that applies its softmax by hand."""

    def __init__(self, last):
        super().__init__()
        self.dense, self.last = L.Dense(4), last

    def call(self, inputs):
        return self.last(self.dense(inputs))


@pytest.mark.parametrize(
    "last",
    [tf.nn.softmax, keras.activations.softmax, L.Softmax(), L.Activation("softmax")],
    ids=["tf.nn", "keras.activations", "Softmax", "Activation"],
)
def test_any_spelling_of_the_last_activation_is_seen(last):
    model = tfi.ISModel(OwnNet(last))
    model.compile("sgd", "sparse_categorical_crossentropy")
    model(X[:1])
    compiled = tf.function(lambda x, y: tfi.scorers.upper_bound(model, x, y))
    scores = tfi.scorers.upper_bound(model, X, SPARSE)
    np.testing.assert_allclose(compiled(X, SPARSE), scores, rtol=1e-5)
    z = X @ np.asarray(model.net.dense.kernel) + np.asarray(model.net.dense.bias)
    np.testing.assert_allclose(scores, np.linalg.norm(softmax(z) - DENSE, axis=1), rtol=1e-4)


@pytest.mark.parametrize(
    "after",
    [
        [L.Reshape((2, 2))],
        [L.Reshape((4, 1)), L.Permute((2, 1))],
        [L.Activation("linear", dtype="float64")],
    ],
    ids=["reshaped", "transposed", "cast"],
)
def test_operations_that_keep_the_values_do_not_hide_the_activation(after):
    """Taken for the end of the net, a reshaped softmax would be scored by 1/p."""
    bare = model_of(L.Dense(4, activation="softmax"), loss="mse")
    bare(X)
    model = model_of(bare.net.layers[0], *after, loss="mse")
    labels = model(X) * 0
    scores = tfi.scorers.upper_bound(model, tf.constant(X), labels)
    expected = tfi.scorers.upper_bound(bare, tf.constant(X), tf.zeros([8, 4]))
    factor = 4 / int(np.prod(labels.shape[1:]))  # mse: the mean over all outputs is the same
    np.testing.assert_allclose(scores, factor * expected, rtol=1e-4)


def test_time_distributed_softmax_is_scored_like_the_bare_one():
    dense = L.Dense(4, activation="softmax")
    bare = model_of(dense, loss="sparse_categorical_crossentropy")
    bare(SEQUENCE_X)
    model = model_of(L.TimeDistributed(dense), loss="sparse_categorical_crossentropy")
    x, y = tf.constant(SEQUENCE_X), tf.constant(SEQUENCE_Y)
    if compat.KERAS_3:  # its TimeDistributed packs a softmax of each step
        with pytest.warns(UserWarning, match="cannot be seen.*from_logits=True"):
            tfi.scorers.upper_bound(model, x, y)
        return
    np.testing.assert_allclose(
        tfi.scorers.upper_bound(model, x, y), tfi.scorers.upper_bound(bare, x, y), rtol=1e-4
    )


class Reweighted(K.BinaryCrossentropy):
    """A subclass is another loss, whatever it inherits."""

    def call(self, y_true, y_pred):
        return 7 * super().call(y_true, y_pred)


def test_the_closed_form_is_for_the_loss_itself_only():
    plain = model_of(L.Dense(4, activation="sigmoid"), loss=K.BinaryCrossentropy())
    plain(X)
    other = tfi.ISModel(plain.net)
    other.compile("sgd", Reweighted())
    x, y = tf.constant(X), tf.constant(BITS)
    np.testing.assert_allclose(
        tfi.scorers.upper_bound(other, x, y), 7 * tfi.scorers.upper_bound(plain, x, y), rtol=1e-4
    )


def test_watching_leaves_the_net_as_it_was():
    model = model_of(L.Dense(3, activation="relu"), L.Dense(4, activation="softmax"), loss="mse")
    before = [layer.activation for layer in model.net.layers]
    tfi.scorers.upper_bound(model, tf.constant(X), tf.constant(DENSE))
    assert [layer.activation for layer in model.net.layers] == before


CLOSED_LOSS = "sparse_categorical_crossentropy"


class Fixed(L.Layer):
    """A layer whose activation cannot be set; or, where that is asked for, must not be."""

    def __init__(self, error=AttributeError):
        super().__init__()
        self._error = error

    @property
    def activation(self):
        return keras.activations.softmax

    @activation.setter
    def activation(self, value):
        raise self._error("activation is what it is")

    def call(self, inputs):
        return self.activation(inputs)


def test_an_activation_that_cannot_be_set_is_read_off_the_graph():
    model = model_of(keras.Input((5,)), L.Dense(6, "relu"), L.Dense(4), Fixed(), loss=CLOSED_LOSS)
    bare = tfi.ISModel(keras.Sequential([*model.net.layers[:-1], L.Softmax()]))
    bare.compile("sgd", CLOSED_LOSS)
    scores = tf.function(tfi.scorers.upper_bound, autograph=False)
    np.testing.assert_allclose(scores(model, X, SPARSE), scores(bare, X, SPARSE), rtol=1e-5)


def test_no_net_is_left_patched_when_something_raises():
    model = model_of(keras.Input((5,)), L.Dense(6, "relu"), L.Dense(4), Fixed(), loss=CLOSED_LOSS)
    model.net.layers[-1]._error = RuntimeError
    with pytest.raises(RuntimeError, match="is what it is"):
        tfi.scorers.upper_bound(model, X, SPARSE)
    assert model.net.layers[0].activation is keras.activations.relu



@pytest.mark.parametrize("activation", [None, "softmax"])
def test_sequence_outputs_join_in_one_norm(activation):
    loss = K.SparseCategoricalCrossentropy(from_logits=activation is None)
    model = model_of(L.LSTM(3, return_sequences=True), L.Dense(4, activation=activation), loss=loss)
    scores = tfi.scorers.upper_bound(model, tf.constant(SEQUENCE_X), tf.constant(SEQUENCE_Y))
    z = logits_of(model, SEQUENCE_X)
    deltas = (softmax(z) - np.eye(4)[SEQUENCE_Y]) / 6
    np.testing.assert_allclose(scores, np.sqrt((deltas**2).sum(axis=(1, 2))), rtol=1e-4)


def test_a_net_that_ends_in_a_recurrent_layer_is_scored_at_its_output():
    model = model_of(L.LSTM(4), loss="mse")
    scores = tfi.scorers.upper_bound(model, tf.constant(SEQUENCE_X), tf.constant(BITS))
    truth = np.linalg.norm(2 * (np.asarray(model(SEQUENCE_X)) - BITS) / 4, axis=1)
    np.testing.assert_allclose(scores, truth, rtol=1e-4)


def test_several_outputs_with_loss_weights_join_in_one_norm():
    inputs = keras.Input((5,))
    a, b = L.Dense(4, name="a")(inputs), L.Dense(1, activation="sigmoid", name="b")(inputs)
    model = tfi.ISModel(keras.Model(inputs, {"a": a, "b": b}))
    model.compile(
        "sgd", {"a": "mse", "b": "binary_crossentropy"}, loss_weights={"a": 0.5, "b": 3.0}
    )
    labels = {"a": tf.constant(BITS), "b": tf.constant(BITS[:, :1])}
    scores = tfi.scorers.upper_bound(model, tf.constant(X), labels)
    out = {name: np.asarray(value) for name, value in model(X).items()}
    delta_a = 0.5 * 2 * (out["a"] - BITS) / 4
    delta_b = 3.0 * (out["b"] - BITS[:, :1])
    truth = np.sqrt((delta_a**2).sum(axis=1) + (delta_b**2).sum(axis=1))
    np.testing.assert_allclose(scores, truth, rtol=1e-4)


def test_masked_steps_do_not_count():
    model = model_of(L.Masking(), L.Dense(4), loss="mse")
    x = SEQUENCE_X.copy()
    x[0, 2:] = 0
    labels = np.random.default_rng(1).normal(size=(8, 6, 4)).astype(np.float32)
    other = labels.copy()
    other[0, 2:] += 100
    first = tfi.scorers.upper_bound(model, tf.constant(x), tf.constant(labels))
    second = tfi.scorers.upper_bound(model, tf.constant(x), tf.constant(other))
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_it_bounds_the_gradient_norm_up_to_a_factor(depth):
    """‖∂L_i/∂θ‖ ≤ Lρ Ĝ_i with one ρ for all examples (eq. 20); ρ from the layers, by NumPy."""
    hidden = [L.Dense(6, activation="tanh", use_bias=False) for _ in range(depth)]
    model = model_of(*hidden, L.Dense(4, use_bias=False), loss=CLOSED["sparse, logits"][1])
    x, y = tf.constant(X), tf.constant(SPARSE)
    bound = tfi.scorers.upper_bound(model, x, y).numpy()
    norm = tfi.scorers.gradient_norm(model, x, y).numpy()
    activations, kernels = [X], [np.asarray(layer.kernel) for layer in model.net.layers]
    for kernel in kernels[:-1]:
        activations.append(np.tanh(activations[-1] @ kernel))
    rho = 0.0
    for i in range(8):
        delta = np.eye(4)
        for depth_from_top in range(len(kernels)):
            level = len(kernels) - 1 - depth_from_top
            rho = max(rho, np.linalg.norm(activations[level][i]) * np.linalg.norm(delta, 2))
            slope = 1 - activations[level][i] ** 2
            delta = slope[:, None] * (kernels[level] @ delta)
    assert np.all(norm <= len(kernels) * rho * bound * (1 + 1e-5))
    assert np.any(norm > 0.05 * len(kernels) * rho * bound)  # and the bound is not vacuous


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_scores_are_float32_under_mixed_precision(policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = model_of(
            L.Dense(7, activation="relu"),
            L.Dense(4, activation="softmax", dtype="float32"),
            loss="sparse_categorical_crossentropy",
        )
        scores = tfi.scorers.upper_bound(model, tf.constant(X), tf.constant(SPARSE))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert scores.dtype == tf.float32
    hidden = np.asarray(model.net.layers[0](X), np.float32)
    last = model.net.layers[1]
    z = hidden @ np.asarray(last.kernel) + np.asarray(last.bias)
    np.testing.assert_allclose(scores, np.linalg.norm(softmax(z) - DENSE, axis=1), rtol=2e-2)


def test_confident_mistakes_keep_their_score():
    """Through clipped probabilities the gradient of the hardest examples would vanish."""
    model = model_of(L.Dense(4, activation="softmax"), loss="sparse_categorical_crossentropy")
    model(X)
    last = model.net.layers[0]
    last.set_weights([np.zeros((5, 4), np.float32), np.array([200, 0, 0, 0], np.float32)])
    for scorer_of in (closed_form_deltas, taped_deltas):
        passed = forward.of(model, X[:1])
        delta = scorer_of(model.objective, tf.constant([1]), passed)
        np.testing.assert_allclose(delta[0], [[1, -1, 0, 0]], atol=1e-6)


def test_keras_functions_map_to_their_class_in_both_lanes():
    model = model_of(L.Dense(4), loss=K.mean_squared_error)
    passed = forward.of(model, X)
    assert closed_form_deltas(model.objective, tf.constant(BITS), passed) is not None
