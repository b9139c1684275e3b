"""estimate_gain against the exact gain of all gradients, and what it says of it."""

import functools
import itertools
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.reference import gain as reference
from tf_importance import __main__ as command
from tf_importance import gain
from tf_importance.estimate import clock

N, CLASSES, SMOOTHING = 1024, 3, 0.2
# However long a loaded machine takes.
estimate = functools.partial(tfi.estimate_gain, seconds=None)


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
    found = estimate(trained, dataset(data), batch_sizes=[16], examples=N)
    moments, scores, smooth, gradients = exact(trained, data)
    assert found.examples == N
    tau = np.sqrt((scores**2).mean()) / scores.mean()
    assert found.tau == pytest.approx(tau, rel=1e-4)
    assert found.effective_sample_size == pytest.approx(1 / tau**2, rel=1e-4)
    as_tensors = gain.Moments(*map(tf.constant, moments), tf.zeros([0]))
    assert found.strata == (CLASSES, int(np.bincount(data[1]).min()))
    by_scores = [one for one in found.predictions if one.by == "scores"]
    assert len(by_scores) == 3
    for prediction in by_scores:
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
    found = estimate(trained, dataset(data), batch_sizes=[8, 16], examples=512, verbose=0)
    assert capsys.readouterr().out == "", "printing is the caller's"
    table = str(found)
    assert table.endswith(found.recommendation)
    assert len(found.predictions) == 8 and found.best in found.predictions
    assert "noise scale" in table and f"{found.best.gain:.2f}" in table
    one = found.predictions[0]
    worthwhile = found._replace(predictions=(one._replace(gain=3.0, cost=1.5),))
    assert "follows the gain: about 2.0 times as fast" in worthwhile.recommendation
    useless = found._replace(predictions=(one._replace(gain=1.0, cost=1.5),))
    assert "Train uniformly for now: neither strata nor scores" in useless.recommendation
    assert "now: importance sampling would not" in useless._replace(strata=None).recommendation
    few = useless._replace(strata=useless.strata._replace(rarest=3))
    assert "The rarest stratum has 3 of these examples" in few.recommendation


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
    estimate(model, dataset(data), batch_sizes=[8], examples=256)
    for one, other in zip(before, model.variables):
        np.testing.assert_array_equal(one, np.array(tf.convert_to_tensor(other)))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"after": 300}, "after must be a list of positive integers, such as [300]; got 300."),
        ({"after": [0]}, "each of after must be a positive integer; got 0."),
        ({"batch_sizes": "32"}, "batch_sizes must be a list of positive integers"),
        ({"batch_sizes": []}, "batch_sizes must name one size at least"),
        ({"examples": 100}, "examples must be at least 256, one chunk; got 100."),
        ({"smoothing": "a"}, "smoothing must be finite and not negative; got 'a'."),
        ({"seconds": 0}, "seconds must be positive; got 0."),
        ({"strata": 3}, "strata must be whole numbers"),
        ({"strata": lambda x, y: x[0]}, "the function gave float32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_are_refused(trained, data, options, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        tfi.estimate_gain(trained, data, **options)


def test_data_and_models_that_do_not_fit_are_refused(trained, data):
    x, y = data
    with pytest.raises(ValueError, match="needs 256 examples.*Give more"):
        estimate(trained, dataset(data).take(100))
    with pytest.raises(ValueError, match="have one weight each"):
        estimate(trained, dataset((x, y, x)))
    with pytest.raises(ValueError, match=r"arrays of shapes \[\(1024, 2\), \(3,\)\]"):
        estimate(trained, (x, y[:3]))
    with pytest.raises(TypeError, match="arrays .x, y., a tf.data.Dataset, a PyDataset.*got an"):
        estimate(trained, x)
    with pytest.raises(TypeError, match="model must be a compiled keras.Model; got None"):
        estimate(None, dataset(data))
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(CLASSES)])
    with pytest.raises(ValueError, match="not compiled with a loss"):
        estimate(net, dataset(data))


