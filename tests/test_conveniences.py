"""Keras's conveniences, each against plain Keras: a never drawn ISModel does what the net does, and
a drawn one trains with it."""

import copy
import csv
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import compat

L = keras.layers
N, b, B = 96, 8, 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5)).astype("float32")
Y = (X @ RNG.normal(size=(5, 3))).argmax(1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS = ("plain", "never", "always", "memory")


def make():
    keras.utils.set_random_seed(2)
    return keras.Sequential([keras.Input((5,)), L.Dense(8, "relu"), L.Dense(3)])


def trained(way, optimizer, callbacks=(), epochs=3, steps=N // b, net=None, **options):
    """The net and the history of a training by the way."""
    net = make() if net is None else net
    data = tf.data.Dataset.from_tensor_slices((X, Y)).repeat()
    if way == "plain":
        net.compile(optimizer, LOSS, **options)
        model, data = net, data.batch(b)
    else:
        model = tfi.ISModel(net)
        sampler = tfi.samplers.Proportional() if way == "memory" else None
        model.compile(optimizer, LOSS, sampler=sampler, **options)
        if sampler:
            data = tfi.history_sample((X, Y), sampler, b, seed=1).repeat()
        else:
            sampled = tfi.importance_sample(model, b, B, tau_threshold=way, seed=1)
            data = data.apply(sampled)
    history = model.fit(
        data, epochs=epochs, steps_per_epoch=steps, verbose=0, callbacks=list(callbacks)
    )
    return net, history.history, model


def assert_alike(make_callbacks=lambda: (), make_optimizer=None, logs=("loss",), **options):
    """Never drawn it is plain Keras, to the last digits; drawn it trains. Returns the histories."""
    make_optimizer = make_optimizer or (lambda: keras.optimizers.SGD(0.2))
    found = {way: trained(way, make_optimizer(), make_callbacks(), **options) for way in WAYS}
    for mine, theirs in zip(found["never"][0].get_weights(), found["plain"][0].get_weights()):
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=1e-6)
    for name in logs:
        mine, theirs = found["never"][1][name], found["plain"][1][name]
        np.testing.assert_allclose(mine, theirs, rtol=1e-3)
    for way in ("always", "memory"):
        assert np.isfinite(found[way][1]["loss"]).all()
        assert any(
            np.abs(w - v).max() > 1e-4
            for w, v in zip(found[way][0].get_weights(), make().get_weights())
        )
    return {way: history for way, (_, history, _) in found.items()}


OPTIONS = {
    "steps_per_execution": {"steps_per_execution": 4},
    "run_eagerly": {"run_eagerly": True, "epochs": 1, "steps": 4},
    "jit_compile": {"jit_compile": True, "epochs": 1},
    "loss_weights": {"loss_weights": [0.5]},
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if "jit" in one else ()) for one in OPTIONS]
)
def test_options_of_compile(name):
    assert_alike(**OPTIONS[name])


def test_an_average_of_weights():
    optimizer = lambda: keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.5)  # noqa: E731
    assert_alike(make_optimizer=optimizer)


@pytest.mark.skipif(not compat.KERAS_3, reason="Keras 2 does not accumulate")
def test_accumulated_gradients():
    assert_alike(make_optimizer=lambda: keras.optimizers.SGD(0.2, gradient_accumulation_steps=3))


def test_the_rate_falls_at_a_plateau():
    def callbacks():
        return [keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=10.0)]

    name = "learning_rate" if compat.KERAS_3 else "lr"
    rates = assert_alike(callbacks, logs=("loss", name), epochs=4)["always"][name]
    assert rates[-1] < 0.1 * rates[0]


def test_a_scheduler_sets_the_rate():
    def callbacks():
        return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.2 / (1 + epoch))]

    name = "learning_rate" if compat.KERAS_3 else "lr"
    rates = assert_alike(callbacks, logs=("loss", name))["memory"][name]
    np.testing.assert_allclose(rates, [0.2, 0.1, 0.2 / 3], rtol=1e-5)


def test_training_stops_early():
    def callbacks():
        return [keras.callbacks.EarlyStopping("loss", patience=0, min_delta=10.0)]

    histories = assert_alike(callbacks, epochs=6)
    assert {len(history["loss"]) for history in histories.values()} == {2}


def test_logs_are_written(tmp_path):
    for way in WAYS:
        path, board = tmp_path / f"{way}.csv", tmp_path / way
        callbacks = [keras.callbacks.CSVLogger(path), keras.callbacks.TensorBoard(board)]
        _, history, _ = trained(way, keras.optimizers.SGD(0.2), callbacks)
        rows = list(csv.DictReader(path.open()))
        np.testing.assert_allclose([float(row["loss"]) for row in rows], history["loss"], rtol=1e-4)
        assert any(board.rglob("events*"))
        assert ("tau" in rows[0]) == (way != "plain")


