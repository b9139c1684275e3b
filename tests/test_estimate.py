"""estimate_gain against the exact gain of all gradients, and what it says of it."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.reference import gain as reference
from tf_importance import __main__ as command
from tf_importance import gain

N, CLASSES, SMOOTHING = 1024, 3, 0.2


@pytest.fixture(scope="module")
def data():
    """Two far classes, and one in twenty that is hard."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(N) < 0.05, 2, rng.integers(2, size=N)).astype(np.int32)
    x = np.array([[2, 0], [-2, 0], [0, 1]], np.float32)[labels]
    return (x + rng.normal(scale=0.6, size=(N, 2))).astype(np.float32), labels


@pytest.fixture(scope="module")
def trained(data):
    keras.utils.set_random_seed(0)
    model = tfi.ISModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(CLASSES)]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss)
    model.fit(*data, batch_size=32, epochs=3, verbose=0)
    return model


def dataset(data):
    return tf.data.Dataset.from_tensor_slices(data)


def exact(model, data) -> tuple[reference.Moments, np.ndarray, np.ndarray, np.ndarray]:
    """Of a net that is its last layer: the gradients of all its parameters."""
    x, y = data
    logits = model(x).numpy().astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    deltas = chances - np.eye(CLASSES)[y]
    inputs = np.concatenate([x, np.ones([N, 1])], axis=1)
    gradients = (inputs[:, :, np.newaxis] * deltas[:, np.newaxis]).reshape(N, -1)
    scores = np.linalg.norm(deltas, axis=1)
    smooth = scores + SMOOTHING * scores.mean()
    return reference.moments(gradients, smooth), scores, smooth, gradients


def test_the_numbers_are_those_of_all_gradients(trained, data):
    """All examples in four chunks: U, Q and τ to a few percent, A by its unbiased estimate."""
    found = tfi.estimate_gain(trained, dataset(data), batch_sizes=[16], examples=N)
    moments, scores, smooth, gradients = exact(trained, data)
    assert found.examples == N
    tau = np.sqrt((scores**2).mean()) / scores.mean()
    assert found.tau == pytest.approx(tau, rel=1e-4)
    assert found.effective_sample_size == pytest.approx(1 / tau**2, rel=1e-4)
    as_tensors = gain.Moments(*map(tf.constant, moments), tf.zeros([0]))
    for prediction in found.predictions:
        rate = prediction.batch_size / prediction.presample_size
        rounding = reference.rounding(gradients, smooth, rate)
        expected = gain.gain_ratio(
            gain.uniform_square(as_tensors, 16), gain.drawn_square(as_tensors, 16, rate, rounding)
        )
        assert float(expected) > 1.2
        assert prediction.gain == pytest.approx(float(expected), rel=0.08)
        assert prediction.cost > 1
        assert prediction.speedup == pytest.approx(prediction.gain / prediction.cost)


def test_it_reads_as_a_table_and_recommends(trained, data, capsys):
    found = tfi.estimate_gain(trained, dataset(data), batch_sizes=[8, 16], examples=512, verbose=0)
    assert capsys.readouterr().out == "", "printing is the caller's"
    table = str(found)
    assert table.endswith(found.recommendation)
    assert len(found.predictions) == 6 and found.best in found.predictions
    assert "noise scale" in table and f"{found.best.gain:.2f}" in table
    worthwhile = found._replace(predictions=(found.best._replace(gain=3.0, cost=1.5),))
    assert "about 2.0 times as fast" in worthwhile.recommendation
    useless = found._replace(predictions=(found.best._replace(gain=1.0, cost=1.5),))
    assert "Train uniformly" in useless.recommendation


def test_the_model_stays_as_it_is(data):
    """Moving statistics and the seeds of dropout included."""
    L = keras.layers
    layers = [L.Dense(8), L.BatchNormalization(), L.Dropout(0.5), L.Dense(CLASSES)]
    net = keras.Sequential([keras.Input((2,)), *layers])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tfi.ISModel(net)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    model.fit(*data, batch_size=64, verbose=0)
    before = [np.array(tf.convert_to_tensor(value)) for value in model.variables]
    tfi.estimate_gain(model, dataset(data), batch_sizes=[8], examples=256)
    for one, other in zip(before, model.variables):
        np.testing.assert_array_equal(one, np.array(tf.convert_to_tensor(other)))


