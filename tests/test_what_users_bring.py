"""Nets, losses, metrics and data of users: trained right, or refused before the first step."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import compat, random_access

L = keras.layers
RNG = np.random.default_rng(0)
N, B, b = 96, 32, 8
X = RNG.normal(size=(N, 5)).astype("float32")
Y = RNG.integers(0, 2, N)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
IMAGES = RNG.random((N, 8, 8, 1)).astype("float32")
MASKS = (IMAGES > 0.6).astype("float32")


def mlp(outputs=2, **options):
    return keras.Sequential([keras.Input((5,)), L.Dense(8, "relu", **options), L.Dense(outputs)])


def drawn(model, *data, threshold="always", **options):
    sampled = tfi.importance_sample(model, b, B, tau_threshold=threshold, seed=1, **options)
    return tf.data.Dataset.from_tensor_slices(data).apply(sampled)


def compiled(net, loss=LOSS, rate=0.1, **options):
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(rate), loss, **options)
    return model


def plain():
    net = mlp()
    net.compile("sgd", LOSS)
    return net


def by(way, model, x, y):
    """Train an epoch: drawn in the pipeline, in the step or by a memory."""
    if way == "memory":
        model.compile(keras.optimizers.SGD(0.1), model.loss, sampler=tfi.samplers.RAIS(N))
        return model.fit(tfi.history_sample((x, y), model.sampler, b, seed=1), verbose=0)
    return model.fit(drawn(model, x, y, score_in=way), verbose=0)


# Nets ---------------------------------------------------------------------------------------


class Wrapped(keras.Model):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def call(self, inputs):
        return self.net(inputs)


class Parameters:
    """A distribution, as a net may return one."""

    def __init__(self, mean):
        self.mean = mean

    def log_prob(self, y):
        return -((y - self.mean) ** 2)


OUTPUTS = {
    "Parameters": Parameters,
    "RaggedTensor": tf.RaggedTensor.from_tensor,
    "SparseTensor": tf.sparse.from_dense,
}


@pytest.mark.parametrize("way", ["pipeline", "step", "memory"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_are_no_dense_tensors_are_refused(kind, way):
    class Net(Wrapped):
        def call(self, inputs):
            return OUTPUTS[kind](self.net(inputs))

    model = compiled(Net(), lambda y, outputs: -outputs.log_prob(y))
    with pytest.raises((TypeError, ValueError), match=f"got {kind}. Let the net return the param"):
        by(way, model, X, X[:, :2])


class OfOne(Wrapped):
    """Reads one of its inputs."""

    def call(self, inputs):
        return self.net(inputs["x"])


@pytest.mark.parametrize("way", ["pipeline", "step", "memory"])
@pytest.mark.parametrize(
    "ids", [np.arange(N), np.array([f"row {i}" for i in range(N)])], ids=["numbers", "strings"]
)
def test_what_a_net_does_not_read_comes_along(ids, way):
    def weights(x):
        keras.utils.set_random_seed(0)
        model = compiled(OfOne())
        by(way, model, x, Y)
        return model.net.get_weights()

    for one, other in zip(weights({"id": ids, "x": X}), weights({"x": X})):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["train_step", "test_step", "compute_loss", "compute_metrics"])
def test_a_method_of_the_nets_own_is_refused_by_name(name):
    def own(self, *args, **kwargs):
        return getattr(super(kind, self), name)(*args, **kwargs)

    kind = type("Own", (Wrapped,), {name: own})
    with pytest.raises(ValueError, match=f"class Own has a {name} of its own.*without that"):
        tfi.ISModel(kind())
    tfi.ISModel(Wrapped())


class Told(keras.Model):
    """Has to be told whether it trains."""

    def __init__(self):
        super().__init__()
        self.dense, self.dropout = L.Dense(2), L.Dropout(0.5)

    def call(self, inputs, training):
        return self.dense(self.dropout(inputs, training=training))


def test_a_net_that_must_be_told_whether_it_trains_is_told():
    model = compiled(Told(), rate=0.0)
    history = model.fit(drawn(model, X, Y), epochs=2, verbose=0).history
    assert history["importance"] == [1.0, 1.0]
    # In training some outputs are dropped, else none.
    model.fit(X, Y, verbose=0)
    outputs = [model(X, training=training).numpy() for training in (True, False, None)]
    np.testing.assert_array_equal(outputs[1], outputs[2])
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


def test_a_built_net_is_a_built_model(tmp_path):
    model, other = compiled(mlp()), compiled(mlp())
    assert model.built and other.count_params() == model.count_params()
    model.save_weights(tmp_path / "net.weights.h5")
    other.load_weights(tmp_path / "net.weights.h5")
    for mine, theirs in zip(model.net.get_weights(), other.net.get_weights()):
        np.testing.assert_array_equal(mine, theirs)


def test_an_unbuilt_sequential_keeps_a_free_batch_axis():
    net = keras.Sequential([L.Dense(8, "relu"), L.Dense(2)])
    model = compiled(net)
    model.fit(drawn(model, X, Y), verbose=0)
    assert net.input_shape == (None, 5) and net.predict(X[:7], verbose=0).shape == (7, 2)


# Losses -------------------------------------------------------------------------------------


def cox(labels, outputs):
    time, event, risk = labels[:, 0], labels[:, 1], outputs[:, 0]
    at_risk = tf.cast(time[None] >= time[:, None], tf.float32)
    return -event * (risk - tf.math.log(tf.reduce_sum(at_risk * tf.exp(risk)[None], axis=1)))


def contrastive(labels, outputs):
    similar = tf.nn.log_softmax(tf.matmul(outputs, outputs, transpose_b=True))
    same = tf.cast(labels[:, None] == labels[None], tf.float32)
    return -tf.reduce_mean(same * similar, axis=1)


def ranked(labels, outputs):
    apart = outputs[:, 0][:, None] - outputs[:, 0][None]
    return tf.reduce_mean(tf.nn.softplus(-apart) * tf.cast(labels[:, None] > labels, tf.float32), 1)


def by_cumulative_sums(labels, outputs):
    """Cox's, of examples in the order of their times: the first one's is its own."""
    risk = outputs[:, 0]
    return -labels[:, 0] * (risk - tf.math.log(tf.cumsum(tf.exp(risk))))


def area(labels, outputs):
    """Of pairs of a positive and a negative one, where labels are 0 and 1."""
    positive = tf.cast(labels[:, 0] == 1.0, tf.float32)
    apart = outputs[:, 0][:, None] - outputs[:, 0][None]
    return tf.reduce_sum(positive[:, None] * (1 - positive) * tf.nn.softplus(-apart), axis=1)


def rated(labels, outputs):
    apart = outputs[:, 0][:, None] - outputs[:, 0][None]
    above = tf.cast(labels[:, 0][:, None] > labels[:, 0] + 0.95, tf.float32)
    return tf.reduce_sum(above * tf.nn.softplus(-apart), axis=1)


def balanced(labels, outputs):
    share = tf.reduce_mean(tf.cast(labels, tf.float32))
    values = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)
    return values * tf.where(labels == 1, 1 / (2 * share + 1e-6), 1 / (2 * (1 - share) + 1e-6))


FLOATS = Y[:, None].astype("float32")
COUPLED = {
    "cox by sums": (by_cumulative_sums, FLOATS),
    "area": (area, FLOATS),
    "rated": (rated, 3 * FLOATS),
    "balanced": (balanced, Y),
    "cox": (cox, np.stack([RNG.exponential(size=N), Y], 1).astype("float32")),
    "contrastive": (contrastive, Y),
    "ranked": (ranked, Y),
}


@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_couples_examples_is_refused(name):
    loss, labels = COUPLED[name]
    model = compiled(mlp(), loss)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{loss.__name__}.* depends on the other examples"):
            drawn(model, X, labels)
    with pytest.raises(ValueError, match="depends on the other examples"):
        drawn(model, X, labels, threshold="never", strata=lambda x, y: tf.cast(x[0] > 0, tf.int32))
    # Of a net that is not built, too.
    model = tfi.ISModel(Wrapped())
    for sampler in (tfi.samplers.Proportional(), tfi.samplers.Oracle(N, model)):
        model.compile("sgd", loss, sampler=sampler)
        with pytest.raises(ValueError, match="depends on the other examples"):
            model.fit(X, labels, batch_size=b, verbose=0)
    # Uniform batches are Keras's own affair.
    model = compiled(mlp(), loss)
    model.fit(drawn(model, X, labels, threshold="never"), verbose=0)


def of_the_valid(labels, outputs):
    labels = tf.reshape(labels, [-1])
    valid = labels >= 0
    labels, outputs = tf.boolean_mask(labels, valid), tf.boolean_mask(outputs, valid)
    return keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)


@pytest.mark.parametrize("way", ["pipeline", "step", "memory"])
def test_a_loss_with_less_than_a_value_for_each_example_is_refused(way):
    labels = np.where(np.arange(N) % 5 == 0, -1, Y)
    with pytest.raises(ValueError, match="of_the_valid.* value for each example.*tf.where"):
        by(way, compiled(mlp(), of_the_valid), X, labels)


def test_a_weight_of_a_loss_that_changes_is_refused():
    model = compiled(mlp(), [LOSS], loss_weights=[tf.Variable(1.0)])
    with pytest.raises((TypeError, ValueError), match="loss_weights must be numbers; got Resource"):
        drawn(model, X, Y)


def test_without_a_loss_there_is_nothing_to_draw_by():
    for way in ("pipeline", "step", "memory"):
        with pytest.raises(ValueError, match="without a loss|compile"):
            by(way, compiled(mlp(), None), X, Y)


class Counts(L.Layer):
    def build(self, shape):
        self.passes = self.add_weight(name="passes", shape=(), trainable=False, initializer="zeros")

    def call(self, inputs):
        self.passes.assign(self.passes + 1.0)
        return inputs


@pytest.mark.parametrize("way", ["pipeline", "step"])
def test_random_numbers_that_are_drawn_in_vain_are_no_change(way):
    """Keras draws the mask of a recurrent dropout in inference, too."""
    layers = [keras.Input((4, 5)), L.GRU(4, dropout=0.2, recurrent_dropout=0.3), L.Dense(2)]
    sequences = RNG.normal(size=(N, 4, 5)).astype("float32")
    model = compiled(keras.Sequential(layers))
    assert np.isfinite(by(way, model, sequences, Y).history["loss"][0])


@pytest.mark.parametrize("way", ["pipeline", "step", "memory"])
def test_scoring_changes_no_variable(way):
    counts = Counts()
    model = compiled(keras.Sequential([keras.Input((5,)), counts, L.Dense(2)]))
    if way != "memory":
        with pytest.raises(ValueError, match="changes a variable in its pass"):
            by(way, model, X, Y)
    else:
        by(way, model, X, Y)
        assert float(tf.convert_to_tensor(counts.passes)) == N // b


ONE_HOT = np.eye(2, dtype="float32")[Y]
BY_EXAMPLE = {
    "sparse": (LOSS, Y),
    "softmax": (keras.losses.CategoricalCrossentropy(from_logits=True), ONE_HOT),
    "smoothed": (keras.losses.CategoricalCrossentropy(True, label_smoothing=0.1), ONE_HOT),
    "focal": (keras.losses.BinaryFocalCrossentropy(from_logits=True), ONE_HOT),
    "sigmoid": (keras.losses.BinaryCrossentropy(from_logits=True), ONE_HOT),
    "squares": ("mse", ONE_HOT),
    "huber": (keras.losses.Huber(), ONE_HOT),
    "cosine": (keras.losses.CosineSimilarity(), ONE_HOT),
    "hinge": ("squared_hinge", 2 * ONE_HOT - 1),
    "a function": (lambda y, z: tf.reduce_mean((y - z) ** 2, axis=-1), ONE_HOT),
}


@pytest.mark.parametrize("name", BY_EXAMPLE)
def test_losses_by_example_are_taken(name):
    loss, labels = BY_EXAMPLE[name]
    model = compiled(mlp(), loss, rate=1e-3)
    history = model.fit(drawn(model, X, labels), verbose=0).history
    assert np.isfinite(history["loss"][0]) and history["importance"] == [1.0]


class Penalty(L.Layer):
    """Adds a loss of its inputs, or of its weights alone."""

    def __init__(self, of_data: bool):
        super().__init__(name="penalty")
        self.of_data, self.dense = of_data, L.Dense(5)

    def call(self, inputs):
        outputs = self.dense(inputs)
        penalized = outputs if self.of_data else self.dense.kernel
        self.add_loss(1e-3 * tf.reduce_sum(tf.convert_to_tensor(penalized) ** 2))
        return outputs


ADDING = {
    "add_loss": lambda: [Penalty(of_data=True)],
    "activity": lambda: [L.Dense(5, activity_regularizer="l2", name="penalty")],
}


@pytest.mark.parametrize("way", ["stream", "memory"])
@pytest.mark.parametrize("name", ADDING)
def test_a_loss_that_a_layer_adds_of_the_data_is_refused(name, way):
    net = keras.Sequential([keras.Input((5,)), *ADDING[name](), L.Dense(2)])
    model = tfi.ISModel(net)
    sampler = tfi.samplers.Proportional() if way == "memory" else None
    model.compile("sgd", LOSS, sampler=sampler)
    with pytest.raises(ValueError, match="layer 'penalty' adds a loss of the data.*as an output"):
        model.fit(X, Y, verbose=0) if sampler else drawn(model, X, Y)


@pytest.mark.parametrize("penalty", ["of the weights", "regularizer"])
def test_a_penalty_of_weights_stays_as_it_is(penalty):
    """By never drawing it is Keras's own training; drawn it is taken."""
    weights = []
    for way in ("never", "always", "plain"):
        keras.utils.set_random_seed(0)
        hidden = L.Dense(5, kernel_regularizer="l2")
        first = Penalty(of_data=False) if penalty == "of the weights" else hidden
        net = keras.Sequential([keras.Input((5,)), first, L.Dense(2)])
        if way == "plain":
            net.compile(keras.optimizers.SGD(0.1), LOSS)
            net.fit(X, Y, batch_size=b, shuffle=False, verbose=0)
        else:
            model = compiled(net)
            model.fit(drawn(model, X, Y, threshold=way), verbose=0)
        weights.append(net.get_weights()[0])
    np.testing.assert_allclose(weights[0], weights[2], rtol=1e-4, atol=1e-6)
    assert np.isfinite(weights[1]).all()


