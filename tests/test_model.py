"""ISModel: plain Keras on plain data, unbiased training metrics on drawn data, τ, logs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tests.reference import equations
from tf_importance import compat, marks

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6)).astype(np.float32)
Y = RNG.integers(3, size=48).astype(np.int32)
S = RNG.uniform(0, 2, size=48).astype(np.float32)


def sequential(*layers, inputs=(6,)):
    return lambda: keras.Sequential([keras.Input(inputs), *(layer() for layer in layers)])


class WithAddedLoss(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.last = L.Dense(8, activation="relu"), L.Dense(3, activation="softmax")

    def call(self, inputs):
        hidden = self.hidden(inputs)
        self.add_loss(1e-2 * tf.reduce_mean(hidden**2))
        return self.last(hidden)


def two_headed():
    inputs = keras.Input((6,))
    hidden = L.Dense(8, activation="tanh")(inputs)
    return keras.Model(
        inputs, [L.Dense(3, activation="softmax", name="a")(hidden), L.Dense(1, name="b")(hidden)]
    )


SOFTMAX = lambda: L.Dense(3, activation="softmax")  # noqa: E731
NETS = {
    "mlp": sequential(lambda: L.Dense(8, activation="relu"), SOFTMAX),
    "regularized": sequential(
        lambda: L.Dense(8, kernel_regularizer="l2", activity_regularizer="l1"), SOFTMAX
    ),
    "dropout": sequential(lambda: L.Dense(8), lambda: L.Dropout(0.5, seed=1), SOFTMAX),
    "batch norm": sequential(lambda: L.Dense(8), tfi.layers.BatchNormalization, SOFTMAX),
    "lstm": sequential(lambda: L.Reshape((3, 2)), lambda: L.LSTM(4), SOFTMAX),
    "cnn": sequential(
        lambda: L.Reshape((3, 2, 1)), lambda: L.Conv2D(4, 2), L.Flatten, SOFTMAX
    ),
    "added loss": WithAddedLoss,
}
COMPILED = {
    "sgd": {},
    "adam, clipped": {"optimizer": lambda: keras.optimizers.Adam(1e-2, clipnorm=0.1)},
    "weighted metrics": {"weighted_metrics": ["accuracy"]},
    "two steps per execution": {"steps_per_execution": 2},
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
    "no xla": {"jit_compile": False},
}


def fitted(net, wrap, data=None, *, fit=None, optimizer=None, loss=None, metrics=None, **kwargs):
    """Train a net, in an ISModel or by itself, from the same seed: model and history."""
    keras.utils.set_random_seed(3)
    net = net()
    model = tfi.ISModel(net) if wrap else net
    optimizer = optimizer() if optimizer else keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(
        optimizer=optimizer,
        loss=loss or "sparse_categorical_crossentropy",
        metrics=["accuracy"] if metrics is None else metrics,
        **kwargs,
    )
    data = (X, Y) if data is None else data
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    history = model.fit(dataset, epochs=3, verbose=0, **(fit or {})).history
    return net, history, model


def assert_same_training(net, data=None, **kwargs):
    plain, plain_history, plain_model = fitted(net, False, data, **kwargs)
    wrapped, wrapped_history, wrapped_model = fitted(net, True, data, **kwargs)
    for a, b in zip(plain.get_weights(), wrapped.get_weights()):
        np.testing.assert_array_equal(a, b)
    for name, values in plain_history.items():
        assert wrapped_history[name] == values, name
    added = set(wrapped_history) - set(plain_history)
    assert added == {"tau", "ess", "importance", "max_weight", "fallbacks"}
    return plain_model, wrapped_model


@pytest.mark.parametrize("net", quick(NETS, "mlp", "cnn", "batch norm"))
def test_on_plain_data_it_is_plain_keras_to_the_last_digit(net):
    plain, wrapped = assert_same_training(NETS[net])
    np.testing.assert_array_equal(plain.predict(X, verbose=0), wrapped.predict(X, verbose=0))
    assert plain.evaluate(X, Y, verbose=0) == wrapped.evaluate(X, Y, verbose=0)
    weighted = {"sample_weight": S, "verbose": 0}
    assert plain.evaluate(X, Y, **weighted) == wrapped.evaluate(X, Y, **weighted)


@pytest.mark.parametrize("arguments", quick(COMPILED, "sgd", "eager", "xla"))
def test_however_it_is_compiled(arguments):
    assert_same_training(NETS["mlp"], **COMPILED[arguments])


def test_sample_weights_of_plain_data_are_keras():
    assert_same_training(NETS["mlp"], (X, Y, S), weighted_metrics=["accuracy"])


def test_class_weights_of_plain_data_are_keras():
    assert_same_training(NETS["mlp"], fit={"class_weight": {0: 1.0, 1: 3.0, 2: 0.5}})


def test_several_outputs_with_names_are_keras():
    assert_same_training(
        two_headed,
        (X, (Y, X[:, :1])),
        loss={"a": "sparse_categorical_crossentropy", "b": "mse"},
        loss_weights={"a": 1.0, "b": 0.3},
        metrics={"a": ["accuracy"], "b": ["mae"]},
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_keras(policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        assert_same_training(
            sequential(
                lambda: L.Dense(8), lambda: L.Dense(3, activation="softmax", dtype="float32")
            )
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_a_net_keeps_its_own_policy():
    """float32 under a global mixed policy, whose float16 would overflow; and the other way."""

    def net():
        return keras.Sequential([keras.Input((6,)), L.Dense(3)])

    def compiled(net):
        model = tfi.ISModel(net)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    plain = net()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        mixed, model = net(), compiled(plain)
        assert np.isfinite(model.fit(1e5 * X, Y, verbose=0).history["loss"][0])
        assert model(1e5 * X).dtype == tf.float32
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model = compiled(mixed)
    assert model(X).dtype == tf.float16
    assert isinstance(model.optimizer, keras.mixed_precision.LossScaleOptimizer)


def test_a_loss_for_batches_still_trains_as_in_keras():
    """Without importance sampling a scalar loss is fine; there is just no τ of it."""
    net, _, model = fitted(
        NETS["mlp"], True, (X, np.eye(3, dtype=np.float32)[Y]), loss=lambda y, p: tf.reduce_mean(p)
    )
    assert float(tf.convert_to_tensor(model.tau)) == 0


def test_fit_on_arrays_and_train_on_batch():
    model = fitted(NETS["mlp"], True)[2]
    model.fit(X, Y, batch_size=16, verbose=0, validation_split=0.25)
    logs = model.train_on_batch(X[:8], Y[:8], return_dict=True)
    assert {"loss", "accuracy", "tau"} <= set(logs)


# τ and the logs ------------------------------------------------------------------------------


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.taus, self.logs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.taus.append(float(tf.convert_to_tensor(self.model.tau)))
        self.logs.append(dict(logs or {}))


def test_tau_is_the_bias_corrected_average_of_equation_26():
    """With a learning rate of zero every batch's τ is known beforehand."""
    model = tfi.ISModel(NETS["mlp"](), tau_decay=0.7)
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    recorder = Recorder()
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    model.fit(dataset, verbose=0, callbacks=[recorder])
    average, expected = 0.0, []
    for step, (x, y) in enumerate(dataset, 1):
        deltas = model.predict(x, verbose=0) - np.eye(3)[y.numpy()]
        average = 0.7 * average + 0.3 * equations.tau(np.linalg.norm(deltas, axis=1))
        expected.append(average / (1 - 0.7**step))
    np.testing.assert_allclose(recorder.taus, expected, rtol=1e-4)
    inverse_squares = [float(log["ess"]) for log in recorder.logs]
    assert 0 < inverse_squares[-1] <= 1


