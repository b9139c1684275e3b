"""The logged gain against the true one, on nets whose gain a prediction misses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi

L = keras.layers
SIZE, PRESAMPLE, STEPS = 32, 128, 500
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4000, 20)).astype("float32")
Y = (X @ RNG.normal(size=(20, 5))).argmax(1)
NOISY = np.where(RNG.random(4000) < 0.3, RNG.integers(0, 5, 4000), Y)
SEQUENCES = RNG.normal(size=(4000, 8, 6)).astype("float32")
TAGS = (np.cumsum(SEQUENCES[..., 0], 1) > 0).astype(int)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(*middle, **options):
    first = L.Dense(64, "relu", **options)
    return keras.Sequential([keras.Input((20,)), first, *middle, L.Dense(5)])


def augmented():
    noisy = [L.GaussianNoise(0.5), L.Dense(64, "relu")]
    return keras.Sequential([keras.Input((20,)), *noisy, L.Dense(5)])


def tagger(dropout=0.0):
    recurrent = L.GRU(12, return_sequences=True, recurrent_dropout=dropout)
    return keras.Sequential([keras.Input((8, 6)), recurrent, L.Dense(2)])


def convolutional():
    folded = [L.Reshape((5, 4, 1)), L.Conv2D(16, 3, use_bias=False), L.BatchNormalization()]
    return keras.Sequential([keras.Input((20,)), *folded, L.ReLU(), L.Flatten(), L.Dense(5)])


def two_outputs():
    inputs = keras.Input((20,))
    hidden = L.Dense(64, "relu")(inputs)
    return keras.Model(inputs, [L.Dense(5)(hidden), L.Dense(5)(hidden)])


def mixed():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        return mlp()
    finally:
        keras.mixed_precision.set_global_policy("float32")


def constant(model, x, y):
    return tf.ones(tf.shape(x)[:1])


# name: (net, x, y, scorer, whether the logged gain is to be near the true one)
CASES = {
    "plain": (mlp, X, Y, None, True),
    "label noise": (mlp, X, NOISY, None, True),
    "loss scorer": (mlp, X, Y, tfi.scorers.loss, True),
    "dropout": (lambda: mlp(L.Dropout(0.5)), X, Y, None, False),
    "noise in the net": (augmented, X, Y, None, False),
    "batch norm": (lambda: mlp(L.BatchNormalization()), X, Y, None, False),
    "weighted batch norm": (lambda: mlp(tfi.layers.BatchNormalization()), X, Y, None, False),
    "constant scorer": (mlp, X, Y, constant, False),
    "conv, batch norm": (convolutional, X, Y, None, False),
    "two outputs": (two_outputs, X, Y, None, True),
    "mixed precision": (mixed, X, Y, None, True),
    "tagging": (tagger, SEQUENCES, TAGS, None, False),
    "recurrent dropout": (lambda: tagger(0.5), SEQUENCES, TAGS, None, False),
}


class Record(keras.optimizers.SGD):
    """Changes no weight; adds up ‖g‖² of some variables."""

    def watch(self, variables):
        self.total = tf.Variable(0.0)
        both = [part for one in variables for part in (one, getattr(one, "value", one))]
        self.watched = [id(part) for part in both]

    def update_step(self, gradient, variable, *rest):
        if id(variable) in self.watched:
            self.total.assign_add(tf.reduce_sum(tf.cast(gradient, tf.float32) ** 2))


def stream(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(4000, seed=1).repeat()


def trained(make, x, y):
    """A net after 800 uniform steps; all of its outputs are of the same labels."""
    keras.utils.set_random_seed(0)
    net = make()
    net.compile(keras.optimizers.SGD(0.2), [LOSS] * len(net.outputs))
    data = stream(x, y).batch(SIZE)
    if len(net.outputs) > 1:
        data = data.map(lambda x, y: (x, (y,) * len(net.outputs)))
    net.fit(data, steps_per_epoch=800, verbose=0, shuffle=None)
    return net


def frozen(net, rate, data_of, steps=STEPS, sampler=None):
    """‖g‖² of each step, and the logs, of a fit that trains nothing."""
    model, optimizer, seen = tfi.ISModel(net), Record(rate), []
    model.compile(optimizer, [LOSS] * len(net.outputs), sampler=sampler)
    optimizer.watch(net.trainable_variables[-2 * len(net.outputs) :])
    noted = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(optimizer.total))
    )
    history = model.fit(
        data_of(model), steps_per_epoch=steps, verbose=0, shuffle=None, callbacks=[noted]
    ).history
    return np.diff(seen, prepend=0.0)[50:], history


def drawn_by(x, y, threshold, scorer=None, outputs=1):
    def data_of(model):
        sampled = tfi.importance_sample(
            model, SIZE, PRESAMPLE, tau_threshold=threshold, scorer=scorer, smoothing=0.2, seed=1
        )
        data = stream(x, y)
        if outputs > 1:
            data = data.map(lambda x, y: (x, (y,) * outputs))
        return data.apply(sampled)

    return data_of


def true_gain(uniform, drawn):
    """The ratio of the means, and its standard error."""
    true = uniform.mean() / drawn.mean()
    error = true * np.hypot(*(g.std() / g.mean() / len(g) ** 0.5 for g in (uniform, drawn)))
    return true, error


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_logged_gain_is_not_above_the_true_one(name):
    """By more than 12 % and its error; a gain below 1 is logged as 1 at most."""
    make, x, y, scorer, near = CASES[name]
    net = trained(make, x, y)
    outputs = len(net.outputs)
    uniform, _ = frozen(net, 1e-3, drawn_by(x, y, "never", outputs=outputs))
    following = tfi.schedules.GainAdapted(1e-3, ceiling=1e9)
    drawn, history = frozen(net, following, drawn_by(x, y, "always", scorer, outputs))
    true, error = true_gain(uniform, drawn)
    logged = history["gain"][-1]
    assert logged <= 1.12 * max(true, 1.0) + 2 * error
    assert logged >= 0.8 * true - 2 * error if near else logged > 0.5
    assert 0.9 < history["importance"][-1] < 1


S = tfi.samplers


def rais():
    return S.RAIS(training_set_size=4000)


# name: (net, sampler, B, whether the logged gain is to be near the true one)
MEMORIES = {
    "RAIS": (mlp, rais, None, True),
    "RAIS, dropout": (lambda: mlp(L.Dropout(0.5)), rais, None, False),
    "RAIS, batch norm": (lambda: mlp(L.BatchNormalization()), rais, None, False),
    "RAIS, then fresh": (mlp, rais, 96, True),
    "Uniform, then fresh": (mlp, S.Uniform, 96, True),
    "Proportional": (mlp, S.Proportional, None, True),
    "Proportional, biased": (mlp, lambda: S.Proportional(beta=0.4), None, True),
    "Proportional, biased, then fresh": (mlp, lambda: S.Proportional(beta=0.4), 96, False),
    "Proportional, normalized": (mlp, lambda: S.Proportional(normalize=True), None, False),
    "RankBased, without weights": (mlp, lambda: S.RankBased(beta=0.0), None, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_the_logged_gain_of_a_memory_is_not_above_the_true_one(name):
    """After a first pass and the learning behind it."""
    make, sampler, presample, near = MEMORIES[name]
    net = trained(make, X, Y)
    uniform, _ = frozen(net, 1e-3, drawn_by(X, Y, "never"))
    following = tfi.schedules.GainAdapted(1e-3, ceiling=1e9)

    def data_of(model):
        fresh = {} if presample is None else {"presample_size": presample, "model": model}
        return tfi.history_sample((X, Y), model.sampler, SIZE, seed=1, **fresh).repeat()

    drawn, history = frozen(net, following, data_of, 1000, sampler())
    true, error = true_gain(uniform, drawn[-500:])
    logged = history["gain"][-1]
    assert logged <= 1.12 * max(true, 1.0) + 2 * error
    assert logged >= 0.8 * true - 2 * error if near else logged > 0.01
    assert 0.5 < history["importance"][-1] < 1
