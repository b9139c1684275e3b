"""Whose statistics batch normalization uses: of the layer, of the step, and of a training."""

import copy
import itertools
import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import batch_statistics, compat, normalization
from tf_importance.normalization import Statistics

L = keras.layers
SHAPES = {"points": (5, 2), "image": (5, 4, 3, 2), "axis 1": (5, 2, 4), "masked": (5, 4, 2)}


# A layer ------------------------------------------------------------------------------------


def numpy_outputs(x, weights, mask, axis, gamma, beta, epsilon, value, held=None):
    """y by μ = μ_w + (m − μ_w), of which the bracket is `held` where it is given."""
    axes = tuple(i for i in range(x.ndim) if i != axis)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    counts = weights.reshape([-1] + [1] * (x.ndim - 1)) * np.ones_like(x)
    if mask is not None:
        counts = counts * mask[..., None]
    mean = (counts * x).sum(axes) / counts.sum(axes)
    variance = (counts * (x - mean.reshape(shape)) ** 2).sum(axes) / counts.sum(axes)
    if held is None:
        held = value[0] - mean, value[1] - variance
    mean, variance = mean + held[0], variance + held[1]
    normal = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + epsilon)
    return normal * gamma.reshape(shape) + beta.reshape(shape), held


@pytest.mark.parametrize("case", SHAPES)
def test_the_gradient_is_that_of_its_surrogate(case):
    """Against finite differences in which what is held constant is constant, in float64."""
    rng = np.random.default_rng(0)
    shape = SHAPES[case]
    axis = 1 if case == "axis 1" else len(shape) - 1
    x, upstream = rng.normal(size=shape), rng.normal(size=shape)
    weights = rng.uniform(0.2, 3.0, 5)
    mask = rng.random(shape[:-1]) < 0.7 if case == "masked" else None
    value = rng.normal(size=2), rng.uniform(0.5, 2.0, 2)
    gamma, beta = rng.uniform(0.5, 2.0, 2), rng.normal(size=2)
    layer = L.BatchNormalization(axis=axis, dtype="float64")
    layer.build(shape)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        batch = normalization.rows(layer, inputs, tf.constant(weights), mask)
        own = normalization.own_statistics(layer, batch)
        outputs = normalization.normalized(layer, batch, own, Statistics(*map(tf.constant, value)))
        total = tf.reduce_sum(outputs * upstream)
    variables = [inputs, *map(compat.tensorflow_variable, layer.trainable_variables)]
    gradients = tape.gradient(total, variables)
    expected, held = numpy_outputs(x, weights, mask, axis, gamma, beta, layer.epsilon, value)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)

    def loss(x, gamma, beta):
        outputs, _ = numpy_outputs(x, weights, mask, axis, gamma, beta, layer.epsilon, value, held)
        return (outputs * upstream).sum()

    for number, (point, gradient) in enumerate(zip((x, gamma, beta), gradients)):
        for position in itertools.islice(np.ndindex(point.shape), 12):
            moved = [[x, gamma, beta], [x, gamma, beta]]
            for way, sign in zip(moved, (1, -1)):
                way[number] = point.copy()
                way[number][position] += sign * 1e-6
            difference = (loss(*moved[0]) - loss(*moved[1])) / 2e-6
            np.testing.assert_allclose(gradient.numpy()[position], difference, atol=1e-6)


def training(weights, given=None):
    averages = batch_statistics.Averages()
    return batch_statistics.Training(weights, given, averages, by_average=False).in_force()


