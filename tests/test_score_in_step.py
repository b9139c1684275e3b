"""Scoring inside the training step: what the pipeline does, in one function."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import switches

B, b = 32, 8


def run(
    blobs, score_in, *, steps=60, rate=0.3, jit_compile=False, weights=None, presample=B, **kwargs
):
    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model = tfi.ISModel(net, tau_decay=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"], jit_compile=jit_compile)
    data = blobs if weights is None else (*blobs, weights)
    train = (
        tf.data.Dataset.from_tensor_slices(data)
        .repeat()
        .apply(tfi.importance_sample(model, b, presample, score_in=score_in, seed=4, **kwargs))
    )
    seen = []
    noted = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(dict(logs))
    )
    model.fit(train, steps_per_epoch=steps, verbose=0, callbacks=[noted])
    return model, seen


@pytest.mark.parametrize(
    "jit_compile",
    [pytest.param(False, id=""), pytest.param(True, id="xla", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "how",
    [
        {"tau_threshold": 1.3},
        pytest.param(
            {"tau_threshold": "always", "resampling": "systematic", "smoothing": 0.1},
            marks=pytest.mark.slow,
        ),
        {"switch": "gain"},
        {"tau_threshold": 1.3, "presample": b},
        pytest.param(
            {"tau_threshold": 1.3, "weights": np.linspace(0.1, 2, 512).astype(np.float32)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["tau", "systematic", "gain", "no more than a batch", "sample weights"],
)
def test_the_same_seeds_give_the_same_draws(how, jit_compile, blobs):
    """Same decisions, same τ, same parameters, step by step."""
    found = []
    for score_in in ("pipeline", "step"):
        given = dict(how)
        if given.get("switch") == "gain":
            given["switch"] = switches.Gain(step_seconds=1.0, scoring_seconds=1e-6, hysteresis=0.01)
            given["rate"] = tfi.schedules.GainAdapted(0.3)
        steps = 90 if "rate" not in given else 200
        found.append(run(blobs, score_in, jit_compile=jit_compile, steps=steps, **given))
    (model, logs), (other, others) = found
    if jit_compile:
        # Other generators draw: the run is as good, not the same.
        assert others[-1]["importance"] > 0.2
        assert others[-1]["loss"] == pytest.approx(logs[-1]["loss"], rel=0.3)
        return
    shares = [entry["importance"] for entry in logs]
    assert shares[-1] > 0.2, "some must have been drawn"
    # The pipeline counts a group's batches as the first of them leaves, steps as they make them.
    assert shares[-1] == pytest.approx(others[-1]["importance"], abs=8 / steps)
    for name in ("tau", "loss", "max_weight"):
        np.testing.assert_allclose(
            [float(entry[name]) for entry in logs],
            [float(entry[name]) for entry in others],
            rtol=2e-3,
        )
    np.testing.assert_allclose(model.net.get_weights()[0], other.net.get_weights()[0], rtol=1e-3)


def trained_on(blobs, score_in, scorer, **kwargs):
    """A pass in a loop of one's own: the model, and the first features that it was trained on."""
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model, seen = tfi.ISModel(net), []
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(kwargs.pop("rate", 0.1)), loss)
    sampled = tfi.importance_sample(model, b, seed=4, score_in=score_in, scorer=scorer, **kwargs)
    step = tf.function(lambda *batch: model.train_step(batch), reduce_retracing=True)
    for x, y, told in tf.data.Dataset.from_tensor_slices(blobs).apply(sampled):
        logs = step(x, y, told)
        seen.extend(x[:b, 0].numpy())
    return model, np.array(seen), {name: float(value) for name, value in logs.items()}


def none_usable(model, x, y):
    return x[:, 0] * np.nan