# Metrics ------------------------------------------------------------------------------------


class Unweighted(keras.metrics.Mean):
    def update_state(self, y, z):
        return super().update_state(tf.abs(tf.cast(y, z.dtype) - z[:, 0]))


class Unused(keras.metrics.Mean):
    def update_state(self, y, z, sample_weight=None):
        return super().update_state(tf.abs(tf.cast(y, z.dtype) - z[:, 0]))


def whole_numbers():
    """Keras 3 counts its IoU in whole numbers by default, Keras 2 where it is told to."""
    return keras.metrics.MeanIoU(2, sparse_y_pred=False, name="m", dtype="int32")


@pytest.mark.parametrize(
    "metric, why",
    [
        (lambda: Unweighted(name="m"), "update_state has no sample_weight"),
        (lambda: Unused(name="m"), "update_state does not use sample_weight"),
        (whole_numbers, r"whole numbers; give MeanIoU\(…, dtype='float32'\)"),
    ],
    ids=["no sample_weight", "unused", "whole numbers"],
)
def test_a_metric_that_weights_do_not_reach_is_refused_by_name(metric, why):
    model = compiled(mlp(), metrics=[metric()])
    with pytest.raises(ValueError, match=f"metric 'm' of drawn batches.*{why}"):
        model.fit(drawn(model, X, Y), verbose=0)
    if "whole" in why and not compat.KERAS_3:
        return  # Of which Keras 2 has no result.
    model = compiled(mlp(), metrics=[metric()])
    assert "m" in model.fit(drawn(model, X, Y, threshold="never"), verbose=0).history


