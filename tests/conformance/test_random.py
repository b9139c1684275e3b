"""Nets, losses, labels and weights as they come: Keras's own step, or a refusal before it."""

import warnings

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

import tf_importance as tfi
from tests.conformance import table
from tests.conformance.drawn import INDICES, WEIGHTS, Given, b, equal_scores, resampled

L = keras.layers
N = table.N
LOSSES = [
    "mse", "mae", "mape", "msle", "huber", "log_cosh", "poisson", "kl_divergence", "hinge",
    "squared_hinge", "categorical_hinge", "cosine_similarity", "binary_crossentropy",
    "binary_focal_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy",
]  # fmt: skip
HIDDEN = {
    "dense": lambda: [L.Dense(4, "relu")],
    "normalized": lambda: [L.LayerNormalization(), L.Dense(4, "tanh")],
    "recurrent": lambda: [L.Reshape((3, 2)), L.GRU(3)],
    "convolutional": lambda: [L.Reshape((6, 1)), L.Conv1D(3, 2), L.GlobalMaxPooling1D()],
    "regularized": lambda: [L.Dense(4, kernel_regularizer="l1")],
    "none": list,
}


class Case:
    """A net and its data, drawn by hypothesis."""

    def __init__(self, draw):
        self.loss = draw(st.sampled_from(LOSSES))
        self.hidden = draw(st.sampled_from(sorted(HIDDEN)))
        # One class has no other label than 0.
        self.units = draw(st.integers(2 if self.loss.startswith("sparse") else 1, 3))
        self.activation = draw(st.sampled_from([None, "sigmoid", "softmax", "tanh"]))
        self.inputs = draw(st.sampled_from(["float32", "float64", "float16", "int32", "uint8"]))
        self.labels = draw(st.sampled_from(["float32", "float64", "int32", "int64", "uint8"]))
        self.shape = draw(st.sampled_from(["[n]", "[n, 1]", "[n, k]"]))
        self.weights = draw(st.sampled_from(["none", "[n]", "[n, 1]", "int", "float64"]))
        self.route = draw(st.sampled_from(table.ROUTES))

    def __repr__(self):
        return f"Case({vars(self)})"

    def net(self):
        layers = [*HIDDEN[self.hidden](), L.Dense(self.units, self.activation)]
        return keras.Sequential([keras.Input((6,)), *layers])

    def data(self):
        rng = np.random.default_rng(4)
        x = (4 * rng.random((N, 6))).astype(self.inputs)
        classes = rng.integers(0, self.units, N)
        shaped = {"[n]": classes, "[n, 1]": classes[:, None], "[n, k]": np.eye(self.units)[classes]}
        own = rng.gamma(1.0, 1.0, N).astype("float32")
        forms = {"none": None, "[n]": own, "[n, 1]": own[:, None]}
        forms |= {"int": np.ceil(own).astype("int32"), "float64": own.astype("float64")}
        return x, shaped[self.shape].astype(self.labels), forms[self.weights]


def drawn_step(case, net, x, y, own):
    model = tfi.ISModel(net)
    optimizer = keras.optimizers.SGD(0.1)
    if case.route == table.ROUTES[0]:
        model.compile(optimizer, case.loss, sampler=Given(), jit_compile=False)
        model.fit(x, y, sample_weight=own, batch_size=b, steps_per_epoch=1, verbose=0)
        return
    model.compile(optimizer, case.loss, jit_compile=False)
    in_step = case.route == table.ROUTES[2]
    sampled = tfi.importance_sample(
        model,
        b,
        N,
        tau_threshold="always",
        scorer=equal_scores,
        resampling=resampled,
        score_in="step" if in_step else "pipeline",
    )
    parts = (x, y) if own is None else (x, y, own)
    model.fit(tf.data.Dataset.from_tensor_slices(parts).apply(sampled), verbose=0)


def plain_step(case, net, x, y, own):
    own = np.ones(N, np.float32) if own is None else own.reshape(-1).astype(np.float32)
    net.compile(keras.optimizers.SGD(0.1), case.loss, run_eagerly=True)
    net.train_on_batch(x[INDICES], y[INDICES], sample_weight=own[INDICES] * WEIGHTS)


def check(case):
    keras.backend.clear_session()
    keras.utils.set_random_seed(5)
    net, other = case.net(), case.net()
    other.set_weights(net.get_weights())
    before, data = net.get_weights(), case.data()
    try:
        plain_step(case, other, *data)
    except Exception:
        # Not Keras's either: refused, and nothing is trained.
        with pytest.raises((ValueError, TypeError)):
            drawn_step(case, net, *data)
        for mine, was in zip(net.get_weights(), before):
            np.testing.assert_array_equal(mine, was)
        return
    drawn_step(case, net, *data)
    for mine, theirs in zip(net.get_weights(), other.get_weights()):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)
        assert np.isfinite(theirs).all() <= np.isfinite(mine).all()


def randomly(examples):
    """A test of so many cases."""

    @settings(max_examples=examples)
    @given(data=st.data())
    def of_cases(data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(Case(data.draw))

    return of_cases


test_a_drawn_step_is_keras_own_or_refused = randomly(5)
test_many_drawn_steps_are = pytest.mark.slow(randomly(25))