def test_wrong_arguments_are_refused(trained, data):
    with pytest.raises(ValueError, match="needs 256 examples"):
        tfi.estimate_gain(trained, dataset(data).take(100))
    with pytest.raises(ValueError, match="must not be batched"):
        tfi.estimate_gain(trained, dataset(data).batch(8))
    with pytest.raises(TypeError, match="model must be a compiled keras.Model; got None"):
        tfi.estimate_gain(None, dataset(data))
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(CLASSES)])
    with pytest.raises(ValueError, match="not compiled with a loss"):
        tfi.estimate_gain(net, dataset(data))


# A plain net, and later ------------------------------------------------------------------------


def plain(rate=0.5):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(rate), loss)
    return net


def test_a_plain_compiled_model_will_do(trained, data):
    """It has what an ISModel of the same weights has; arrays are shuffled first."""
    net = plain()
    net.set_weights(trained.net.get_weights())
    options = {"batch_sizes": [16], "examples": N, "verbose": 0}
    found = tfi.estimate_gain(net, data, **options)
    wanted = tfi.estimate_gain(trained, dataset(data), **options)
    assert found.tau == pytest.approx(wanted.tau, rel=1e-4)
    assert found.loss == pytest.approx(net.evaluate(*data, verbose=0), rel=1e-4)
    gains = [[one.gain for one in each.predictions] for each in (found, wanted)]
    np.testing.assert_allclose(*gains, rtol=0.05)
    assert repr(found) == str(found)


def test_after_some_steps_of_a_copy(data):
    net = plain()
    before, iterations = net.get_weights(), int(net.optimizer.iterations)
    found = tfi.estimate_gain(net, data, batch_sizes=[16], examples=N, after=[200, 20], verbose=0)
    for one, other in zip(before, net.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert int(net.optimizer.iterations) == iterations
    assert [one.steps for one in found.later] == [20, 200]
    losses = [found.loss, *(one.loss for one in found.later)]
    assert losses == sorted(losses, reverse=True)
    # Few examples matter once most are learned: here the third class alone.
    assert found.later[1].tau > found.tau
    assert "after 200 steps, loss" in str(found)


def test_what_it_says_of_later(data):
    now = tfi.estimate_gain(plain(), data, batch_sizes=[16], examples=256, verbose=0)
    low, high = (now.best._replace(gain=gain, cost=1.0) for gain in (1.0, 1.6))
    now = now._replace(predictions=(low,))
    later = [now._replace(predictions=(one,), steps=300, loss=0.05) for one in (low, high)]
    assert "Train uniformly for now" in now._replace(later=(later[0],)).recommendation
    assert "would not be after 300 steps either" in now._replace(later=(later[0],)).recommendation
    said = now._replace(later=tuple(later)).recommendation
    assert "After 300 steps, at a loss of 0.05, it would be 1.6 times as fast." in said


def test_a_net_that_cannot_be_copied_says_so(data):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(CLASSES)

        def call(self, inputs):
            return self.dense(inputs)

    net = Own()
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert tfi.estimate_gain(net, data, batch_sizes=[8], examples=256, verbose=0).tau >= 1
    with pytest.raises(ValueError, match="cannot be cloned.*without after"):
        tfi.estimate_gain(net, data, batch_sizes=[8], examples=256, after=[5], verbose=0)


def test_as_a_command(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_task.py").write_text(
        "from tests.test_estimate import plain, N\nimport numpy as np\n\n\ndef make():\n"
        "    x = np.random.default_rng(0).normal(size=(512, 2)).astype('float32')\n"
        "    return plain(), (x, (x[:, 0] > 0).astype('int32'))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["estimate", "my_task:make", "--after=5", "--batch_sizes=8", "--examples=256"]
    command.main(words)
    assert "after 5 steps" in capsys.readouterr().out
    for wrong, said in (("my_task", "module:function"), ("my_task:none", "there is no")):
        with pytest.raises(SystemExit):
            command.main(["estimate", wrong])
        assert said in capsys.readouterr().err
