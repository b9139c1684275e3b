"""The learning rate that follows the gain, for any schedule and optimizer."""

import gc
import importlib.util
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance.schedules import GainAdapted

Schedules = keras.optimizers.schedules
SCHEDULES = {
    "constant": 0.25,
    "integer": 1,
    "exponential": Schedules.ExponentialDecay(0.5, 3, 0.5, staircase=True),
    "piecewise": Schedules.PiecewiseConstantDecay([2, 5], [1.0, 0.1, 0.01]),
    "cosine": Schedules.CosineDecay(0.3, 10),
}
GAINS = [1.0, 1.5, 2.0, 0.5, 3.25]


def plain(schedule, step) -> float:
    return float(schedule(step)) if callable(schedule) else float(schedule)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_is_the_gain_times_the_schedule_at_the_effective_step(name):
    adapted, effective = GainAdapted(SCHEDULES[name], ceiling=math.inf), 0.0
    for gain in GAINS:
        adapted.advance(tf.constant(gain))
        expected = gain * plain(SCHEDULES[name], math.floor(effective))
        assert float(adapted(123)) == pytest.approx(expected, rel=1e-6)
        effective += gain
        assert float(adapted.following) == effective


@pytest.mark.parametrize("name", SCHEDULES)
def test_with_gain_1_it_is_the_schedule(name):
    adapted = GainAdapted(SCHEDULES[name])
    for step in range(8):
        adapted.advance(1.0)
        assert float(adapted(step)) == pytest.approx(plain(SCHEDULES[name], step), rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -2.0])
def test_a_bad_gain_counts_as_1(bad):
    adapted = GainAdapted(0.25)
    adapted.advance(bad)
    assert float(adapted(0)) == 0.25 and float(adapted.following) == 1


def test_millions_of_steps_are_counted_exactly():
    adapted = GainAdapted(0.25)
    adapted.following.assign(2.0**30)
    adapted.advance(1.25)
    assert float(adapted.following) == 2**30 + 1.25


OPTIMIZERS = {
    "SGD": lambda rate: keras.optimizers.SGD(rate),
    "Adam": lambda rate: keras.optimizers.Adam(rate),
    "SGD, clipped": lambda rate: keras.optimizers.SGD(rate, global_clipnorm=0.05),
}
if importlib.util.find_spec("tensorflow_addons") is not None:
    import tensorflow_addons as tfa

    OPTIMIZERS["RectifiedAdam"] = lambda rate: tfa.optimizers.RectifiedAdam(rate)


@pytest.mark.parametrize("name", quick(OPTIMIZERS, "Adam"))
def test_any_optimizer_steps_by_it(name, blobs):
    """A run at gain 1 is the run without it, and a larger gain goes further."""

    def trained(rate, gain=None):
        keras.utils.set_random_seed(0)
        net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, activation="softmax")])
        start = net.get_weights()[0]
        model = tfi.ISModel(net)
        sampler = tfi.samplers.Uniform(512)
        if gain is not None:
            sampler.gain.ratio.assign(gain)
            sampler.gain.learn = lambda *_: None
        model.compile(OPTIMIZERS[name](rate), "sparse_categorical_crossentropy", sampler=sampler)
        batches = tfi.history_sample(blobs, sampler, 64, seed=0)
        model.fit(batches, steps_per_epoch=3, verbose=0)
        return net.get_weights()[0] - start

    by_itself = trained(0.01)
    np.testing.assert_allclose(trained(GainAdapted(0.01)), by_itself, rtol=1e-4, atol=1e-7)
    faster = trained(GainAdapted(0.01), gain=2.0)
    factor = 2.0 if name == "SGD" else 2**0.5
    np.testing.assert_allclose(faster, trained(0.01 * factor), rtol=1e-4, atol=1e-7)
    assert np.linalg.norm(faster) > 1.2 * np.linalg.norm(by_itself)


def test_the_ceiling_is_over_the_largest_scheduled_rate():
    """Under a constant rate r̂ ≤ 2; in a decay by 4, r̂ ≤ 8; in a rise, what has been counts."""
    constant = GainAdapted(0.25)
    constant.advance(5.0)
    assert float(constant(0)) == 0.5 and float(constant.following) == 2
    decaying = GainAdapted(Schedules.PiecewiseConstantDecay([2], [1.0, 0.25]))
    rates = []
    for _ in range(4):
        assert float(decaying.largest_gain()) == (2 if len(rates) < 2 else 8)
        decaying.advance(5.0)
        rates.append(float(decaying(0)))
    assert rates == [2.0, 2.0, 1.25, 1.25]
    rising = GainAdapted(Schedules.PiecewiseConstantDecay([1], [0.25, 1.0]))
    for expected in (0.5, 2.0):
        rising.advance(5.0)
        assert float(rising(0)) == expected