@pytest.mark.parametrize("way", ["stream", "step", "memory"])
def test_sample_weights_count_in_weighted_metrics_only(way):
    """As in Keras: at learning rate 0 both are what Keras shows of uniform batches."""
    rng = np.random.default_rng(3)
    weights = rng.gamma(0.5, 2.0, N).astype("float32")
    keras.utils.set_random_seed(1)
    net, metric = mlp(), keras.metrics.SparseCategoricalAccuracy
    named = {"metrics": [metric(name="m")], "weighted_metrics": [metric(name="w")]}
    net.compile(keras.optimizers.SGD(0.0), LOSS, **named)
    plain = net.evaluate(X, Y, sample_weight=weights, verbose=0, return_dict=True)
    model = tfi.ISModel(net)
    sampler = tfi.samplers.Proportional(alpha=0.3) if way == "memory" else None
    named = {"metrics": [metric(name="m")], "weighted_metrics": [metric(name="w")]}
    model.compile(keras.optimizers.SGD(0.0), LOSS, sampler=sampler, **named)
    if sampler:
        logs = model.fit(X, Y, sample_weight=weights, batch_size=b, epochs=50, verbose=0).history
        found = {name: np.mean(logs[name][10:]) for name in "mw"}
    else:
        score_in = {"stream": "pipeline", "step": "step"}[way]
        data = tf.data.Dataset.from_tensor_slices((X, Y, weights)).repeat(160)
        sampled = tfi.importance_sample(
            model, b, B, tau_threshold="always", smoothing=1.0, seed=1, score_in=score_in
        )
        logs = model.fit(data.apply(sampled), verbose=0).history
        found = {name: logs[name][0] for name in "mw"}
    assert abs(plain["m"] - plain["w"]) > 0.05, "weights must matter"
    for name in "mw":
        assert found[name] == pytest.approx(plain[name], abs=0.025)