def test_ess_is_a_fraction_however_noisy_the_estimate():
    """Heavy weights on small scores estimate a τ below 1, as draws of few examples may."""
    model = tfi.ISModel(sequential(lambda: L.Dense(3, activation="softmax"))())
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    deltas = model.predict(X, verbose=0) - np.eye(3)[Y]
    scores = np.linalg.norm(deltas, axis=1)
    weights = (4 * (scores < np.median(scores))).astype(np.float32)
    estimate = np.sqrt(np.mean(weights * scores**2)) / np.mean(weights * scores)
    assert estimate < 0.9
    data = tf.data.Dataset.from_tensor_slices((X, Y, weights)).batch(len(X))
    data = marks.put(data, marks.Drawing())
    history = model.fit(data, verbose=0).history
    np.testing.assert_allclose(history["tau"], [estimate], rtol=1e-4)
    assert history["ess"] == [1.0]


def test_tau_goes_on_from_fit_to_fit():
    once = fitted(NETS["mlp"], True)[2]
    keras.utils.set_random_seed(3)
    net = NETS["mlp"]()
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    for _ in range(3):
        model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), verbose=0)
    np.testing.assert_allclose(
        tf.convert_to_tensor(model.tau), tf.convert_to_tensor(once.tau), rtol=1e-6
    )


