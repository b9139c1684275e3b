"""What a resumed run needs survives every way of saving; the export needs nothing of ours."""

import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick

L = keras.layers


@keras.saving.register_keras_serializable(package="tests")
class OwnNet(keras.Model):
    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = L.Dense(units, activation="relu")
        self.normal = tfi.layers.BatchNormalization()
        self.last = L.Dense(4, activation="softmax")

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.normal.build((None, self.units))
        self.last.build((None, self.units))
        super().build(input_shape)

    def call(self, inputs):
        return self.last(self.normal(self.hidden(inputs)))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
def own_scorer(model, x, y):
    return tf.ones_like(x[:, 0])


def functional():
    inputs = keras.Input((2,))
    hidden = tfi.layers.BatchNormalization()(L.Dense(6, activation="relu")(inputs))
    return keras.Model(inputs, L.Dense(4, activation="softmax")(hidden))


def sequential():
    return keras.Sequential([L.Dense(6, activation="relu"), L.Dense(4, activation="softmax")])


NETS = {"functional": functional, "sequential": sequential, "subclassed": OwnNet}
# One in every run, the others by `make test-slow`.
EACH_NET = [
    pytest.param("functional", marks=pytest.mark.slow),
    pytest.param("sequential", marks=pytest.mark.slow),
    "subclassed",
]


def compiled(net, **kwargs) -> tfi.ISModel:
    model = tfi.ISModel(net(), tau_decay=0.8, **kwargs)
    model.compile(
        keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def batches_for(model, blobs):
    return (
        tf.data.Dataset.from_tensor_slices(blobs)
        .repeat()
        .apply(tfi.importance_sample(model, 8, 32, tau_threshold=1.1, seed=0))
    )


def trained(net, blobs, **kwargs) -> tfi.ISModel:
    model = compiled(net, **kwargs)
    model.fit(batches_for(model, blobs), steps_per_epoch=30, verbose=0)
    return model


def tau(model) -> float:
    return float(tf.convert_to_tensor(model.tau))


def assert_goes_on_alike(model, other, blobs):
    """Both models take the same next steps, to the last digit, τ and optimizer included."""
    assert tau(model) == tau(other) > 0
    for each in (model, other):
        keras.utils.set_random_seed(5)
        each.fit(batches_for(each, blobs), steps_per_epoch=10, verbose=0)
    for a, b in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(a, b)
    assert tau(model) == tau(other)


@pytest.mark.parametrize("net", EACH_NET)
def test_save_and_load_model(net, blobs, tmp_path):
    model = trained(NETS[net], blobs)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(restored, tfi.ISModel)
    assert restored.tau_decay == 0.8 and restored.scorer is tfi.scorers.upper_bound
    assert_goes_on_alike(model, restored, blobs)


@pytest.mark.parametrize("net", EACH_NET)
def test_save_and_load_weights(net, blobs, tmp_path):
    model = trained(NETS[net], blobs)
    model.save_weights(str(tmp_path / "model.weights.h5"))
    other = compiled(NETS[net])
    other(blobs[0][:1])
    other.load_weights(str(tmp_path / "model.weights.h5"))
    assert tau(other) == tau(model)
    np.testing.assert_array_equal(
        model.predict(blobs[0], verbose=0), other.predict(blobs[0], verbose=0)
    )


@pytest.mark.parametrize("net", EACH_NET)
def test_checkpoint(net, blobs, tmp_path):
    model = trained(NETS[net], blobs)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "at"))
    other = trained(NETS[net], blobs)
    other.tau.assign(7.0)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path)
    assert_goes_on_alike(model, other, blobs)


@pytest.mark.parametrize(
    "scorer",
    quick([tfi.scorers.loss, tfi.scorers.gradient_norm, own_scorer], own_scorer),
    ids=lambda s: s.__name__,
)
def test_the_scorer_is_saved(scorer, blobs, tmp_path):
    model = trained(functional, blobs, scorer=scorer)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").scorer is scorer


def test_a_loaded_model_says_that_its_sampler_is_missing_and_goes_on_with_one(blobs, tmp_path):
    path, sampler = tmp_path / "model.keras", tfi.samplers.Proportional()
    model = tfi.ISModel(functional())
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile("sgd", loss, sampler=sampler)
    model.fit(*blobs, batch_size=8, epochs=1, verbose=0)
    model.save(path)
    with pytest.warns(UserWarning, match=r"no sampler.*compile\(.*sampler=.*load_weights\(file\)"):
        restored = keras.models.load_model(path)
    again = tfi.samplers.Proportional()
    restored.compile(restored.optimizer, restored.loss, sampler=again)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        restored.load_weights(str(path))
        keras.models.load_model(path, compile=False)  # For predictions.
    again.build(len(blobs[0]))
    assert sampler.variables and len(sampler.variables) == len(again.variables)
    for kept, found in zip(sampler.variables, again.variables):
        np.testing.assert_array_equal(kept.numpy(), found.numpy(), err_msg=kept.name)


SERVE = """
    import pathlib
    import sys
    sys.modules["tf_importance"] = None  # importing it would fail
    import numpy as np
    import tensorflow as tf
    for directory in map(pathlib.Path, sys.argv[1:]):
        served = tf.saved_model.load(str(directory / "export"))
        serve = served.signatures["serving_default"]
        (name,) = serve.structured_input_signature[1]
        (outputs,) = serve(**{name: tf.constant(np.load(directory / "x.npy"))}).values()
        np.save(directory / "y.npy", outputs.numpy())
"""


@pytest.mark.slow
def test_the_exports_serve_with_plain_tensorflow(blobs, tmp_path):
    models = {tmp_path / name: trained(net, blobs) for name, net in NETS.items()}
    for directory, model in models.items():
        model.export(str(directory / "export"))
        np.save(directory / "x.npy", blobs[0])
    # In one process: importing TensorFlow takes longer than all the rest.
    command = [sys.executable, "-c", textwrap.dedent(SERVE), *map(str, models)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for directory, model in models.items():
        served = np.load(directory / "y.npy")
        name = directory.name
        alone, wrapped = model.net.predict(blobs[0], verbose=0), model.predict(blobs[0], verbose=0)
        np.testing.assert_allclose(served, alone, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(served, wrapped, atol=1e-6, err_msg=name)