def test_the_ceiling_is_of_the_rate_not_of_the_gain():
    adapted = GainAdapted(0.25, exponent=0.5)
    adapted.advance(100.0)
    assert float(adapted(0)) == 0.5 and float(adapted.gain) == 4


@pytest.mark.parametrize("name", ["constant", "exponential"])
def test_config_and_checkpoint(name, tmp_path):
    adapted = GainAdapted(SCHEDULES[name], 0.75, ceiling=1.5)
    for gain in GAINS:
        adapted.advance(gain)
    copy = Schedules.deserialize(Schedules.serialize(adapted), {"GainAdapted": GainAdapted})
    path = tf.train.Checkpoint(schedule=adapted).save(str(tmp_path / "at"))
    tf.train.Checkpoint(schedule=copy).restore(path).assert_consumed()
    assert float(copy(0)) == float(adapted(0))
    copy.advance(1.0)
    adapted.advance(1.0)
    assert float(copy(0)) == float(adapted(0))


@pytest.mark.parametrize("bad", ["linear", None, True, lambda step: 0.1, [0.1]])
def test_what_is_no_schedule_is_refused(bad):
    with pytest.raises(TypeError, match="a number or a keras.optimizers.schedules.*got"):
        GainAdapted(bad)
    with pytest.raises(TypeError):
        GainAdapted(GainAdapted(0.1))


@pytest.mark.parametrize("wrong", [{"exponent": 0.0}, {"exponent": 1.5}, {"ceiling": 0.5}])
def test_wrong_exponents_and_ceilings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be .*; got"):
        GainAdapted(0.1, **wrong)


@pytest.mark.parametrize("bad", [0.0, -0.1, np.nan, np.inf])
def test_a_wrong_learning_rate_is_refused(bad):
    with pytest.raises(ValueError, match="positive and finite; got"):
        GainAdapted(bad)


def following_model(schedule):
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, activation="softmax")])
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(schedule), "sparse_categorical_crossentropy")
    return model


def test_two_models_cannot_share_one(blobs):
    schedule = tfi.schedules.GainAdapted(0.1)
    first = following_model(schedule)
    with pytest.raises(ValueError, match=f"of model '{first.name}'.*make one for each"):
        following_model(schedule)


def test_with_another_optimizer_it_starts_anew_and_with_the_same_goes_on(blobs):
    decay = keras.optimizers.schedules.PolynomialDecay(0.1, 20, 0.0)
    schedule = tfi.schedules.GainAdapted(decay)
    model = following_model(schedule)
    model.fit(*blobs, batch_size=16, steps_per_epoch=20, verbose=0)
    assert float(schedule.following) == 20
    optimizer = model.optimizer
    model.compile(optimizer, "sparse_categorical_crossentropy")
    assert float(schedule.following) == 20
    model.compile(keras.optimizers.SGD(schedule), "sparse_categorical_crossentropy")
    assert float(schedule.following) == 0 and float(schedule.gain) == 1
    before = model.get_weights()
    model.fit(*blobs, batch_size=16, steps_per_epoch=2, verbose=0)
    assert any(np.any(a != b) for a, b in zip(before, model.get_weights()))


def test_a_model_that_is_gone_leaves_it_to_the_next():
    schedule = tfi.schedules.GainAdapted(0.1)
    model = following_model(schedule)
    schedule.following.assign(5.0)
    del model
    gc.collect()
    following_model(schedule)
    assert float(schedule.following) == 0


def ending(blobs, most, epochs=1, verbose=0, **options):
    """A training whose steps all have a gain of 2, and how many of them it makes."""
    keras.utils.set_random_seed(0)
    decay = keras.optimizers.schedules.PolynomialDecay(0.1, 60, 0.0)
    schedule = tfi.schedules.GainAdapted(decay, ceiling=1e9, **options)
    model, rates = following_model(schedule), []
    advance = schedule.advance
    schedule.advance = lambda gain: advance(2.0)
    noted = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(float(schedule(0)))
    )
    model.fit(
        *blobs,
        batch_size=16,
        steps_per_epoch=most,
        epochs=epochs,
        verbose=verbose,
        callbacks=[noted],
    )
    return model, rates