@pytest.mark.parametrize("labels", ["uniform batches", "drawn batches"])
def test_logs_of_importance_sampling(blobs, labels):
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile("sgd", "sparse_categorical_crossentropy")
    threshold = "always" if labels == "drawn batches" else "never"
    batches = tf.data.Dataset.from_tensor_slices(blobs).apply(
        tfi.importance_sample(model, 8, 32, tau_threshold=threshold, seed=0)
    )
    weights = [float(tf.reduce_max(w)) for _, _, w in batches]
    recorder = Recorder()
    history = model.fit(batches, epochs=2, verbose=0, callbacks=[recorder]).history
    assert history["importance"] == [float(labels == "drawn batches")] * 2
    assert history["fallbacks"] == [0, 0]
    if labels == "uniform batches":
        assert history["max_weight"] == [1, 1]
    else:
        assert history["max_weight"][0] > 1 and max(weights) > 1
    assert len(recorder.taus) == 2 * (16 if labels == "drawn batches" else 64)


@pytest.mark.parametrize("kind", ["metrics", "weighted_metrics"])
def test_training_metrics_under_importance_sampling_are_unbiased(blobs, kind):
    """At learning rate zero the logged loss and accuracy are the data's, not the draws'."""
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile(
        keras.optimizers.SGD(0.5),
        "sparse_categorical_crossentropy",
        **{kind: ["accuracy", keras.metrics.SparseCategoricalCrossentropy(name="xent")]},
    )
    points, labels = blobs
    model.fit(points, labels, epochs=3, verbose=0)
    optimizer = model.optimizer
    optimizer.learning_rate = 0.0
    loss, accuracy, xent = model.evaluate(points, labels, verbose=0)
    batches = (
        tf.data.Dataset.from_tensor_slices((points, labels))
        .repeat(40)
        .apply(tfi.importance_sample(model, 16, 64, tau_threshold="always", seed=0))
    )
    logs = model.fit(batches, verbose=0).history
    np.testing.assert_allclose(logs["loss"][0], loss, rtol=0.02)
    np.testing.assert_allclose(logs["accuracy"][0], accuracy, atol=0.02)
    np.testing.assert_allclose(logs["xent"][0], xent, rtol=0.03)
    drawn_labels = np.concatenate([y for _, y, _ in batches.take(100).as_numpy_iterator()])
    drawn_points = np.concatenate([x for x, _, _ in batches.take(100).as_numpy_iterator()])
    as_if_uniform = model.evaluate(drawn_points, drawn_labels, verbose=0)[1]
    assert abs(as_if_uniform - accuracy) > 0.05  # negative control