def segmenter():
    convolution = L.Conv2D(1, 3, padding="same", activation="sigmoid")
    return keras.Sequential([keras.Input((8, 8, 1)), convolution])


@pytest.mark.parametrize(
    "metric",
    [
        keras.metrics.BinaryIoU,
        keras.metrics.AUC,
        keras.metrics.Precision,
        keras.metrics.Recall,
        keras.metrics.BinaryAccuracy,
        keras.metrics.MeanSquaredError,
    ],
)
def test_metrics_of_images_are_keras_own(metric):
    model = compiled(segmenter(), "binary_crossentropy", rate=0.0, metrics=[metric(name="m")])
    uniform = drawn(model, IMAGES, MASKS, threshold="never")
    found = model.fit(uniform, verbose=0).history["m"][0]
    assert found == pytest.approx(model.evaluate(IMAGES, MASKS, verbose=0)[1], abs=1e-4)


def test_weights_count_in_metrics_of_images():
    """Drawn batches estimate what uniform ones show; the drawn images alone would not."""
    masks = MASKS.copy()
    masks[: N // 8] = 1 - masks[: N // 8]
    metrics = [keras.metrics.Recall(name="m")]
    model = compiled(segmenter(), "binary_crossentropy", rate=0.0, metrics=metrics)
    model.net.set_weights([np.eye(9, 1, -4).reshape(3, 3, 1, 1) * 20, np.array([-12.0])])
    data = tf.data.Dataset.from_tensor_slices((IMAGES, masks)).repeat().shuffle(N, seed=0)
    sampled = tfi.importance_sample(model, b, B, tau_threshold="always", smoothing=0.2, seed=1)
    history = model.fit(data.apply(sampled), steps_per_epoch=400, verbose=0, shuffle=None).history
    truth = model.evaluate(IMAGES, masks, verbose=0)[1]
    assert history["m"][0] == pytest.approx(truth, abs=0.02)
    # Negative control: the drawn images by themselves show another.
    alone = keras.metrics.Recall()
    for x, y, _ in data.apply(sampled).take(100):
        alone.update_state(y, model(x))
    assert abs(float(alone.result()) - truth) > 0.05


@pytest.mark.parametrize("way", ["pipeline", "step", "memory"])
def test_a_class_that_is_ignored_is_and_the_loss_is_that_of_all_data(way):
    classes = np.digitize(IMAGES[..., 0], [0.3, 0.6]).astype("int32")
    # Of some images nearly all is void.
    classes[RNG.random(classes.shape) < RNG.random((N, 1, 1))] = 255
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    net = keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(3, 3, padding="same")])
    net.set_weights([np.random.default_rng(1).normal(size=(3, 3, 1, 3)), np.array([0.5, 0, -2])])
    sampler = tfi.samplers.Proportional() if way == "memory" else None
    model = compiled(net, loss, rate=0.0, sampler=sampler)
    if way == "memory":
        history = model.fit(IMAGES, classes, batch_size=b, epochs=30, verbose=0).history
        drawn_losses = history["loss"][1:]
    else:
        data = tf.data.Dataset.from_tensor_slices((IMAGES, classes)).repeat().shuffle(N, seed=0)
        options = {"tau_threshold": "always", "smoothing": 0.2, "seed": 1, "score_in": way}
        sampled = data.apply(tfi.importance_sample(model, b, B, **options))
        drawn_losses = model.fit(sampled, steps_per_epoch=400, verbose=0).history["loss"]
    truth = model.evaluate(IMAGES, classes, batch_size=N, verbose=0)
    assert np.mean(drawn_losses) == pytest.approx(truth, rel=0.02)