# Strata ----------------------------------------------------------------------------------------


def test_strata_are_predicted_by_all_gradients(trained, data):
    """E‖g‖² of batches that have Neyman's shares of the classes, by float64 and by all examples."""
    found = estimate(trained, data, batch_sizes=[16], examples=N, verbose=0)
    (by_strata,) = (one for one in found.predictions if one.by == "strata")
    moments, scores, _, gradients = exact(trained, data)
    squares = (gradients**2).sum(axis=1)
    shares, drawn = reference.by_strata(data[1], scores, squares, smoothing=0.1)
    assert shares[2] > 2 * np.mean(data[1] == 2), "the hard class is drawn more often"
    mean_square = (gradients.mean(axis=0) ** 2).sum()
    uniform = mean_square + (squares.mean() - mean_square) / 16
    expected = uniform / (mean_square + (drawn - mean_square) / 16)
    assert expected > 1.2
    assert by_strata.gain == pytest.approx(expected, rel=0.05)
    assert by_strata.cost == 1 and by_strata.speedup == by_strata.gain


def test_the_prediction_is_what_stratified_batches_have(trained, data):
    """E‖g‖² of 4,000 batches that Stratified's shares draw is no more than is predicted."""
    moments, scores, _, gradients = exact(trained, data)
    labels, size = data[1], 16
    squares = (gradients**2).sum(axis=1)
    shares, drawn = reference.by_strata(labels, scores, squares, smoothing=0.1)
    prior = np.bincount(labels) / N
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(labels == k) for k in range(CLASSES)]
    seen = []
    for _ in range(4000):
        points = (np.arange(size) + rng.random()) / size
        strata = np.searchsorted(np.cumsum(shares), points, side="right").clip(max=CLASSES - 1)
        chosen = [rng.choice(members[k]) for k in strata]
        weights = (prior / shares)[strata]
        seen.append(((weights[:, None] * gradients[chosen]).mean(axis=0) ** 2).sum())
    mean_square = (gradients.mean(axis=0) ** 2).sum()
    predicted = mean_square + (drawn - mean_square) / size
    error = np.std(seen) / np.sqrt(len(seen))
    assert np.mean(seen) < predicted + 3 * error
    uniform = mean_square + (squares.mean() - mean_square) / size
    assert np.mean(seen) < uniform - 10 * error


def test_a_rare_class_is_said_to_pay(capsys):
    """The README's rare data: nothing to gain at first, and strata pay once the rest is learned."""
    rng = np.random.default_rng(0)
    y = (rng.random(8192) < 0.01).astype("int32")
    x = (rng.normal(size=(8192, 16)) + y[:, None]).astype("float32")
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(3e-3), loss)
    found = estimate(net, (x, y), batch_sizes=[32], after=[200], verbose=0)
    (now,), (then,) = (
        [one.speedup for one in each.predictions if one.by == "strata"]
        for each in (found, found.later[0])
    )
    assert now < 1.1 and then > 1.5
    assert found.recommendation.startswith("Draw by strata, sampler=tfi.samplers.Stratified()")
    assert "not faster yet, but nothing is scored. After 200 steps" in found.recommendation
    assert "2 strata, the rarest 0.0" in str(found)


def test_strata_of_ones_own(trained, data):
    options = {"batch_sizes": [16], "examples": N, "verbose": 0}
    half = estimate(trained, data, strata=lambda x, y: x[0] > 0, **options)
    assert half.strata == (2, min(np.sum(data[0][:, 0] > 0), np.sum(data[0][:, 0] <= 0)))
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    none = estimate(net, (data[0], data[0].sum(axis=1)), **options)
    assert none.strata is None and {one.by for one in none.predictions} == {"scores"}


# Whatever holds the data -----------------------------------------------------------------------