def test_by_its_own_statistics_it_is_the_weighted_layer():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(6, 3)).astype("float32"), tf.constant(rng.uniform(0.2, 3, 6))
    net = net_of(3, L.BatchNormalization(name="bn"))
    named = tfi.layers.BatchNormalization()
    with training(weights):
        found = net(x, training=True)
    with tfi.layers.importance_weights(weights):
        expected = named(x, training=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    bn = net.get_layer("bn")
    np.testing.assert_allclose(bn.moving_mean, named.moving_mean, rtol=1e-6)
    np.testing.assert_allclose(bn.moving_variance, named.moving_variance, rtol=1e-6)


def net_of(size, *layers):
    return tfi.layers.adapt_batch_normalization(keras.Sequential([keras.Input((size,)), *layers]))


def test_moving_averages_follow_what_is_given():
    net = net_of(2, L.BatchNormalization(name="bn", momentum=0.9))
    bn = net.get_layer("bn")
    places = (batch_statistics.Place(bn, 0, 2),)
    packed = tf.constant([5.0, 6.0, 2.0, 3.0])
    given = batch_statistics.Given(places, packed, tf.constant(True), True)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    with training(tf.ones([4]), given):
        outputs = net(x, training=True)
    np.testing.assert_allclose(outputs, (x - [5, 6]) / np.sqrt(np.array([2, 3]) + 1e-3), rtol=1e-5)
    np.testing.assert_allclose(bn.moving_mean, [0.5, 0.6], rtol=1e-5)
    np.testing.assert_allclose(bn.moving_variance, [0.9 + 0.2, 0.9 + 0.3], rtol=1e-5)


def test_statistics_of_steps_before_stay_near_the_batchs_own():
    net = net_of(1, L.BatchNormalization(name="bn"))
    bn = net.get_layer("bn")
    x = np.random.default_rng(0).normal(size=(64, 1)).astype("float32")
    outputs = []
    for of_the_step in (True, False):
        given = batch_statistics.Given(
            (batch_statistics.Place(bn, 0, 1),),
            tf.constant([0.0, 1e-6]),
            tf.constant(True),
            of_the_step,
        )
        with training(tf.ones([64]), given):
            outputs.append(np.abs(net(x, training=True)).max())
    assert outputs[0] > 5 * outputs[1] and outputs[1] < 3 * 3.5


def test_they_may_be_off_by_two_standard_errors_of_so_few_examples():
    rng = np.random.default_rng(0)
    layer = L.BatchNormalization(epsilon=0.0)
    layer.build((None, 2))
    x, weights = rng.normal(2, 3, size=(8, 2)), rng.uniform(0.1, 3, 8)
    own = normalization.own_statistics(
        layer, normalization.rows(layer, tf.constant(x), tf.constant(weights))
    )
    error = 2 / np.sqrt(weights.sum() ** 2 / (weights**2).sum())
    scale = np.sqrt(own.variance)
    for side in (-1, 1):
        far = Statistics(own.mean + side * 10 * scale, own.variance * 100.0**side)
        found = batch_statistics._limited_to_errors(layer, far, own, tf.constant(weights))
        np.testing.assert_allclose(found.mean, own.mean + side * error * scale, rtol=1e-6)
        ratio = (1 + error / np.sqrt(2)) ** (2 * side)
        np.testing.assert_allclose(found.variance, own.variance * ratio, rtol=1e-6)
    near = Statistics(own.mean + error * scale / 2, own.variance * (1 + error / 2))
    for a, b in zip(
        batch_statistics._limited_to_errors(layer, near, own, tf.constant(weights)), near
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_averages_are_those_of_all_batches_together():
    """Sums of w, w x and w (x − mean)² over the batches, older ones by powers of the decay."""
    rng = np.random.default_rng(0)
    layer, averages = L.BatchNormalization(), batch_statistics.Averages()
    layer.build((None, 3))
    batches = [(rng.normal(2, 3, size=(4, 3)), rng.uniform(0.1, 3, 4)) for _ in range(5)]
    for x, weights in batches:
        rows = normalization.rows(layer, tf.constant(x), tf.constant(weights))
        own = normalization.own_statistics(layer, rows)
        found = averages.taken_up(layer, own, tf.constant(weights.mean()))
    x = np.concatenate([x for x, _ in batches])
    decays = batch_statistics._DECAY ** np.arange(4, -1, -1)
    weights = np.concatenate([decay * w for decay, (_, w) in zip(decays, batches)])[:, None]
    mean = (weights * x).sum(0) / weights.sum()
    variance = (weights * (x - mean) ** 2).sum(0) / weights.sum()
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5)


def test_weighted_sums_are_exact_over_all_draws():
    """What averages add up, Σ w/b, Σ w x/b and Σ w x²/b, has the data's means as expectation."""
    x = np.array([[-1.0], [0.5], [4.0]])
    proposal = np.array([0.5, 0.3, 0.2])
    layer = L.BatchNormalization(dtype="float64")
    layer.build((None, 1))
    sums = np.zeros(3)
    for drawn in itertools.product(range(3), repeat=3):
        weights = 1 / (3 * proposal[list(drawn)])
        rows = normalization.rows(layer, tf.constant(x[list(drawn)]), tf.constant(weights))
        mean, variance = (float(part[0]) for part in normalization.own_statistics(layer, rows))
        weight = weights.mean()
        of_batch = np.array([weight, weight * mean, weight * (variance + mean**2)])
        sums += np.prod(proposal[list(drawn)]) * of_batch
    np.testing.assert_allclose(sums, [1, x.mean(), (x**2).mean()], rtol=1e-12)


# A net --------------------------------------------------------------------------------------


def functional(**_):
    inputs = keras.Input((6,))
    hidden = L.ReLU()(L.BatchNormalization()(L.Dense(8)(inputs)))
    return keras.Model(inputs, L.Dense(3)(hidden))


def nested(**_):
    inner = keras.Sequential([L.Dense(8), L.BatchNormalization(), L.ReLU()], name="inner")
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(3)(L.BatchNormalization()(inner(inputs))))