def dice(labels, outputs):
    both = tf.reduce_sum(labels * outputs)
    return (2 * both + 1) / (tf.reduce_sum(labels) + tf.reduce_sum(outputs) + 1)


def test_a_metric_that_is_one_number_for_a_batch_is_taken_and_warned_of():
    model = compiled(segmenter(), "binary_crossentropy", metrics=[dice])
    with pytest.warns(UserWarning, match="metric 'dice' is one number for a batch"):
        history = model.fit(drawn(model, IMAGES, MASKS), verbose=0).history
    assert 0 < history["dice"][0] < 1


def of_each_class(labels, outputs):
    return 2 * tf.reduce_sum(labels * outputs, axis=[0, 1, 2]) / tf.reduce_sum(labels + outputs)


def test_a_metric_of_each_class_is_taken_and_warned_of():
    model = compiled(segmenter(), "binary_crossentropy", metrics=[of_each_class])
    with pytest.warns(UserWarning, match="'of_each_class' is one number for a batch, or one for"):
        history = model.fit(drawn(model, IMAGES, MASKS), verbose=0).history
    assert 0 < history["of_each_class"][0] < 1


# Data ---------------------------------------------------------------------------------------


def test_examples_of_unknown_rank_are_refused_with_what_to_set():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).map(
        lambda x, y: tf.numpy_function(lambda *parts: parts, [x, y], [tf.float32, tf.int64])
    )
    with pytest.raises(ValueError, match="how many axes.*tf.ensure_shape.*output_signature"):
        data.apply(tfi.importance_sample(compiled(mlp()), b, B))


def sequences():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, N)
    tokens = [rng.integers(1, 20, length) for length in lengths]

    def generate():
        for part in tokens:
            yield part, part > 9

    spec = tf.TensorSpec([None], tf.int32)
    return tf.data.Dataset.from_generator(generate, output_signature=(spec, spec))


def tagger():
    keras.utils.set_random_seed(0)
    net = keras.Sequential([L.Embedding(20, 4), L.Dense(2)])
    net.build((None, None))
    return net


def test_sequences_of_different_lengths_are_padded_as_in_keras():
    plain = tagger()
    plain.compile(keras.optimizers.SGD(0.1), LOSS)
    plain.fit(sequences().padded_batch(b), verbose=0)
    model = compiled(tagger())
    never = tfi.importance_sample(model, b, B, tau_threshold="never")
    model.fit(sequences().apply(never), verbose=0)
    np.testing.assert_allclose(model.net.get_weights()[0], plain.get_weights()[0], atol=1e-6)
    for score_in in ("step", "pipeline"):
        model = compiled(tagger())
        always = tfi.importance_sample(model, b, B, tau_threshold="always", score_in=score_in)
        assert model.fit(sequences().apply(always), verbose=0).history["importance"] == [1.0]


def test_an_unbuilt_net_of_sequences_is_to_be_built():
    net = keras.Sequential([L.Embedding(20, 4), L.Dense(2)])
    if net.built:
        pytest.skip("Keras 2 has built it")
    with pytest.raises(ValueError, match=r"differ in length.*net.build\(\(None, None\)\)"):
        sequences().apply(tfi.importance_sample(compiled(net), b, B))


def test_sample_weights_of_shape_1_are_numbers():
    losses = []
    for weights in (np.linspace(0, 2, N), np.linspace(0, 2, N)[:, None]):
        keras.utils.set_random_seed(0)
        model = compiled(mlp())
        losses.append(model.fit(drawn(model, X, Y, weights), verbose=0).history["loss"][0])
    assert losses[0] == losses[1]


# Sample weights of what is in an example ------------------------------------------------------


def two_outputs(kind):
    inputs = keras.Input((5,))
    parts = L.Dense(2, name="a")(inputs), L.Dense(1, name="b")(inputs)
    return keras.Model(inputs, dict(zip("ab", parts)) if kind is dict else list(parts))


