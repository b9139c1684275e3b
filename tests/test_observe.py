"""Training loops of one's own: `model.observe` does what `fit` does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick

N, B, b = 256, 32, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 4))).argmax(1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
EACH = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")


def compiled(way, rate=0.2, **options):
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(4)]
    )
    model = tfi.ISModel(net)
    sampler = {
        "rais": lambda: tfi.samplers.RAIS(training_set_size=64),
        "proportional": tfi.samplers.Proportional,
    }.get(way, lambda: None)()
    model.compile(keras.optimizers.SGD(rate), LOSS, sampler=sampler, jit_compile=False, **options)
    return model


def batches_of(model, way):
    if model.sampler is not None:
        return tfi.history_sample((X, Y), model.sampler, b, seed=3).repeat()
    score_in = {"stream": "pipeline", "step": "step"}[way]
    sampled = tfi.importance_sample(
        model, b, B, tau_threshold="always", seed=3, score_in=score_in, smoothing=0.2
    )
    return tf.data.Dataset.from_tensor_slices((X, Y)).repeat().apply(sampled)


def loop(model, batches, steps, loss_of):
    @tf.function(autograph=False, reduce_retracing=True)
    def step(*batch):
        with tf.GradientTape() as tape, model.observe(batch) as (x, y, weights):
            loss = loss_of(model, x, y, weights)
        gradients = tape.gradient(loss, model.net.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.net.trainable_variables))
        return loss

    return [float(step(*batch)) for batch in batches.take(steps)]


def by_compute_loss(model, x, y, weights):
    return model.compute_loss(x, y, model(x, training=True), weights)


def by_hand(model, x, y, weights):
    return tf.reduce_mean(weights * EACH(y, model(x, training=True)))


@pytest.mark.parametrize(
    "loss_of", [pytest.param(by_compute_loss, marks=pytest.mark.slow), by_hand]
)
@pytest.mark.parametrize("way", quick(["stream", "step", "proportional", "rais"], "stream", "rais"))
def test_a_loop_of_ones_own_trains_as_fit_does(way, loss_of):
    """Same draws, τ, memory and weights, step for step."""
    if way == "rais" and loss_of is by_hand:
        loss_of = by_compute_loss  # RAIS has limits, which it knows.
    steps, found = 60, []
    for own in (False, True):
        model = compiled(way)
        data = batches_of(model, way)
        if own:
            loop(model, data, steps, loss_of)
        else:
            model.fit(data, steps_per_epoch=steps, verbose=0, shuffle=None)
        found.append(model)
    fitted, mine = found
    assert float(tf.convert_to_tensor(fitted.tau)) > 1
    pairs = [(tf.convert_to_tensor(fitted.tau), tf.convert_to_tensor(mine.tau))]
    pairs += list(zip(fitted.net.get_weights(), mine.net.get_weights()))
    if fitted.sampler is not None:
        pairs += [(fitted.sampler.gain.ratio, mine.sampler.gain.ratio)]
        pairs += [(fitted.sampler.steps, mine.sampler.steps)]
    for theirs, own in pairs:
        np.testing.assert_allclose(theirs, own, rtol=1e-4, atol=1e-6)


def test_without_it_a_memory_learns_nothing():
    """The control: the same loop, unobserved."""
    model = compiled("proportional")

    @tf.function(autograph=False)
    def step(x, y, drawn):
        with tf.GradientTape() as tape:
            loss = by_hand(model, x, y, drawn["weight"])
        gradients = tape.gradient(loss, model.net.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.net.trainable_variables))

    with pytest.warns(UserWarning, match="read more than|planned without"):
        for batch in batches_of(model, "proportional").take(300):
            step(*batch)
    assert int(model.sampler.steps) == 0 and float(model.sampler.largest) == 0


def test_a_learning_rate_that_follows_the_gain_moves_on():
    model = compiled("stream", tfi.schedules.GainAdapted(0.1))
    data = batches_of(model, "stream")
    loop(model, data, 40, by_hand)
    # By their gains, which batches tell within a factor of 2.
    assert 20 < float(model.schedule.following) < 80
    assert int(model.optimizer.iterations) == 40


def test_gradients_of_several_batches_add_up():
    model = compiled("proportional")
    data = iter(batches_of(model, "proportional"))
    variables = model.net.trainable_variables

    @tf.function(autograph=False)
    def gradients(*batch):
        with tf.GradientTape() as tape, model.observe(batch) as (x, y, weights):
            loss = by_hand(model, x, y, weights)
        return tape.gradient(loss, variables)

    for _ in range(40):
        parts = [gradients(*next(data)) for _ in range(4)]
        means = [tf.add_n(list(part)) / len(parts) for part in zip(*parts)]
        model.optimizer.apply_gradients(zip(means, variables))
    assert int(model.sampler.steps) == 160 and int(model.optimizer.iterations) == 40
    assert float(model.sampler.largest) > 0


def test_the_discriminator_of_a_gan_learns_from_drawn_examples():
    """Two nets: what is drawn are the real examples, by the discriminator's scores."""
    keras.utils.set_random_seed(1)
    judge = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    )
    maker = keras.Sequential([keras.Input((3,)), keras.layers.Dense(6)])
    each = keras.losses.BinaryCrossentropy(from_logits=True, reduction="none")
    model = tfi.ISModel(judge)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, sampler=tfi.samplers.Proportional())
    of_maker = keras.optimizers.SGD(0.05)
    real = tfi.history_sample((X, np.ones(N, "float32")), model.sampler, b, seed=3).repeat()

    @tf.function(autograph=False)
    def step(*batch):
        noise = tf.random.normal([b, 3])
        with tf.GradientTape() as tape:
            made = maker(noise, training=True)
            # A pass that is none of the batch: before it is observed.
            of_made = tf.reduce_mean(each(tf.zeros([b, 1]), judge(made, training=True)))
            with model.observe(batch) as (x, y, weights):
                of_real = tf.reduce_mean(weights * each(y[:, None], model(x, training=True)))
            loss = of_real + of_made
        variables = judge.trainable_variables
        model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        with tf.GradientTape() as tape:
            fooled = tf.reduce_mean(each(tf.ones([b, 1]), judge(maker(noise, training=True))))
        variables = maker.trainable_variables
        of_maker.apply_gradients(zip(tape.gradient(fooled, variables), variables))
        return of_real

    losses = [float(step(*batch)) for batch in real.take(100)]
    assert np.isfinite(losses).all() and int(model.sampler.steps) == 100
    assert float(tf.convert_to_tensor(model.tau)) >= 1


def test_a_plain_batch_is_observed_too():
    model = compiled("stream")
    loop(model, tf.data.Dataset.from_tensor_slices((X, Y)).batch(b), 10, by_hand)
    assert float(tf.convert_to_tensor(model.tau)) > 1


def test_a_sampler_that_needs_fit_says_so():
    model = compiled("proportional")
    model.sampler.follows_training = True
    with pytest.raises(ValueError, match="exchanges scores in `fit` only"):
        model.observe((X[:b], Y[:b]))