@pytest.mark.parametrize("size", quick([512, 500], 500))
@pytest.mark.parametrize("score_in", ["pipeline", "step"])
@pytest.mark.slow
def test_a_group_whose_scores_are_unusable_is_used_whole(score_in, size, blobs):
    """Every example once; in the step the rest of a group comes behind its first batch."""
    data = tuple(part[:size] for part in blobs)
    model, seen, logs = trained_on(
        data, score_in, none_usable, presample_size=B, tau_threshold="always"
    )
    filled = -size % b  # By the last one, with weight 0.
    np.testing.assert_array_equal(np.sort(seen[:size]), np.sort(data[0][:, 0]))
    assert len(seen) == size + filled
    assert logs["fallbacks"] == size // B and logs["importance"] == 0
    assert logs["max_weight"] == pytest.approx(2 if filled else 1)
    assert all(np.isfinite(part).all() for part in model.net.get_weights())


@pytest.mark.parametrize("presample", quick([B, "auto"], "auto"))
def test_only_what_is_unusable_is_used_whole(presample, blobs):
    """A pre-sample with one example that has no score; of several in a group each by itself."""
    spoilt = blobs[0][[40, 70], 0]

    def scorer(model, x, y):
        one = tf.reduce_any(tf.equal(x[:, :1], spoilt), axis=1)
        return tf.where(one, float("nan"), 1.0)

    switch = switches.Gain(step_seconds=1.0, scoring_seconds=1e-6)
    model, seen, logs = trained_on(
        blobs, "step", scorer, presample_size=presample, switch=switch, rate=0.05
    )
    # "auto" begins with 4b of 12b.
    assert logs["fallbacks"] == 2
    assert logs["importance"] > 0
    parts = blobs[0][:, 0].reshape(-1, 4 * b)
    of_spoilt = parts[np.isin(parts, spoilt).any(axis=1)]
    assert np.isin(of_spoilt, seen).all() and len(of_spoilt) == 2


@pytest.mark.parametrize("usable", [True, False])
def test_what_a_memory_and_its_steps_count_adds_up(usable, blobs):
    """The pipeline counts its plans while a step counts as well: neither is lost."""
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model, sampler = tfi.ISModel(net), tfi.samplers.Proportional()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, sampler=sampler)
    scorer = None if usable else none_usable
    batches = tfi.history_sample(
        blobs, sampler, b, presample_size=B, model=model, scorer=scorer, seed=1
    )
    history = model.fit(batches.repeat(), steps_per_epoch=64, epochs=2, verbose=0).history
    assert history["importance"] == [float(usable)] * 2
    assert history["fallbacks"] == [0.0 if usable else 64.0] * 2


def test_a_short_end_is_used_whole(blobs):
    """B = 32 of 72 examples: two groups and one uniform batch."""
    short = tuple(part[:72] for part in blobs)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model = tfi.ISModel(net)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train = tf.data.Dataset.from_tensor_slices(short).apply(
        tfi.importance_sample(model, b, B, score_in="step", tau_threshold="always")
    )
    sizes = [int(tf.shape(told["weight"])[0]) for _, _, told in train]
    assert sizes == [B, B, b]
    assert model.fit(train, epochs=2, verbose=0).history["importance"] == [pytest.approx(2 / 3)] * 2


def test_what_the_step_cannot_do_is_refused():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model = tfi.ISModel(net)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="'pipeline', 'step'; got 'gpu'"):
        tfi.importance_sample(model, score_in="gpu")
    with pytest.raises(ValueError, match="draws one batch"):
        tfi.importance_sample(model, score_in="step", draws_per_presample=2)


def test_two_datasets_of_one_model_are_each_drawn_as_they_were_made(blobs):
    """One from groups in the step, one in the pipeline; in a loop of one's own none is guessed."""
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model = tfi.ISModel(net)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices(blobs)
    first = data.apply(tfi.importance_sample(model, b, B, score_in="step", tau_threshold="always"))
    second = data.apply(tfi.importance_sample(model, b, B, tau_threshold="never"))
    for _ in range(2):
        assert model.fit(first, verbose=0).history["importance"] == [1.0]
        assert model.fit(second, verbose=0).history["importance"] == [0.0]
    with pytest.raises(ValueError, match="datasets that are drawn in different ways"):
        model.train_on_batch(*next(iter(second)))
    del first
    model.train_on_batch(*next(iter(second)))