def test_sample_weights_are_factors_of_the_gradients(trained, data):
    weights = np.where(data[1] == 2, 5.0, 0.5).astype(np.float32)
    options = {"batch_sizes": [16], "examples": N, "verbose": 0}
    found = estimate(trained, (*data, weights), **options)
    _, scores, _, gradients = exact(trained, data)
    scores, gradients = scores * weights, gradients * weights[:, None]
    tau = np.sqrt((scores**2).mean()) / scores.mean()
    assert found.tau == pytest.approx(tau, rel=1e-4)
    assert found.tau > 1.2 * estimate(trained, data, **options).tau
    mean_square, square = (gradients.mean(axis=0) ** 2).sum(), (gradients**2).sum(axis=1).mean()
    assert found.noise_scale == pytest.approx(square / mean_square - 1, rel=0.15)
    shaped = estimate(trained, dataset((*data, weights[:, None])).shuffle(N), **options)
    assert shaped.tau == pytest.approx(found.tau, rel=1e-4)


class Batches(keras.utils.Sequence):
    """A PyDataset of lists of arrays, the last batch smaller."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def __len__(self):
        return -(-N // 100)

    def __getitem__(self, number):
        return tuple(part[100 * number : 100 * number + 100] for part in self.data)


def test_batches_are_taken_apart(trained, data):
    options = {"batch_sizes": [16], "examples": N, "verbose": 0}
    wanted = estimate(trained, dataset(data), **options)
    for batches in (dataset(data).batch(100), Batches(data), list(zip(*data))):
        found = estimate(trained, batches, **options)
        assert found.tau == pytest.approx(wanted.tau, rel=1e-5)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-5)


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
    found = estimate(net, data, **options)
    wanted = estimate(trained, dataset(data), **options)
    assert found.tau == pytest.approx(wanted.tau, rel=1e-4)
    assert found.loss == pytest.approx(net.evaluate(*data, verbose=0), rel=1e-4)
    gains = [[one.gain for one in each.predictions] for each in (found, wanted)]
    np.testing.assert_allclose(*gains, rtol=0.05)
    assert repr(found) == str(found)


def test_after_some_steps_of_a_copy(data):
    net = plain()
    before, iterations = net.get_weights(), int(net.optimizer.iterations)
    found = estimate(net, data, batch_sizes=[16], examples=N, after=[200, 20], verbose=0)
    for one, other in zip(before, net.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert int(net.optimizer.iterations) == iterations
    assert [one.steps for one in found.later] == [20, 200]
    losses = [found.loss, *(one.loss for one in found.later)]
    assert losses == sorted(losses, reverse=True)
    # Few examples matter once most are learned: here the third class alone.
    assert found.later[1].tau > found.tau
    assert "after 200 steps, loss" in str(found)


@pytest.fixture
def ticking(monkeypatch):
    """A second passes whenever it is asked for."""
    seconds = itertools.count()
    monkeypatch.setattr(clock, "now", lambda: float(next(seconds)))


def test_it_answers_in_time(data, ticking):
    options = {"batch_sizes": [16], "examples": N, "after": [20, 200], "verbose": 0}
    whole = tfi.estimate_gain(plain(), data, seconds=10_000, **options)
    assert whole.examples == N and [one.steps for one in whole.later] == [20, 200]
    assert whole.missed == () and "no time" not in whole.recommendation
    hasty = tfi.estimate_gain(plain(), data, seconds=120, **options)
    assert 20 < hasty.later[1].steps < 200 and hasty.missed == (200,)
    assert "There was no time for 200 steps: give it more, seconds=…." in hasty.recommendation
    least = tfi.estimate_gain(plain(), data, seconds=1, **options)
    assert least.examples == 256 and least.later == () and least.missed == (20, 200)
    assert "no time for 20 and 200 steps" in least.recommendation


def test_what_takes_too_long_is_timed_on_smaller_batches(trained, data, ticking):
    pairs, bar = dataset(data), keras.utils.Progbar(3, verbose=0)
    patient, hasty = clock.Clock(trained, pairs), clock.Clock(trained, pairs, bar, patience=1.5)
    for timed, expected in ((patient, 1.0), (hasty, 4.0)):
        assert timed.step_seconds(8) == 1.0
        assert timed.step_seconds(32) == timed.step_seconds(32) == expected
        assert timed.scoring_seconds(32) == 1.0, "of other work"
    assert bar._seen_so_far == 3


def test_what_it_says_of_later(data):
    now = estimate(plain(), data, batch_sizes=[16], examples=256, verbose=0)
    one = now.predictions[0]
    low, high = (one._replace(gain=gain, cost=1.0) for gain in (1.0, 1.6))
    now = now._replace(predictions=(low,))
    many = now.strata._replace(rarest=20)
    now = now._replace(strata=many)
    later = [now._replace(predictions=(one,), steps=300, loss=0.05) for one in (low, high)]
    assert "Train uniformly for now" in now._replace(later=(later[0],)).recommendation
    assert "would not be after 300 steps either" in now._replace(later=(later[0],)).recommendation
    said = now._replace(later=tuple(later)).recommendation
    assert "at a loss of 0.05, it would be 1.6 times as fast by 16 drawn from pre-samples" in said
    pays = now._replace(predictions=(high,), later=tuple(later))
    assert pays.recommendation.endswith("a loss of 0.05, it would be 1.6 times as fast.")


def test_a_net_that_cannot_be_copied_is_trained_itself_and_put_back(data):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(CLASSES)

        def call(self, inputs):
            return self.dense(inputs)

    net = Own()
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net(data[0][:1])
    before = net.get_weights()
    found = estimate(net, data, batch_sizes=[8], examples=256, after=[100], verbose=0)
    assert found.later[0].loss < found.loss
    for one, other in zip(before, net.get_weights()):
        np.testing.assert_array_equal(one, other)


TASK = """
import numpy as np
from tests.test_estimate import plain