@pytest.mark.parametrize("steps, epochs", [(60, 1), (20, 3)])
def test_training_ends_where_the_schedule_does(blobs, monkeypatch, steps, epochs):
    said = []
    monkeypatch.setattr(tf.get_logger(), "warning", said.append)
    model, rates = ending(blobs, steps, epochs, verbose=2)
    assert len(rates) == 30 and min(rates) > 0
    assert [line for line in said if "ends after 30 steps" in line]
    with pytest.raises(ValueError, match="nothing left to train"):
        model.fit(*blobs, batch_size=16, steps_per_epoch=2, verbose=0)


def test_another_end_can_be_given(blobs):
    _, rates = ending(blobs, 60, steps=20)
    assert len(rates) == 10


@pytest.mark.parametrize(
    "schedule, end",
    [
        (0.1, None),
        (keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), None),
        (keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.01), None),
        (keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0), 10),
        (keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0, cycle=True), None),
        (keras.optimizers.schedules.CosineDecay(0.1, 10), 10),
        (keras.optimizers.schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=5), 15),
        (keras.optimizers.schedules.PiecewiseConstantDecay([5], [0.1, 0.0]), None),
    ],
)
def test_the_end_of_a_schedule(schedule, end):
    assert tfi.schedules.GainAdapted(schedule).steps == end


# With what Keras has beside it -----------------------------------------------------------------


class Table(keras.optimizers.schedules.LearningRateSchedule):
    """A user's own, which needs the step as a whole number."""

    def __call__(self, step):
        return tf.gather([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], tf.minimum(step // 2, 5))


COMPOSED = {
    "a table": Table(),
    "warm-up": Schedules.CosineDecay(0.0, 40, warmup_target=0.2, warmup_steps=8),
    "restarts": Schedules.CosineDecayRestarts(0.2, 6),
}


def fitted(blobs, rate, callbacks=(), epochs=4):
    """A training whose batches are all uniform: its history, and its weights."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model = tfi.ISModel(net) if isinstance(rate, GainAdapted) else net
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss)
    x, y = blobs
    history = model.fit(
        *(x, y), batch_size=64, epochs=epochs, verbose=0, shuffle=False, callbacks=[*callbacks]
    ).history
    return history, net.get_weights()


@pytest.mark.parametrize("name", COMPOSED)
def test_schedules_of_all_kinds_go_on_as_in_plain_keras(blobs, name):
    expected, weights = fitted(blobs, COMPOSED[name])
    found, mine = fitted(blobs, GainAdapted(COMPOSED[name]))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    for one, other in zip(mine, weights):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


SETTING = {
    "plateau": lambda: keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=100.0, min_lr=0.03
    ),
    "absolute": lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.2 / (1 + epoch)),
    "relative": lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.8 * rate),
}


@pytest.mark.parametrize("gain", [1.0, 1.5])
@pytest.mark.parametrize("name", SETTING)
def test_callbacks_set_the_rate_without_the_gain(blobs, name, gain):
    expected, weights = fitted(blobs, 0.2, [SETTING[name]()])
    schedule = GainAdapted(0.2)
    advance, rates = schedule.advance, []
    schedule.advance = lambda _: advance(gain)
    noted = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(float(schedule(0)))
    )
    found, mine = fitted(blobs, schedule, [SETTING[name](), noted])
    key = "learning_rate" if "learning_rate" in expected else "lr"
    np.testing.assert_allclose(found[key], expected[key], rtol=1e-5)
    assert len(set(np.round(expected[key], 5))) > 2
    by_epoch = np.array(rates).reshape(4, -1)
    assert np.ptp(by_epoch, axis=1).max() < 1e-7
    np.testing.assert_allclose(by_epoch[:, 0], gain * np.array(expected[key]), rtol=1e-5)
    if gain == 1:
        for one, other in zip(mine, weights):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_rate_that_is_none_is_refused():
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="learning rate must be finite"):
            GainAdapted(0.1).set_rate(bad)


def test_steps_that_loss_scaling_skips_do_not_count(blobs):
    """The gradient of one batch in three is infinite."""
    x, y = blobs
    x = x[:192].copy()
    x[64:128] = 1e38
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model, schedule = tfi.ISModel(net), GainAdapted(0.1)
    scaled = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(schedule))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(scaled, loss)
    model.fit(x, y[:192], batch_size=64, epochs=5, verbose=0, shuffle=False)
    assert float(schedule._next_step()) == 10
    assert all(np.isfinite(part).all() for part in net.get_weights())