def of_both(kind, *parts):
    return dict(zip("ab", parts)) if kind is dict else tuple(parts)


def weighted_case(name):
    """A net's maker, its loss, and (x, y, sample weights)."""
    missing = RNG.integers(0, 2, N).astype("float32"), np.linspace(0.5, 3, N).astype("float32")
    if name == "pixels":
        return segmenter, "binary_crossentropy", (IMAGES, MASKS, 1 + 9 * MASKS[..., 0])
    if name == "steps":
        x, weights = RNG.normal(size=(N, 4, 5)).astype("float32"), RNG.random((N, 4))
        net = lambda: keras.Sequential([keras.Input((4, 5)), L.Dense(2)])  # noqa: E731
        return net, LOSS, (x, (x[..., 0] > 0).astype(int), weights.astype("float32"))
    kind = {"a dict": dict, "a list": list}[name]
    labels = of_both(kind, Y, X[:, :1])
    losses = {"a": LOSS, "b": "mse"} if kind is dict else [LOSS, "mse"]
    return lambda: two_outputs(kind), losses, (X, labels, of_both(kind, *missing))


WEIGHTED = ["pixels", "steps", "a dict", "a list"]


@pytest.mark.parametrize("score_in", ["step", "pipeline"])
@pytest.mark.parametrize("name", quick(WEIGHTED, "a dict", "pixels"))
def test_weights_of_what_is_in_an_example_are_kerass_where_nothing_is_drawn(name, score_in):
    net, loss, data = weighted_case(name)
    keras.utils.set_random_seed(0)
    plain, model = net(), net()
    model.set_weights(plain.get_weights())
    plain.compile(keras.optimizers.SGD(0.1), loss)
    plain.fit(tf.data.Dataset.from_tensor_slices(data).batch(b), verbose=0)
    model = compiled(model, loss)
    # A switch that could draw, and never does.
    model.fit(drawn(model, *data, threshold=1e6, score_in=score_in), verbose=0)
    for mine, theirs in zip(model.net.get_weights(), plain.get_weights()):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixels", "a dict"])
def test_weights_of_what_is_in_an_example_times_importance_are_unbiased(name):
    """The sum of many small steps is that of the data's own gradient; unweighted it is another."""
    net, loss, data = weighted_case(name)
    keras.utils.set_random_seed(0)
    start, moved = net(), []
    for given, steps, threshold in (
        (data, 1200, "always"),
        (data, 12, "never"),
        (data[:2], 12, "never"),
    ):
        one = net()
        one.set_weights(start.get_weights())
        model = compiled(one, loss, rate=1e-5)
        stream = tf.data.Dataset.from_tensor_slices(given).repeat().shuffle(N, seed=2)
        sampled = tfi.importance_sample(model, b, B, tau_threshold=threshold, smoothing=0.5, seed=1)
        model.fit(stream.apply(sampled), steps_per_epoch=steps, verbose=0, shuffle=None)
        parts = zip(one.get_weights(), start.get_weights())
        moved.append(np.concatenate([(a - b_).ravel() for a, b_ in parts]) / steps)
    found, truth, unweighted = moved
    assert np.linalg.norm(found - truth) < 0.12 * np.linalg.norm(truth)
    assert np.linalg.norm(found - unweighted) > 0.3 * np.linalg.norm(truth)


@pytest.mark.parametrize("threshold", ["never", "always"])
def test_weights_by_name_are_those_of_their_outputs(threshold):
    """Whose order is not that of their names."""
    given = keras.Input((5,))
    outputs = [L.Dense(2, name="b")(given), L.Dense(1, name="a")(given)]
    model = compiled(keras.Model(given, outputs), {"b": LOSS, "a": "mse"})
    weights = {"b": np.zeros(N, "float32"), "a": np.ones(N, "float32")}
    before = [np.array(part) for part in model.net.get_weights()]
    data = drawn(model, X, (Y, FLOATS), weights, threshold=threshold)
    model.fit(data, verbose=0)
    changed = [np.any(mine != theirs) for mine, theirs in zip(model.net.get_weights(), before)]
    assert changed == [False, False, True, True]
    with pytest.raises(ValueError, match="by name must be one for each of the outputs"):
        model.fit(drawn(model, X, (Y, FLOATS), {"b": weights["b"]}), verbose=0)


SIGNS = np.where(Y == 1, 1.0, -1.0)[:, None].astype("float32")
CLASS_WEIGHTS = {
    "signs": (SIGNS, {-1: 1.0, 1: 5.0}),
    "signs, otherwise": (SIGNS, {1: 5.0, -1: 1.0}),
    "rounded": (np.where(Y == 1, 0.9, 0.1)[:, None].astype("float32"), {0: 1.0, 1: 10.0}),
    "one missing": (FLOATS, {1: 3.0}),
}