def shared(**_):
    """One submodel for both halves of the inputs."""
    half = keras.Sequential([L.Dense(8), L.BatchNormalization(), L.ReLU()], name="half")
    inputs = keras.Input((6,))
    both = L.Concatenate()([half(inputs[:, :3]), half(inputs[:, 3:])])
    return keras.Model(inputs, L.Dense(3)(both))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.bn, self.head = L.Dense(8), L.BatchNormalization(), L.Dense(3)

    def call(self, inputs, training=None):
        return self.head(tf.nn.relu(self.bn(self.hidden(inputs), training=training)))


class Compiled(Subclassed):
    @tf.function
    def call(self, inputs, training=None):
        hidden = self.bn(self.hidden(inputs), training=training)
        if tf.reduce_sum(hidden) > 1e9:
            hidden = tf.zeros_like(hidden)
        return self.head(tf.nn.relu(hidden))


def frozen(**_):
    """Half of it is not trained."""
    net = nested()
    net.get_layer("inner").trainable = False
    return net


class InInference(Subclassed):
    """Of its two layers one is in inference always, as in fine-tuning."""

    def __init__(self):
        super().__init__()
        self.body = L.BatchNormalization()

    def call(self, inputs, training=None):
        return super().call(self.body(inputs, training=False), training)


def time_distributed(**_):
    inputs = keras.Input((6,))
    hidden = L.TimeDistributed(L.BatchNormalization())(L.Reshape((3, 2))(inputs))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(hidden)))


