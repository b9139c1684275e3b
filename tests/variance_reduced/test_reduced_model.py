"""Variance-reduced models among Keras's: saved, resumed, any net, clear refusals."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import compat

METHODS = {
    "svrg": lambda net, data: tfi.variance_reduced.SVRG(net, data, inner_steps=3),
    "katyusha": lambda net, data: tfi.variance_reduced.Katyusha(
        net, data, inner_steps=3, momentum=0.4, strong_convexity=0.1
    ),
    "scsg": lambda net, data: tfi.variance_reduced.SCSG(
        net, data, large_batch=64, growth_rate=1.5, inner_steps=3
    ),
}
LOSS = "sparse_categorical_crossentropy"


def _mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.layers.Input([2]),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )


def _values(model) -> list[np.ndarray]:
    return [compat.value(weight).numpy() for weight in model.weights]


@pytest.fixture
def data(blobs):
    return tf.data.Dataset.from_tensor_slices(blobs).batch(128)


@pytest.fixture
def batches(blobs):
    return tf.data.Dataset.from_tensor_slices(blobs).batch(32)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_fit_trains_evaluates_and_predicts(name, blobs, data, batches):
    model = METHODS[name](_mlp(), data)
    model.compile(keras.optimizers.SGD(0.3), LOSS, metrics=["accuracy"])
    history = model.fit(batches, epochs=4, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert model.evaluate(batches, verbose=0)[0] == pytest.approx(
        float(tf.reduce_mean(keras.losses.get(LOSS)(blobs[1], model.net(blobs[0])))), rel=1e-4
    )
    # 64 steps in stages of three.
    assert int(compat.value(model.stage)) == 22 and int(compat.value(model.remaining)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_restored_run_goes_on_within_its_stage(name, data, batches, tmp_path):
    def fresh():
        keras.utils.set_random_seed(1)
        model = METHODS[name](_mlp(), data)
        model.compile(keras.optimizers.SGD(0.3), LOSS)
        return model

    whole, first, second = fresh(), fresh(), fresh()
    whole.fit(batches.take(8), shuffle=False, verbose=0)
    first.fit(batches.take(5), shuffle=False, verbose=0)
    first.save_weights(tmp_path / "run.weights.h5")
    second.load_weights(tmp_path / "run.weights.h5")
    if name == "scsg":
        # Iterators of data are no part of a checkpoint, as in Keras.
        second._batches = first._batches
    second.fit(batches.skip(5).take(3), shuffle=False, verbose=0)
    for one, other in zip(_values(second), _values(whole)):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_of_tensorflow_holds_every_variable(name, data, batches, tmp_path):
    first, second = METHODS[name](_mlp(), data), METHODS[name](_mlp(), data)
    first.compile(keras.optimizers.SGD(0.3), LOSS)
    first.fit(batches.take(5), verbose=0)
    path = tf.train.Checkpoint(model=first).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=second).restore(path)
    for one, other in zip(_values(second), _values(first)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_model_loads_and_trains_once_it_has_data(name, data, batches, tmp_path):
    model = METHODS[name](_mlp(), data)
    model.compile(keras.optimizers.SGD(0.3), LOSS)
    model.fit(batches.take(4), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(_values(loaded), _values(model)):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="has no data.*set model.data"):
        loaded.fit(batches.skip(4), verbose=0)
    loaded.data = data
    loaded.fit(batches.take(4), verbose=0)


def _conv_net() -> keras.Model:
    """Two inputs and outputs, batch normalization, dropout, a layer of sparse gradients."""
    word = keras.layers.Input([3], dtype="int32", name="word")
    point = keras.layers.Input([2], name="point")
    hidden = keras.layers.Flatten()(keras.layers.Embedding(5, 4)(word))
    hidden = keras.layers.Concatenate()([hidden, keras.layers.Dense(8)(point)])
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Dropout(0.5)(hidden)
    classes = keras.layers.Dense(4, activation="softmax", name="classes")(hidden)
    value = keras.layers.Dense(1, name="value")(hidden)
    return keras.Model([word, point], [classes, value])


def test_any_net_trains_and_a_snapshot_changes_nothing_else(blobs):
    points, labels = blobs
    words = np.random.default_rng(0).integers(5, size=[len(points), 3])
    examples = ((words, points), (labels, points[:, :1]))
    batches = tf.data.Dataset.from_tensor_slices(examples).batch(64)
    net = _conv_net()
    model = tfi.variance_reduced.SVRG(net, batches, inner_steps=4)
    model.compile(keras.optimizers.SGD(0.05), [LOSS, "mse"])
    logs = model.fit(batches, epochs=2, verbose=0).history
    parts = [value for name, value in logs.items() if name != "loss"]
    # The losses of the outputs are averaged over the steps alone: they add up to the whole.
    np.testing.assert_allclose(np.sum(parts, axis=0), logs["loss"], rtol=1e-4)
    before = [compat.value(weight).numpy() for weight in net.weights]
    model.take_snapshot()
    for one, other in zip(net.weights, before):
        np.testing.assert_array_equal(compat.value(one), other)


def test_moving_statistics_follow_the_steps_alone(blobs):
    points, labels = blobs
    nets = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.BatchNormalization(), keras.layers.Dense(4, activation="softmax")]
        nets.append(keras.Sequential([keras.layers.Input([2]), *layers]))
    batches = tf.data.Dataset.from_tensor_slices((points, labels)).batch(64)
    plain, reduced = nets
    plain.compile(keras.optimizers.SGD(0.0), LOSS)
    plain.fit(batches, shuffle=False, verbose=0)
    model = tfi.variance_reduced.SVRG(reduced, batches, inner_steps=3)
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    model.fit(batches, shuffle=False, verbose=0)
    for one, other in zip(reduced.get_weights(), plain.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Not built before it is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4, activation="softmax")

    def call(self, inputs):
        return self.dense(inputs)


def test_an_unbuilt_net_is_built_from_the_data(data, batches):
    model = METHODS["svrg"](Subclassed(), data)
    model.compile(keras.optimizers.SGD(0.3), LOSS)
    model.fit(batches, verbose=0)
    assert len(model._snapshot) == 2


def test_several_steps_in_one_execution_and_one_trace(data, batches):
    model = tfi.variance_reduced.SVRG(_mlp(), data, inner_steps=4)
    model.compile(keras.optimizers.SGD(0.3), LOSS, steps_per_execution=2)
    model.fit(batches, verbose=0)
    assert int(compat.value(model.stage)) == 4
    traces = model._accumulate.experimental_get_tracing_count()
    model.fit(batches, verbose=0)
    assert model._accumulate.experimental_get_tracing_count() == traces == 1


def _endless():
    return tf.data.Dataset.from_tensors((tf.zeros([2, 2]), tf.zeros([2], tf.int32))).repeat()


def _compiled(method="svrg", optimizer="sgd", loss=LOSS, data=None, **options):
    model = METHODS[method](_mlp(), data)
    model.compile(optimizer, loss, **options)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: METHODS["svrg"]("net", None), "must be a keras.Model.*got 'net'"),
        (lambda: METHODS["svrg"](_mlp(), [1]), "must be a tf.data.Dataset"),
        (lambda: METHODS["svrg"](Subclassed(), None), "is not built"),
        (lambda: METHODS["svrg"](_mlp(), _endless()), "data must end"),
        (lambda: tfi.variance_reduced.SVRG(_mlp(), None, inner_steps=0), "inner_steps.*got 0"),
        (lambda: _compiled(loss=keras.losses.MeanSquaredError(reduction="sum")), "summed over"),
        (lambda: _compiled("katyusha", "adam"), "must be keras.optimizers.SGD"),
        (lambda: _compiled("katyusha", keras.optimizers.SGD(0.1, 0.9)), "momentum 0.9"),
        (
            lambda: tfi.variance_reduced.Katyusha(_mlp(), None, inner_steps=1, momentum=0.7),
            r"momentum must be in \(0, 1 - katyusha_momentum\].*got 0.7",
        ),
        (
            lambda: tfi.variance_reduced.SCSG(_mlp(), None, large_batch=9, growth_rate=0.5),
            "growth_rate must be at least 1.*got 0.5",
        ),
        (lambda: tfi.variance_reduced.SCSG(_mlp(), None, large_batch=9), "must be given"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_came(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_class_weights_are_refused_and_sample_weights_reach_both_gradients(data, batches):
    model = METHODS["svrg"](_mlp(), data)
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="as sample weights of both datasets"):
        model.fit(batches, class_weight={0: 2.0}, verbose=0)
    weighted = [
        part.map(lambda x, y: (x, y, 2.0 * tf.ones_like(y, tf.float32))) for part in (data, batches)
    ]
    keras.utils.set_random_seed(3)
    double = METHODS["svrg"](_mlp(), weighted[0])
    double.compile(keras.optimizers.SGD(0.1), LOSS)
    double.fit(weighted[1], shuffle=False, verbose=0)
    keras.utils.set_random_seed(3)
    plain = METHODS["svrg"](_mlp(), data)
    plain.compile(keras.optimizers.SGD(0.2), LOSS)
    plain.fit(batches, shuffle=False, verbose=0)
    for one, other in zip(double.net.get_weights(), plain.net.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_several_replicas_are_refused(data, batches):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = METHODS["svrg"](_mlp(), data)
        model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="work on one replica; got 2"):
        model.fit(batches, verbose=0)


def test_weights_frozen_afterwards_are_refused(data):
    model = METHODS["svrg"](_mlp(), data)
    model.net.layers[0].trainable = False
    with pytest.raises(ValueError, match="has 2 trainable variables, and had 4"):
        model.compile("sgd", LOSS)


def test_steps_per_execution_must_divide_the_inner_steps(data, batches):
    model = METHODS["svrg"](_mlp(), data)
    model.compile("sgd", LOSS, steps_per_execution=2)
    with pytest.raises(ValueError, match="multiple of steps_per_execution.*got 3 and 2"):
        model.fit(batches, verbose=0)