@pytest.mark.skipif(not compat.KERAS_3, reason="Keras 2 takes classes from 0 on alone")
@pytest.mark.parametrize("name", CLASS_WEIGHTS)
def test_class_weights_are_kerass(name):
    labels, weights = CLASS_WEIGHTS[name]
    found = []
    for sampler in (None, tfi.samplers.Uniform()):
        keras.utils.set_random_seed(0)
        model = compiled(mlp(1), "squared_hinge", rate=0.0, sampler=sampler)
        found += model.fit(X, labels, class_weight=weights, batch_size=b, verbose=0).history["loss"]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_class_weights_of_what_is_no_class_are_refused():
    model = compiled(mlp(2), "mse", sampler=tfi.samplers.Uniform())
    with pytest.raises(ValueError, match="class_weight goes with one label for each example"):
        model.fit(X, np.zeros((N, 3, 2), "float32"), class_weight={0: 1.0}, verbose=0)


def test_labels_that_are_strings_are_refused_with_what_makes_classes():
    labels = np.array(["yes", "no"])[Y]
    for way in ("pipeline", "step", "memory"):
        with pytest.raises(ValueError, match="labels must be numbers.*return_inverse"):
            by(way, compiled(mlp()), X, labels)


def test_a_plain_batch_under_a_sampler_that_has_drawn_none_is_refused():
    model = compiled(mlp(), sampler=tfi.samplers.RAIS())
    with pytest.raises(ValueError, match="RAIS .* has drawn no batch yet.*compile without"):
        model.train_on_batch(X, Y)


def test_hdf5_is_refused_with_a_clear_word(tmp_path):
    with pytest.raises(ValueError, match="not saved as HDF5.*model.net.save"):
        compiled(mlp()).save(str(tmp_path / "model.h5"))


class Tempered(Wrapped):
    """Has an output that is one number for the batch."""

    def call(self, inputs):
        return {"logits": self.net(inputs), "temperature": tf.constant(2.0)}


@pytest.mark.parametrize("way", ["pipeline", "step", "memory"])
def test_an_output_that_is_one_number_is_left_alone(way):
    model = compiled(Tempered(), {"logits": LOSS})
    assert np.isfinite(by(way, model, X, {"logits": Y}).history["loss"][0])


def test_weights_that_are_not_one_for_each_output_are_refused():
    net, loss, (x, labels, weights) = weighted_case("a dict")
    model = compiled(net(), loss)
    with pytest.raises(ValueError, match="one tensor for each of the 2 outputs.*got 1"):
        model.fit(drawn(model, x, labels, {"a": weights["a"]}), verbose=0)
    model = compiled(mlp())
    spec = (X, Y, np.ones((N, 3), "float32"))
    with pytest.raises(ValueError, match="have more axes than the losses"):
        model.fit(drawn(model, *spec), verbose=0)
    with pytest.raises(ValueError, match="one for each example beside strata"):
        drawn(model, *spec, strata=lambda x, y: y)


# Sources of a memory ------------------------------------------------------------------------


class Examples:
    """As a map-style set of PyTorch has them."""

    def __len__(self):
        return N

    def __getitem__(self, number):
        return X[number], int(Y[number])


class Batches(keras.utils.Sequence):
    def __init__(self):
        super().__init__()

    def __len__(self):
        return 4

    def __getitem__(self, number):
        return X[:b], Y[:b]


def loader():
    kind = type("DataLoader", (), {"__module__": "torch.utils.data.dataloader", "dataset": None})
    return kind()


def huggingface():
    kind = {"with_format": None, "column_names": ["pixels", "digit"], "__len__": lambda self: N}
    return type("Dataset", (), {**kind, "__getitem__": lambda self, i: {"pixels": X[i]}})()


def table():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(X)