def test_evaluation_and_prediction_stay_keras_after_importance_sampling(blobs):
    points, labels = blobs
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = tf.data.Dataset.from_tensor_slices(blobs).apply(
        tfi.importance_sample(model, 8, 32, tau_threshold="always", seed=0)
    )
    history = model.fit(batches, validation_data=blobs, epochs=2, verbose=0).history
    assert {"val_loss", "val_accuracy"} == {name for name in history if name.startswith("val_")}
    weights = np.linspace(0, 2, len(labels)).astype(np.float32)
    model.net.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    ours = model.evaluate(points, labels, sample_weight=weights, verbose=0)
    theirs = model.net.evaluate(points, labels, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("net", quick(["batch norm", "lstm", "cnn", "dropout"], "cnn", "dropout"))
@pytest.mark.parametrize("jit_compile", [True, False])
def test_every_kind_of_net_trains_by_importance_sampling(net, jit_compile):
    model = tfi.ISModel(NETS[net]())
    model.compile(
        keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=jit_compile
    )
    batches = (
        tf.data.Dataset.from_tensor_slices((X, Y))
        .repeat()
        .apply(tfi.importance_sample(model, 8, 16, tau_threshold=1.02, seed=0))
    )
    history = model.fit(batches, steps_per_epoch=12, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert all(np.all(np.isfinite(values)) for values in history.values())


def test_batch_normalization_gets_the_weights():
    """End to end: the data's mean in the moving average, though the draws' is another."""
    rng = np.random.default_rng(0)
    rare = rng.random(512) < 0.1
    points = rng.normal(size=(512, 2)).astype(np.float32) + np.float32(5) * rare[:, None]
    layer = tfi.layers.BatchNormalization(momentum=0.95)
    net = keras.Sequential([keras.Input((2,)), layer, L.Dense(2, activation="softmax")])
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    batches = (
        tf.data.Dataset.from_tensor_slices((points.astype(np.float32), rare.astype(np.int32)))
        .repeat(40)
        .shuffle(4000, seed=0)
        .apply(
            tfi.importance_sample(
                model,
                16,
                64,
                scorer=lambda model, x, y: tf.where(y == 1, 20.0, 1.0),
                tau_threshold="always",
                seed=0,
            )
        )
    )
    model.fit(batches, verbose=0)
    drawn_mean = np.mean([np.mean(x) for x, _, _ in batches.take(50).as_numpy_iterator()])
    assert np.abs(np.asarray(layer.moving_mean) - points.mean(axis=0)).max() < 0.35
    assert drawn_mean > points.mean() + 2


@pytest.mark.parametrize("scorer", tfi.scorers.BY_NAME.values(), ids=tfi.scorers.BY_NAME)
def test_the_models_scorer_is_the_default(scorer):
    model = tfi.ISModel(NETS["mlp"](), scorer=scorer)
    model.compile("sgd", "sparse_categorical_crossentropy")
    batch = next(
        iter(
            tf.data.Dataset.from_tensor_slices((X[:8], Y[:8])).apply(
                tfi.importance_sample(model, 8, 8, tau_threshold="always", seed=0)
            )
        )
    )
    scores = scorer(model, batch[0], batch[1])
    all_scores = scorer(model, tf.constant(X[:8]), tf.constant(Y[:8]))
    np.testing.assert_allclose(batch[2], tf.reduce_mean(all_scores) / scores, rtol=1e-4)
    model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)


def test_the_step_makes_one_forward_pass():
    passes = tf.Variable(0)

    class Counting(L.Layer):
        def call(self, inputs):
            passes.assign_add(1)
            return inputs

    net = keras.Sequential([keras.Input((6,)), Counting(), L.Dense(3, activation="softmax")])
    model = tfi.ISModel(net)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    passes.assign(0)
    model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), verbose=0)
    assert passes.numpy() == 6