x = np.random.default_rng(0).normal(size=(512, 2)).astype("float32")


def make():
    return plain(), (x, (x[:, 0] > 0).astype("int32"))


def alone():
    return plain()


def with_one(size):
    return make()


def empty():
    return plain(), (x[:0], x[:0, 0])
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A module of a user's in the folder where the command is given."""
    (tmp_path / "my_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)


def test_as_a_command(task, capsys):
    command.main(["estimate", "my_task:make", "--after=5", "--batch_sizes=8", "--examples=256"])
    assert "after 5 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["my_task"], "a function is named module:function; got 'my_task'"),
        (["my_tusk:make"], "there is no my_tusk:make: No module named"),
        (["my_task:mak"], "module my_task has no 'mak'; did you mean my_task:make?"),
        (["my_task:x"], "my_task:x must be a function; it is a ndarray"),
        (["my_task:alone"], "my_task:alone must return (model, data)"),
        (["my_task:with_one"], "is called without arguments, and needs size"),
        (["my_task:empty"], "my_task:empty: source must be"),
        (["my_task:make", "--after=-3"], "must be a positive whole number; got '-3'"),
        (["my_task:make", "--after=a"], "must be a positive whole number; got 'a'"),
        (["my_task:make", "--examples=0"], "must be a positive whole number; got '0'"),
        (["my_task:make", "--examples=100"], "my_task:make: examples must be at least 256"),
    ],
)
def test_a_wrong_command_says_so_in_a_line(task, capsys, words, said):
    with pytest.raises(SystemExit):
        command.main(["estimate", *words])
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_report_says_so_in_a_line(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for words, said in (
        ([str(run), str(run)], "several folders go into one page; say where, --out report.html"),
        ([str(run)], "holds no metrics.jsonl"),
    ):
        with pytest.raises(SystemExit):
            command.main(["report", *words])
        assert said in capsys.readouterr().err.splitlines()[-1]