REFUSED = {
    "PyDataset": (Batches, "PyDataset has batches; give the arrays.*__getitem__"),
    "torch DataLoader": (loader, "give its examples, loader.dataset, and a batch_size"),
    "Hugging Face": (huggingface, "columns pixels, digit; give inputs and labels as arrays"),
    "pandas": (table, r"table\[inputs\].to_numpy"),
    "a generator": (lambda: (one for one in zip(X, Y)), "give fit arrays.*importance_sample"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_that_a_memory_cannot_read_is_refused_with_what_converts_it(name):
    make, remedy = REFUSED[name]
    model = compiled(mlp(), sampler=tfi.samplers.Proportional())
    with pytest.raises(TypeError, match=remedy):
        model.fit(make(), verbose=0)
    asked = [
        lambda data: tfi.compare(plain, data),
        lambda data: tfi.history_sample(data, tfi.samplers.Proportional(N), b),
        lambda data: tfi.Recorder("run", data),
    ]
    if name != "PyDataset":  # An estimate takes batches apart.
        asked.append(lambda data: tfi.estimate_gain(plain(), data))
    for ask in asked:
        with pytest.raises(TypeError, match="random access.*got" if "gen" in name else remedy):
            ask(make())


ARRAYS = {
    "ragged": (tf.ragged.constant([[1.0] * (1 + i % 3) for i in range(N)]), r"x.to_tensor\(\)"),
    "sparse": (tf.sparse.from_dense(X), "tf.sparse.to_dense"),
    "objects": (np.array([np.zeros(1 + i % 3) for i in range(N)], object), "pad those of diff"),
    "columns": (np.zeros(N, [("a", "f4"), ("b", "f4")]), "x.dtype.names"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_no_dense_numbers_are_refused_with_what_makes_them(name):
    x, remedy = ARRAYS[name]
    with pytest.raises(TypeError, match=f"arrays must be .*{remedy}"):
        compiled(mlp(), sampler=tfi.samplers.Proportional()).fit(x, Y, batch_size=b, verbose=0)
    with pytest.raises(TypeError, match=f"arrays must be .*{remedy}"):
        tfi.history_sample((x, Y), tfi.samplers.Proportional(N), b)


@pytest.mark.parametrize("odd", [lambda i: (X[i, : 5 - i % 2], Y[i]), lambda i: (X[i], i / 2 or 0)])
def test_examples_by_number_that_are_not_alike_are_said_to_be(odd):
    class Source:
        def __len__(self):
            return N

        def __getitem__(self, i):
            return odd(i)

    batches = tfi.history_sample(Source(), tfi.samplers.Uniform(N), b)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be alike.*pad or cast them"):
        list(batches.take(2))


def test_sample_weights_that_are_strings_or_have_names_for_one_output_are_refused():
    with pytest.raises(ValueError, match="sample weights must be numbers"):
        drawn(compiled(mlp()), X, Y, np.array(["1"] * N))
    model = compiled(mlp())
    with pytest.raises(ValueError, match="are for a net of several outputs"):
        model.fit(drawn(model, X, Y, {"a": np.ones(N, "float32")}), verbose=0)


def test_a_memory_that_has_not_drawn_yet_says_so():
    model = compiled(mlp(), sampler=tfi.samplers.RAIS())
    heard = r"nothing was drawn: RAIS draws once .* visits of examples, and has heard of \d+ so far"
    with pytest.warns(UserWarning, match=heard):
        model.fit(X, Y, batch_size=b, verbose=0)


def test_a_switch_that_lets_no_memory_learn_says_so_in_each_training():
    members = [tfi.samplers.Uniform(), tfi.samplers.RAIS()]
    # Nothing is timed: memory is said to cost more than it can gain.
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1.0, memory_seconds=1e3)
    sampler = tfi.samplers.Switched(members, by=switch)
    model = compiled(mlp(), rate=tfi.schedules.GainAdapted(0.1), sampler=sampler)
    for _ in range(2):
        with pytest.warns(UserWarning, match="nothing was drawn: RAIS was not let learn"):
            model.fit(X, Y, batch_size=b, epochs=2, verbose=0)
    sampler.decisions.trial.learning.assign(True)
    assert sampler.why_off().startswith("the memory was learning still: RAIS draws once")


def test_weights_that_are_all_zero_are_why_nothing_was_drawn():
    for sampler in (tfi.samplers.RAIS(), tfi.samplers.Proportional()):
        model = compiled(mlp(), sampler=sampler)
        with pytest.warns(UserWarning, match="nothing was drawn: all sample weights were 0"):
            model.fit(X, Y, batch_size=b, sample_weight=np.zeros(N, "float32"), verbose=0)


def no_graph(labels, outputs):
    return tf.convert_to_tensor((outputs.numpy()[:, 0] - labels.numpy()) ** 2)


def test_a_loss_that_no_graph_can_have_is_refused():
    model = compiled(mlp(1), no_graph, run_eagerly=True)
    with pytest.raises(ValueError, match="no_graph.* cannot be computed for each example"):
        drawn(model, X, Y)


def test_the_order_of_a_draw_is_nothing_to_warn_of():
    """Keras says of a dataset that its default, shuffle=True, has no effect."""
    model = compiled(mlp(), sampler=tfi.samplers.Proportional())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "`shuffle=True` was passed")
        model.fit(X, Y, batch_size=b, verbose=0)
        model = compiled(mlp())
        model.fit(drawn(model, X, Y), verbose=0)


def test_examples_by_number_and_tables_with_labels_are_taken():
    model = compiled(mlp(), sampler=tfi.samplers.Proportional())
    # As torch's random_split gives them.
    kind = {"__module__": "torch.utils.data.dataset", "dataset": None}
    for examples in (Examples(), type("Subset", (Examples,), kind)()):
        model.fit(examples, batch_size=b, verbose=0)
    pandas = pytest.importorskip("pandas")
    model = compiled(mlp(), sampler=tfi.samplers.Proportional())
    model.fit(pandas.DataFrame(X), pandas.Series(Y), batch_size=b, verbose=0)
    assert int(model.sampler.steps) == N // b
    for limit in (None, 5):
        x, y = random_access.first(Examples(), limit)
        np.testing.assert_array_equal(x, X[:limit])
        np.testing.assert_array_equal(y, Y[:limit])


@pytest.mark.parametrize("way", ["pipeline", "step", "memory"])
def test_a_net_may_begin_with_text(way):
    words = L.TextVectorization(max_tokens=20, output_sequence_length=4)
    words.adapt(["a b c", "d e f"])
    layers = [words, L.Embedding(20, 8), L.GlobalAveragePooling1D(), L.Dense(2)]
    model = compiled(keras.Sequential([keras.Input((1,), dtype="string"), *layers]))
    texts = np.array(["a b", "c d e"])[Y][:, None]
    assert np.isfinite(by(way, model, texts, Y).history["loss"][0])