def test_no_retracing_while_the_switch_goes_on_and_off(blobs):
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile("sgd", "sparse_categorical_crossentropy")
    batches = (
        tf.data.Dataset.from_tensor_slices(blobs)
        .repeat()
        .apply(tfi.importance_sample(model, 8, 32, tau_threshold=1.5, seed=0))
    )

    class Switch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.tau.assign(2.0 if batch // 10 % 2 else 1.0)

    traces = []
    step = model.train_step
    model.train_step = lambda data: traces.append(1) or step(data)
    history = model.fit(batches, steps_per_epoch=100, verbose=0, callbacks=[Switch()]).history
    assert 0.2 < history["importance"][0] < 0.8
    assert len(traces) <= 2  # Keras 3 may build by one symbolic call


# Callbacks and epochs ---------------------------------------------------------------------


def sampled(model, blobs, threshold=1.05):
    return tf.data.Dataset.from_tensor_slices(blobs).apply(
        tfi.importance_sample(model, 8, 32, tau_threshold=threshold, seed=0)
    )


def test_epochs_of_unequal_length_are_whole_passes(blobs):
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")

    class Counter(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.begun = self.ended = 0
            self.steps = []

        def on_train_begin(self, logs=None):
            self.begun += 1

        def on_train_end(self, logs=None):
            self.ended += 1

        def on_epoch_begin(self, epoch, logs=None):
            self.steps.append(0)
            self.model.tau.assign(9.0 if epoch in (0, 2) else 0.0)

        def on_train_batch_begin(self, batch, logs=None):
            self.steps[-1] += 1
            self.model.tau.assign(9.0 if len(self.steps) in (1, 3) else 0.0)

    counter = Counter()
    history = model.fit(sampled(model, blobs, 5.0), epochs=4, verbose=0, callbacks=[counter])
    assert history.epoch == [0, 1, 2, 3]
    assert (counter.begun, counter.ended) == (1, 1)
    assert counter.steps[0] < counter.steps[1] and counter.steps[2] < counter.steps[3]
    assert counter.steps[1] >= 61


@pytest.mark.parametrize("arguments", [{"epochs": 3, "initial_epoch": 3}, {"epochs": 0}])
def test_no_epochs_are_none(blobs, arguments):
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert model.fit(sampled(model, blobs), verbose=0, **arguments).epoch == []


def test_an_averaging_optimizer_wants_steps_per_epoch(blobs):
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="use_ema=True.*steps_per_epoch"):
        model.fit(sampled(model, blobs), epochs=2, verbose=0)


def test_arrays_stay_plain_keras_beside_a_sampled_dataset(blobs):
    """Their weights are a user's: not for metrics, not for batch normalization."""
    found = []
    for beside in (False, True):
        keras.utils.set_random_seed(0)
        net = NETS["batch norm"]()
        model = tfi.ISModel(net)
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        data = tf.data.Dataset.from_tensor_slices((X, Y))
        if beside:
            data.apply(tfi.importance_sample(model, 8, 16))
        history = model.fit(X, Y, sample_weight=S, batch_size=8, verbose=0, shuffle=False).history
        found.append((net.get_weights(), history["accuracy"], history["tau"]))
    for a, b in zip(found[0][0], found[1][0]):
        np.testing.assert_array_equal(a, b)
    assert found[0][1:] == found[1][1:]


def test_training_metrics_of_masked_outputs_count_the_unmasked():
    rng = np.random.default_rng(0)
    tokens = np.where(np.arange(8) < rng.integers(2, 9, (8, 1)), rng.integers(1, 9, (8, 8)), 0)
    tags = rng.integers(3, size=(8, 8)).astype(np.int32)
    net = keras.Sequential(
        [keras.Input((8,)), L.Embedding(9, 4, mask_zero=True), L.Dense(3, activation="softmax")]
    )
    model = tfi.ISModel(net)
    model.compile(
        keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    batches = tf.data.Dataset.from_tensor_slices((tokens, tags)).apply(
        tfi.importance_sample(model, 8, 8, tau_threshold="always", seed=0)
    )
    x, y, weights = (np.array(part) for part in next(iter(batches)))
    same = marks.put(tf.data.Dataset.from_tensors((x, y, weights)), marks.found(batches))
    logs = model.fit(same, verbose=0).history
    right = np.argmax(net.predict(x, verbose=0), axis=-1) == y
    counted = weights[:, None] * (x != 0)
    np.testing.assert_allclose(
        logs["accuracy"], np.sum(counted * right) / np.sum(counted), rtol=1e-4
    )


def test_early_stopping_stops(blobs):
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1)
    history = model.fit(
        sampled(model, blobs), epochs=9, verbose=0, callbacks=[stop], validation_data=blobs
    )
    assert history.epoch == [0, 1]


def test_backup_and_restore_goes_on_after_a_kill(blobs, tmp_path):
    def run(fail_at):
        keras.utils.set_random_seed(0)
        model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
        batches = sampled(model, blobs)

        class Kill(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == fail_at:
                    raise KeyboardInterrupt

        callbacks = [keras.callbacks.BackupAndRestore(str(tmp_path / "backup")), Kill()]
        return model, model.fit(batches, epochs=5, verbose=0, callbacks=callbacks)

    with pytest.raises(KeyboardInterrupt):
        run(fail_at=3)
    model, history = run(fail_at=None)
    assert history.epoch == [3, 4]
    assert float(tf.convert_to_tensor(model.tau)) > 1


def test_summary_lists_the_net(capsys):
    model = fitted(NETS["mlp"], True)[2]
    lines = []
    model.summary(print_fn=lambda line, **kwargs: lines.append(line))
    assert model.net.name in "\n".join(lines)


# Refusals and warnings ----------------------------------------------------------------------


@pytest.mark.parametrize("net", [None, L.Dense(3), "mlp"])
def test_only_models_are_wrapped(net):
    with pytest.raises(TypeError, match="net must be a keras.Model"):
        tfi.ISModel(net)


def test_an_ismodel_is_not_wrapped_again():
    with pytest.raises(TypeError, match="not an ISModel"):
        tfi.ISModel(tfi.ISModel(NETS["mlp"]()))


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_the_decay_is_checked(decay):
    with pytest.raises(ValueError, match=r"tau_decay must be in \[0, 1\); got"):
        tfi.ISModel(NETS["mlp"](), tau_decay=decay)


def test_ordinary_batch_normalization_warns_once_and_names_the_remedy(recwarn):
    net = keras.Sequential([keras.Input((6,)), L.BatchNormalization(name="bn"), L.Dense(3)])
    model = tfi.ISModel(net, adapt_batch_normalization=False)
    model.compile("sgd", "mse")
    dataset = tf.data.Dataset.from_tensor_slices((X, X[:, :3]))
    dataset.apply(tfi.importance_sample(model))
    found = [str(w.message) for w in recwarn if "batch normalization" in str(w.message)]
    assert len(found) == 1
    assert "(bn)" in found[0] and "tfi.layers.adapt_batch_normalization(net)" in found[0]


def test_a_converted_net_does_not_warn(recwarn):
    net = keras.Sequential([keras.Input((6,)), L.BatchNormalization(), L.Dense(3)])
    tfi.ISModel(tfi.layers.adapt_batch_normalization(net), adapt_batch_normalization=False)
    assert not [w for w in recwarn if "batch normalization" in str(w.message)]


@pytest.mark.skipif(compat.KERAS_3, reason="Keras 2 multiplies class weights into weights")
def test_class_weights_multiply_the_weights(blobs):
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile("sgd", "sparse_categorical_crossentropy")
    weights = {0: 1.0, 1: 1.0, 2: 1.0, 3: 7.0}
    history = model.fit(sampled(model, blobs, "never"), class_weight=weights, verbose=0).history
    assert history["max_weight"] == [7]
    assert history["tau"][0] > 0.9


@pytest.mark.skipif(not compat.KERAS_3, reason="Keras 3 refuses class weights beside weights")
def test_class_weights_beside_weights_name_the_other_route(blobs):
    model = tfi.ISModel(sequential(lambda: L.Dense(4, activation="softmax"), inputs=(2,))())
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"class_weight.*\(x, y, tf.gather\(class_weights, y\)\)"):
        model.fit(sampled(model, blobs), class_weight={3: 7.0})