NETS = {
    "functional": functional,
    "nested": nested,
    "shared": shared,
    "subclassed": lambda: Subclassed(),
    "tf.function": lambda: Compiled(),
    "frozen": frozen,
    "in inference": lambda: InInference(),
    "time distributed": time_distributed,
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(512, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(1)


def stream(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(512, seed=1).repeat()


def compiled(net, rate=0.1, sampler=None, **kwargs):
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(rate), LOSS, sampler=sampler, **kwargs)
    return model


def fitted(model, steps=12, **kwargs):
    kwargs = {"tau_threshold": "always", "seed": 1, **kwargs}
    data = stream().apply(tfi.importance_sample(model, 16, 64, **kwargs))
    history = model.fit(data, steps_per_epoch=steps, verbose=0, shuffle=None).history
    return history["loss"][0]


@pytest.mark.parametrize("name", NETS)
def test_the_scoring_pass_normalizes_by_its_examples(name):
    """It is what Keras's own pass in training gives, whose examples these are."""
    keras.utils.set_random_seed(0)
    net = NETS[name]()
    net(X[:4])
    model = tfi.ISModel(net)
    x = tf.constant(X[:64])
    places = batch_statistics.places(model, x)

    @tf.function(autograph=False)
    def scored(x):
        collected = batch_statistics.Collected(places, tf.ones([64]))
        with collected.in_force():
            return model(x, training=False), collected.packed()

    outputs, packed = scored(x)
    before = [np.array(weight) for weight in net.get_weights()]
    np.testing.assert_allclose(outputs, net(x, training=True), rtol=1e-3, atol=1e-4)
    after = net.get_weights()
    trained = [layer for layer, *_ in places]
    assert packed.shape[0] == 2 * sum(place.channels for place in places)
    assert len(places) == {"shared": 2, "nested": 2, "time distributed": len(places)}.get(name, 1)
    if len(set(map(id, trained))) == len(trained):
        ends = np.cumsum([place.channels for place in places for _ in "ab"])
        means = np.split(packed.numpy(), ends[:-1])[::2]
        moved = [0.01 * mean for mean in means]
        found = [np.asarray(layer.moving_mean) for layer in trained]
        for a, b in zip(moved, found):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert any(np.any(a != b) for a, b in zip(before, after))


@pytest.mark.parametrize("name", quick(NETS, "functional", "tf.function"))
def test_pipeline_and_step_train_alike(name):
    found = []
    for score_in in ("pipeline", "step"):
        keras.utils.set_random_seed(0)
        model = compiled(NETS[name]())
        loss = fitted(model, score_in=score_in)
        found.append([loss, *map(np.array, model.net.get_weights())])
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", quick(NETS, "functional", "in inference", "time distributed"))
def test_fed_by_plain_data_it_is_plain_keras(name):
    """Also after a training on drawn data, and a net that was trained by Keras before."""
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(16)
    nets = []
    for wrapped in (False, True):
        keras.utils.set_random_seed(0)
        net = NETS[name]()
        net(X[:4])
        net.compile(keras.optimizers.SGD(0.1), LOSS)
        net.fit(batches, steps_per_epoch=5, verbose=0, shuffle=None)
        weights = net.get_weights()
        if wrapped:
            model = compiled(net)
            fitted(model, steps=3)
            assert any(np.any(a != b) for a, b in zip(weights, net.get_weights()))
            net.set_weights(weights)
        trained = compiled(net) if wrapped else net
        trained.compile(keras.optimizers.SGD(0.1), LOSS)
        trained.fit(batches, steps_per_epoch=5, verbose=0, shuffle=None)
        nets.append(net)
    for a, b in zip(*(net.get_weights() for net in nets)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [tfi.layers.BatchNormalization, L.BatchNormalization])
def test_a_net_that_is_a_tf_function_sees_the_weights_of_each_batch(kind):
    """Weighted, or ordinary and left so; after a plain fit and before another."""
    keras.utils.set_random_seed(0)
    net = Compiled()
    net.bn = kind(momentum=0.5)
    net(X[:4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tfi.ISModel(net, adapt_batch_normalization=False)
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    plain = tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(16)
    # A tenth of the examples, far away, has weights of a hundredth.
    far = np.arange(512) % 10 == 0
    weights = np.where(far, 0.01, 1.1).astype("float32")
    drawn = tf.data.Dataset.from_tensor_slices((X + 100 * far[:, None], Y, weights)).repeat()
    drawn = drawn.apply(tfi.importance_sample(model, 16, 64, tau_threshold="never"))
    model.fit(plain, steps_per_epoch=3, verbose=0, shuffle=None)
    model.fit(drawn, steps_per_epoch=30, verbose=0, shuffle=None)
    mean = np.abs(np.asarray(net.bn.moving_mean)).max()
    assert (mean < 3) == (kind is tfi.layers.BatchNormalization)
    model.fit(plain, steps_per_epoch=3, verbose=0, shuffle=None)


def test_a_function_of_the_nets_own_is_refused_by_name():
    bn = L.BatchNormalization(name="inside")

    @tf.function
    def normalized(x, training):
        return bn(x, training=training)

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn, self.head = bn, L.Dense(3)

        def call(self, inputs, training=None):
            return self.head(normalized(inputs, training))

    model = compiled(Net())
    with pytest.raises(ValueError, match="'inside' is called inside of a tf.function"):
        stream().apply(tfi.importance_sample(model, 16, 64))


def test_what_is_never_drawn_from_is_plain_keras():
    found = []
    for threshold in ("never", None):
        keras.utils.set_random_seed(0)
        model = compiled(nested())
        data = tf.data.Dataset.from_tensor_slices((X, Y)).repeat()
        if threshold is None:
            data = data.batch(16)
        else:
            data = data.apply(tfi.importance_sample(model, 16, 64, tau_threshold=threshold))
        model.fit(data, steps_per_epoch=8, verbose=0, shuffle=None)
        found.append(model.net.get_weights())
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


WITHOUT_DRAWS = {
    "RAIS": tfi.samplers.RAIS,
    "switched": lambda: tfi.samplers.Switched(
        [tfi.samplers.Uniform(), tfi.samplers.RAIS()],
        by=tfi.switches.Gain(step_seconds=1.0, scoring_seconds=10.0, memory_seconds=10.0),
    ),
}


@pytest.mark.parametrize("way", quick(WITHOUT_DRAWS, "RAIS"))
def test_the_first_pass_of_a_memory_is_plain_keras(way):
    """An average over batches is no match for a net that has just begun."""
    keras.utils.set_random_seed(0)
    model = compiled(nested(), rate=0.3)
    model.compile(keras.optimizers.SGD(0.3), LOSS, sampler=WITHOUT_DRAWS[way]())
    plain = keras.models.clone_model(model.net)
    plain.set_weights(model.net.get_weights())
    plain.compile(keras.optimizers.SGD(0.3), LOSS)
    seen = []
    call = model.compute_loss

    def noted(x=None, y=None, *rest, **named):
        tf.py_function(lambda *pair: seen.append(pair), [x, y], [])
        return call(x, y, *rest, **named)

    model.compute_loss = noted
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing was drawn")
        model.fit(X[:128], Y[:128], batch_size=16, steps_per_epoch=8, verbose=0, shuffle=True)
    assert len(seen) == 8
    for x, y in seen:
        plain.train_on_batch(x, y)
    for a, b in zip(model.net.get_weights(), plain.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "way", quick(["fresh", "several draws", "RAIS", "Fresh over RAIS", "switched"], "fresh", "RAIS")
)
def test_every_way_of_drawing_trains(way):
    keras.utils.set_random_seed(0)
    model = compiled(nested(), rate=0.05)
    if way == "fresh":
        loss = fitted(model, steps=60)
    elif way == "several draws":
        loss = fitted(model, steps=60, draws_per_presample=2)
    else:
        rais = tfi.samplers.RAIS()
        sampler = {
            "RAIS": rais,
            "Fresh over RAIS": tfi.samplers.Fresh(48, over=rais),
            "switched": tfi.samplers.Switched(
                [tfi.samplers.Uniform(), rais, tfi.samplers.Fresh(48, over=rais)],
                by=tfi.switches.Gain(step_seconds=1.0, scoring_seconds=0.0),
            ),
        }[way]
        model.compile(keras.optimizers.SGD(0.05), LOSS, sampler=sampler)
        loss = model.fit(X, Y, batch_size=16, steps_per_epoch=60, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    assert LOSS(Y, model.net(X)) < 0.7


# Statistics of a training -------------------------------------------------------------------


def hard_cluster():
    """A twentieth of the examples far away, with random labels: drawn ten times too often."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 6)).astype("float32")
    y = (x @ np.random.default_rng(1).normal(size=(6, 3))).argmax(1)
    hard = rng.random(4000) < 0.05
    return x + 6 * hard[:, None], np.where(hard, rng.integers(0, 3, 4000), y)


def drawn_by(model, x, y, way):
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(4000, seed=1).repeat()
    if way in ("fresh", "control"):
        drawn = tfi.importance_sample(model, 16, 64, tau_threshold="always", seed=1)
        return {"x": data.apply(drawn)}
    sampler = {
        "RAIS": tfi.samplers.RAIS,
        "proportional": tfi.samplers.Proportional,
        "strata": lambda: tfi.samplers.Stratified((x.sum(1) > 15).astype(int), shares={1: 0.5}),
    }[way]()
    model.compile(model.optimizer, LOSS, sampler=sampler)
    return {"x": x, "y": y, "batch_size": 16}


@pytest.mark.parametrize(
    "way", quick(["fresh", "RAIS", "proportional", "strata", "control"], "fresh", "control")
)
@pytest.mark.slow
def test_moving_statistics_are_the_datas(way):
    """Of inputs and of a layer that does not learn, at a learning rate of 0."""
    x, y = hard_cluster()
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((6,)), L.BatchNormalization(name="bn"), L.Dense(3)])
    model = tfi.ISModel(net, adapt_batch_normalization=way != "control")
    # A net that has learned something scores the hard cluster high.
    net.compile(keras.optimizers.Adam(0.01), LOSS)
    net.fit(x, y, epochs=2, verbose=0)
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    model.fit(**drawn_by(model, x, y, way), steps_per_epoch=1500, verbose=0, shuffle=True)
    bn = net.get_layer("bn")
    off = np.abs(np.asarray(bn.moving_mean) - x.mean(0)).max()
    scale = np.asarray(bn.moving_variance) / x.var(0)
    if way == "control":
        assert off > 0.35
    else:
        assert off < 0.2 and np.all((scale > 0.7) & (scale < 1.4))


@pytest.mark.parametrize("score_in", ["step", pytest.param("pipeline", marks=pytest.mark.slow)])
def test_behind_dropout_statistics_are_those_of_training(score_in):
    """A pass in inference would tell half of the variance, and each layer would double it."""
    x, y = hard_cluster()
    x = x / x.std(0)
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((6,)), L.Dropout(0.5), L.BatchNormalization(), L.Dense(3)])
    model = compiled(net, 0.0)
    data = tf.data.Dataset.from_tensor_slices((x, y)).repeat().shuffle(2000)
    way = tfi.importance_sample(model, 16, 64, tau_threshold="always", score_in=score_in)
    model.fit(data.apply(way), steps_per_epoch=1500, verbose=0, shuffle=None)
    # Var(d x) of a mask d of 0 and 2.
    expected = x.var(0) + (x**2).mean(0)
    scale = np.asarray(net.layers[-2].moving_variance) / expected
    assert np.all((scale > 0.7) & (scale < 1.4))


def test_what_is_random_in_training_is_found():
    def noisy(*layers, shape=(8, 6)):
        model = tfi.ISModel(keras.Sequential([keras.Input(shape), *layers]))
        spec = tf.TensorSpec([4, *shape])
        return [place.is_noisy for place in batch_statistics.places(model, spec)]

    bn = L.BatchNormalization
    dropped = L.GRU(4, return_sequences=True, recurrent_dropout=0.5)
    assert noisy(bn(), dropped, bn()) == [False, True]
    plain = L.GRU(4, return_sequences=True)
    assert noisy(bn(), plain, bn(), L.Dropout(0.5), bn(), L.Dense(2), bn()) == [
        *(False, False),
        *(True, True),
    ]
    assert noisy(bn(), L.RandomTranslation(0.2, 0.2), bn(), shape=(8, 8, 1)) == [False, True]
    assert noisy(L.Dropout(0.0), bn()) == [False]


# Conversion ---------------------------------------------------------------------------------

LOADS = """
import sys
sys.modules["tf_importance"] = None
import keras, numpy as np, tensorflow as tf
x_path, served, *saved = sys.argv[1:]
x, served = np.load(x_path), tf.saved_model.load(served)
found = [keras.models.load_model(path)(x) for path in saved]
np.save(x_path, np.stack([*found, served.serve(x)]))
"""


@pytest.mark.slow
def test_saved_and_exported_nets_need_nothing_of_this_package(tmp_path):
    model = compiled(nested())
    fitted(model)
    formats = ["net.keras", "net.h5"] if compat.KERAS_3 else ["net.keras", "net.h5", "net"]
    saved = [tmp_path / name for name in formats]
    for path in saved:
        model.net.save(path)
    model.export(tmp_path / "served")
    np.save(tmp_path / "x.npy", X[:8])
    subprocess.run(
        [sys.executable, "-c", LOADS, *map(str, (tmp_path / "x.npy", tmp_path / "served", *saved))],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=tmp_path,
    )
    for outputs in np.load(tmp_path / "x.npy"):
        np.testing.assert_allclose(outputs, model.net(X[:8]), rtol=1e-5, atol=1e-6)


def test_a_copy_is_a_net_of_its_own():
    model = compiled(nested())
    fitted(model)
    copied = copy.deepcopy(model.net)
    before, outputs = model.net.get_weights(), np.asarray(model.net(X))
    np.testing.assert_allclose(copied(X), outputs, rtol=1e-5, atol=1e-6)
    fitted(compiled(copied))
    for a, b in zip(before, model.net.get_weights()):
        np.testing.assert_array_equal(a, b)
    assert np.abs(copied(X) - outputs).max() > 1e-3


def test_a_converted_net_looks_like_keras_own():
    keras.utils.set_random_seed(0)
    net = nested()
    config, weights, expected = net.get_config(), net.get_weights(), np.asarray(net(X))
    assert tfi.layers.adapt_batch_normalization(net) is net
    assert net.get_config() == config
    np.testing.assert_array_equal(net(X), expected)
    for a, b in zip(weights, net.get_weights()):
        np.testing.assert_array_equal(a, b)
    again = keras.models.clone_model(net)
    assert not any(map(batch_statistics.is_adapted, again._flatten_layers()))


def test_the_model_converts_and_says_so_once(monkeypatch):
    said = []
    monkeypatch.setattr(tf.get_logger(), "info", said.append)
    model = compiled(functional())
    fitted(model, steps=2)
    (line,) = said
    assert "batch_normalization" in line and "adapt_batch_normalization=False" in line


def test_layers_of_a_net_that_is_built_later_are_converted():
    class Late(keras.Model):
        def build(self, input_shape):
            self.bn, self.head = L.BatchNormalization(), L.Dense(3)
            super().build(input_shape)

        def call(self, inputs, training=None):
            return self.head(self.bn(inputs, training=training))

    model = compiled(Late())
    fitted(model, steps=2)
    assert batch_statistics.is_adapted(model.net.bn)


def test_an_argument_leaves_the_net_as_it_is(tmp_path):
    net = functional()
    with pytest.warns(UserWarning, match="ordinary batch normalization"):
        model = tfi.ISModel(net, adapt_batch_normalization=False)
    assert not any(map(batch_statistics.is_adapted, net._flatten_layers()))
    model.compile("sgd", LOSS)
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="ordinary batch normalization"):
        again = keras.models.load_model(tmp_path / "model.keras")
    assert not any(map(batch_statistics.is_adapted, again.net._flatten_layers()))


def test_layers_by_name_keep_their_weighted_statistics():
    net = keras.Sequential([keras.Input((6,)), tfi.layers.BatchNormalization(), L.Dense(3)])
    model = compiled(net)
    assert batch_statistics.places(model, X[:16]) == ()
    fitted(model)


class Doubled(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


class Same(L.BatchNormalization):
    """Another name for it."""


def test_a_class_that_changes_the_layer_is_refused_and_another_name_is_not():
    with pytest.raises(ValueError, match="'odd' of class Doubled.*adapt_batch_normalization=False"):
        tfi.ISModel(keras.Sequential([keras.Input((6,)), Doubled(name="odd")]))
    tfi.ISModel(keras.Sequential([keras.Input((6,)), Doubled(name="odd", trainable=False)]))
    net = keras.Sequential([keras.Input((6,)), Same()])
    tfi.ISModel(net)
    assert batch_statistics.is_adapted(net.layers[-1])


def test_renorm_is_refused():
    with pytest.raises(ValueError, match="without renorm"):
        tfi.ISModel(keras.Sequential([keras.Input((6,)), L.BatchNormalization(renorm=True)]))


# Everything else ----------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.slow
def test_mixed_precision_and_xla(jit_compile):
    keras.utils.set_random_seed(0)
    policy = (
        keras.mixed_precision.global_policy().name
        if hasattr(keras.mixed_precision, "global_policy")
        else keras.config.dtype_policy().name
    )
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = compiled(functional(), jit_compile=jit_compile)
        loss = fitted(model, steps=30)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    assert np.isfinite(loss) and loss < 1.1


def test_layers_that_were_frozen_since_are_left_out_or_refused():
    model = compiled(nested())
    data = stream().apply(
        tfi.importance_sample(model, 16, 64, tau_threshold="always", score_in="pipeline")
    )
    model.net.get_layer("inner").trainable = False
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    with pytest.raises(ValueError, match="frozen or thawed"):
        model.fit(data, steps_per_epoch=2, verbose=0, shuffle=None)


def test_averages_are_in_checkpoints_and_in_no_file_of_weights(tmp_path):
    model = compiled(functional(), sampler=tfi.samplers.RAIS())
    model.fit(X, Y, batch_size=16, steps_per_epoch=4, verbose=0)
    names = [
        name
        for name, _ in tf.train.list_variables(
            tf.train.Checkpoint(model).save(str(tmp_path / "checkpoint"))
        )
    ]
    assert any("statistics/layer_0" in name for name in names)
    assert not any("average" in weight.name for weight in model.weights)