def test_checkpoints_of_the_best_are_kept(tmp_path):
    for way in WAYS:
        path = tmp_path / f"{way}.weights.h5"
        kept = keras.callbacks.ModelCheckpoint(
            str(path), "loss", save_best_only=True, save_weights_only=True
        )
        _, _, model = trained(way, keras.optimizers.SGD(0.2), [kept])
        wanted = [np.array(part) for part in model.get_weights()]
        for variable in model.trainable_variables:
            variable.assign(tf.zeros_like(tf.convert_to_tensor(variable)))
        model.load_weights(path)
        for mine, theirs in zip(model.trainable_variables, make().trainable_variables):
            assert np.abs(tf.convert_to_tensor(mine) - tf.convert_to_tensor(theirs)).max() > 1e-4
        assert len(wanted) == len(model.get_weights())


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path):
    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise Killed

    for way in WAYS:

        def backup(way=way):
            return keras.callbacks.BackupAndRestore(tmp_path / way)

        whole, _, _ = trained(way, keras.optimizers.SGD(0.2), epochs=3)
        # The kill comes before the epoch is kept.
        with pytest.raises(Killed):
            trained(way, keras.optimizers.SGD(0.2), [Kill(), backup()], epochs=3)
        again, history, _ = trained(way, keras.optimizers.SGD(0.2), [backup()], epochs=3)
        assert len(history["loss"]) == 2
        for mine, theirs in zip(again.get_weights(), whole.get_weights()):
            if way in ("plain", "never"):
                np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
            assert np.isfinite(mine).all()


def test_copies_clones_and_pickles_predict_alike():
    net, _, model = trained("always", keras.optimizers.SGD(0.2))
    wanted = net.predict(X, verbose=0)
    np.testing.assert_allclose(model.predict(X, verbose=0), wanted, rtol=1e-6)
    clone = keras.models.clone_model(net)
    clone.set_weights(net.get_weights())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), clone):
        np.testing.assert_allclose(other.predict(X, verbose=0), wanted, rtol=1e-5)
        # And is a net to train.
        trained("always", keras.optimizers.SGD(0.2), net=other, epochs=1)


def test_an_equal_loss_object_after_unfreezing_is_the_same():
    """It was taken for another one, and warned of."""
    net = make()
    net.layers[0].trainable = False
    model = tfi.ISModel(net)
    loss = {"from_logits": True}
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(**loss))
    data = tf.data.Dataset.from_tensor_slices((X, Y)).apply(
        tfi.importance_sample(model, b, B, tau_threshold="always")
    )
    model.fit(data, verbose=0)
    before = net.get_weights()[0]
    net.layers[0].trainable = True
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(**loss))
    model.fit(data, verbose=0)
    assert np.abs(net.get_weights()[0] - before).max() > 1e-6


@pytest.mark.skipif(not hasattr(L.Dense, "enable_lora"), reason="Keras 2 has no LoRA")
def test_adapters_of_low_rank():
    found = []
    for way in ("plain", "never"):
        net = make()
        net.layers[0].enable_lora(2)
        found.append(trained(way, keras.optimizers.SGD(0.2), net=net)[0].get_weights())
    for theirs, mine in zip(*found):
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=1e-6)
    net = make()
    net.layers[0].enable_lora(2)
    _, history, _ = trained("always", keras.optimizers.SGD(0.2), net=net)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.skipif(not hasattr(keras.Model, "quantize"), reason="Keras 2 does not quantize")
def test_a_trained_net_is_quantized():
    net, _, _ = trained("always", keras.optimizers.SGD(0.2))
    wanted = net.predict(X, verbose=0)
    net.quantize("int8")
    assert np.abs(net.predict(X, verbose=0) - wanted).max() < 0.2


@pytest.mark.parametrize("way", ["always", "memory"])
@pytest.mark.slow
def test_keras_tuner_searches_and_loads_the_best(way, tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")

    class Drawn(keras_tuner.HyperModel):
        def build(self, hp):
            net = keras.Sequential([keras.Input((5,)), L.Dense(hp.Int("units", 4, 8)), L.Dense(3)])
            model = tfi.ISModel(net)
            sampler = tfi.samplers.RAIS() if way == "memory" else None
            model.compile(keras.optimizers.SGD(hp.Float("rate", 0.01, 0.5)), LOSS, sampler=sampler)
            return model

        def fit(self, hp, model, x, y, **given):
            if way == "memory":
                return model.fit(x, y, batch_size=b, **given)
            data = tf.data.Dataset.from_tensor_slices((x, y))
            drawn = data.apply(tfi.importance_sample(model, b, B, tau_threshold=way))
            return model.fit(drawn, **given)

    tuner = keras_tuner.RandomSearch(
        Drawn(), "val_loss", max_trials=2, seed=0, directory=tmp_path, project_name=way
    )
    tuner.search(X, Y, epochs=2, validation_data=(X, Y), verbose=0)
    (best,) = tuner.get_best_models()
    score = tuner.oracle.get_best_trials()[0].score
    assert best.evaluate(X, Y, verbose=0) == pytest.approx(score, rel=1e-4)
    assert best.fit(X, Y, batch_size=b, verbose=0).history["loss"]
