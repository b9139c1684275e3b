"""per_example_gradient_norms: its arguments, the registry, the table, and its errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.reference import gradients
from tests.scorers.norms.batches import assert_close, assert_exact, batch, compiled
from tests.scorers.norms.families import FAMILIES, Scale, net, of
from tf_importance.scorers.norms import registry
from tf_importance.scorers.norms.contributions import Direct

L = keras.layers


@pytest.fixture
def model():
    return compiled(FAMILIES["dense over time"]())


def test_the_norm_is_over_all_variables(model):
    x, y = batch(model)
    expected = np.sqrt(gradients.squared_norms(model, x, y).sum(axis=0))
    norms = tfi.per_example_gradient_norms(model, x, y)
    assert norms.dtype == tf.float32 and norms.shape == [4]
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    np.testing.assert_allclose(tfi.scorers.gradient_norm(model, x, y), expected, rtol=1e-5)


def test_some_of_the_variables(model):
    x, y = batch(model)
    some = model.trainable_variables[1:3]
    squared = tfi.per_example_gradient_norms(model, x, y, variables=some, per_variable=True)
    assert_close(squared, gradients.squared_norms(model, x, y, variables=some), 1e-5)
    once = tfi.per_example_gradient_norms(model, x, y, variables=[some[0], some[0]])
    np.testing.assert_allclose(once, np.sqrt(squared[0]), rtol=1e-5)


def test_frozen_layers_count_only_when_asked_for(model):
    x, y = batch(model)
    frozen = model.layers[1].kernel
    expected = gradients.squared_norms(model, x, y)
    model.layers[1].trainable = False
    assert_exact(tfi.per_example_gradient_norms(model, x, y, per_variable=True), model, x, y, 1e-5)
    squared = tfi.per_example_gradient_norms(model, x, y, variables=[frozen], per_variable=True)
    np.testing.assert_allclose(squared, expected[:1], rtol=1e-5)


def test_sample_weights_multiply(model):
    x, y = batch(model)
    weights = tf.constant([0.0, 1.0, 2.0, -0.5])
    norms = tfi.per_example_gradient_norms(model, x, y, weights)
    plain = tfi.per_example_gradient_norms(model, x, y)
    np.testing.assert_allclose(norms, plain * abs(weights), rtol=1e-5)


def test_another_loss(model):
    x, _ = batch(model)
    y = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)
    loss = keras.losses.Huber()
    squared = tfi.per_example_gradient_norms(model, x, y, loss=loss, per_variable=True)
    assert_exact(squared, model, x, y, 1e-5, loss=loss)


def test_several_inputs_outputs_and_loss_weights():
    first, second = keras.Input((4,), name="first"), keras.Input((6, 3), name="second")
    hidden = L.Concatenate()([L.Dense(3)(first), L.LSTM(3)(second)])
    model = keras.Model(
        {"first": first, "second": second},
        {"a": L.Dense(3, name="a")(hidden), "b": L.Dense(1, name="b")(hidden)},
    )
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights={"a": 2.0, "b": 0.3})
    rng = np.random.default_rng(0)
    x = {"first": rng.normal(size=(4, 4)), "second": rng.normal(size=(4, 6, 3))}
    y = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=(4, 1))}
    x, y = tf.nest.map_structure(lambda part: tf.constant(part, tf.float32), (x, y))
    assert_exact(tfi.per_example_gradient_norms(model, x, y, per_variable=True), model, x, y, 1e-5)


def test_an_ismodel_is_scored_as_its_net(model):
    x, y = batch(model)
    wrapped = tfi.ISModel(model)
    wrapped.compile("sgd", model.loss)
    expected = tfi.per_example_gradient_norms(model, x, y)
    np.testing.assert_allclose(tfi.per_example_gradient_norms(wrapped, x, y), expected, rtol=1e-6)


def test_it_leaves_the_model_as_it_was(model):
    x, y = batch(model)
    before = [dict(vars(layer)) for layer in model.layers]
    tfi.per_example_gradient_norms(model, x, y)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        tfi.per_example_gradient_norms(model, x[..., :2], y)
    assert [dict(vars(layer)) for layer in model.layers] == before


def test_an_unused_layer_has_gradients_of_zero():
    model = compiled(FAMILIES["dense"]())
    unused = L.Dense(2)
    unused.build((None, 3))

    class Both(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.unused = model, unused

        def call(self, inputs):
            self.unused(self.used(inputs))
            return self.used(inputs)

    both = Both()
    x, y = batch(model)
    both(x)
    both.compile("sgd", model.loss)
    squared = tfi.per_example_gradient_norms(both, x, y, per_variable=True)
    assert_exact(squared, both, x, y, 1e-5)
    assert np.all(np.array(squared[-2:]) == 0)


# The registry ---------------------------------------------------------------------------------


@pytest.fixture
def registered_scale(monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @tfi.scorers.norms.register(Scale, method="by hand")
    def scale(layer, call, record, inputs):
        def contributions(deltas, inputs):
            return [Direct(tfi.scorers.norms.unbroadcast(deltas * inputs, layer.scale.shape))]

        return record(call(inputs), [layer.scale], contributions, inputs)


def test_a_registered_layer_is_fast(registered_scale, recwarn):
    model = compiled(FAMILIES["unregistered"]())
    x, y = batch(model)
    assert_exact(tfi.per_example_gradient_norms(model, x, y, per_variable=True), model, x, y, 1e-5)
    assert not [each for each in recwarn if "register" in str(each.message)]
    methods = {row.kind: row.method for row in tfi.scorers.norms.coverage(model)}
    assert methods["Scale"] == "by hand"


def test_subclasses_share_a_handler_unless_they_call_otherwise():
    class Same(L.Dense):
        pass

    class Other(L.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    model = compiled(net((4,), of(Same, 4), of(Other, 4)))
    fallbacks = {row.kind: row.is_fallback for row in tfi.scorers.norms.coverage(model)}
    assert fallbacks == {"Same": False, "Other": True, "Dense": False}
    x, y = batch(model)
    with pytest.warns(UserWarning, match="Other"):
        squared = tfi.per_example_gradient_norms(model, x, y, per_variable=True)
    assert_exact(squared, model, x, y, 1e-5)


def test_the_table_prints():
    model = compiled(net((6, 4), Scale, of(L.LSTM, 3)))
    lines = str(tfi.scorers.norms.coverage(model)).splitlines()
    assert lines[0].split() == ["layer", "class", "variables", "method"]
    assert [line.split()[1:3] for line in lines[2:]] == [
        ["Scale", "1"],
        ["LSTMCell", "3"],
        ["Dense", "2"],
    ]
    assert lines[2].endswith("one example at a time")


# Bad input ------------------------------------------------------------------------------------


def test_a_model_without_a_loss():
    model = FAMILIES["dense"]()
    with pytest.raises(ValueError, match="not compiled with a loss.*give loss="):
        tfi.per_example_gradient_norms(model, *batch(model))


def test_an_unbuilt_net():
    model = keras.Sequential([L.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="not built.*call it on a batch"):
        tfi.per_example_gradient_norms(model, tf.zeros((2, 4)), tf.zeros((2, 3)))


def test_something_else_than_a_model():
    with pytest.raises(TypeError, match=r"must be a keras\.Model; got the function"):
        tfi.per_example_gradient_norms(lambda x: x, tf.zeros((2, 4)), tf.zeros((2, 3)))


@pytest.mark.parametrize("which", ["another's", "none"])
def test_variables_of_another_model(model, which):
    other = compiled(FAMILIES["dense"]()).trainable_variables
    with pytest.raises(ValueError, match=r"variables must be some of those of model .*; got"):
        tfi.per_example_gradient_norms(
            model, *batch(model), variables=other if which == "another's" else []
        )


def test_a_loss_without_values_for_examples(model):
    x, y = batch(model)
    with pytest.raises(ValueError, match="no value for each example"):
        tfi.per_example_gradient_norms(model, x, y, loss=lambda y, p: tf.reduce_mean(p))


@pytest.mark.parametrize("shape", [(3,), (4, 2), ()])
def test_sample_weights_that_do_not_fit(model, shape):
    with pytest.raises(ValueError, match=r"one entry for each example.*got shape"):
        tfi.per_example_gradient_norms(model, *batch(model), tf.ones(shape))


def test_labels_that_do_not_fit(model):
    x, y = batch(model)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        tfi.per_example_gradient_norms(model, x, (y, y))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        tfi.per_example_gradient_norms(model, x, y[:2])


@pytest.mark.parametrize("limit", [0, -1])
def test_a_memory_limit_of_nothing(model, limit):
    with pytest.raises(ValueError, match=f"positive number of bytes; got {limit}"):
        tfi.per_example_gradient_norms(model, *batch(model), memory_limit=limit)
