"""Reservoirs of a stream's strata: what is kept, what leaves, and that it is unbiased."""

import numpy as np
import pytest
import tensorflow as tf

from tf_importance import reservoirs

B, R = 16, 32
SPEC = (tf.TensorSpec([2]), tf.TensorSpec([], tf.int32))


class Stream:
    """Examples that say when they came, of strata with given parts."""

    def __init__(self, parts, seed=0):
        self.rng, self.parts, self.number = np.random.default_rng(seed), parts, 0
        self.came = {key: [] for key in parts}

    def group(self, size=B):
        keys, chances = list(self.parts), list(self.parts.values())
        strata = self.rng.choice(keys, size, p=chances)
        numbers = np.arange(self.number, self.number + size, dtype=np.int32)
        self.number += size
        for key, number in zip(strata, numbers):
            self.came[key].append(number)
        x = np.stack([numbers, strata], axis=1).astype(np.float32)
        return (tf.constant(x), tf.constant(numbers)), tf.constant(strata, tf.int64)


def kept(seed=0, capacity=R, batch_size=8):
    return reservoirs.Reservoirs(SPEC, capacity, batch_size, 0.1, seed)


def exchanged(boxes, stream, number, size=B):
    return boxes.exchange(*stream.group(size), tf.constant([number, 7]))


def test_what_leaves_is_among_the_latest_of_its_stratum():
    boxes, stream = kept(), Stream({5: 0.9, -3: 0.1})
    for number in range(60):
        given = exchanged(boxes, stream, number)
        x, numbers = (part.numpy() for part in given.examples)
        np.testing.assert_array_equal(x[:, 0], numbers)
        keys = boxes.keys.numpy()[given.strata]
        np.testing.assert_array_equal(x[:, 1], keys)
        for key, one in zip(keys, numbers):
            assert one in stream.came[key][-R:]
    assert boxes.keys.numpy().tolist() == [5, -3]


def test_weights_are_the_counted_prior_over_the_shares():
    boxes, stream = kept(), Stream({0: 0.8, 1: 0.2})
    for number in range(20):
        given = exchanged(boxes, stream, number)
    prior = np.array([len(stream.came[key]) for key in (0, 1)]) / stream.number
    shares = boxes.shares.numpy()
    np.testing.assert_allclose(given.weights, (prior / shares)[given.strata.numpy()], rtol=1e-5)
    assert shares.sum() == pytest.approx(1)
    assert float(boxes.rare_share) == pytest.approx(shares[1])
    assert shares[1] > prior[1], "the rarer one has more than its part"


@pytest.mark.parametrize("size", [16, 13, 5])
def test_each_batch_of_b_has_its_shares(size):
    boxes, stream = kept(batch_size=8), Stream({0: 0.5, 1: 0.5})
    for number in range(10):
        given = exchanged(boxes, stream, number, size)
        shares = boxes.shares.numpy()
        for first in range(0, size, 8):
            batch = given.strata.numpy()[first : first + 8]
            count = np.sum(batch == 1)
            expected = shares[1] * len(batch)
            assert np.floor(expected - 1e-4) <= count <= np.ceil(expected + 1e-4)


def test_what_leaves_is_unbiased_for_what_is_there():
    boxes, stream = kept(), Stream({0: 0.9, 1: 0.07, 2: 0.03})
    values = np.random.default_rng(1).gamma(1.0, size=100_000) + np.zeros(100_000)
    errors, plain = [], []
    for number in range(400):
        given = exchanged(boxes, stream, number)
        strata, numbers = given.strata.numpy(), given.examples[1].numpy()
        value = values[numbers] + 3 * boxes.keys.numpy()[strata]
        prior = boxes.came.numpy() / boxes.came.numpy().sum()
        present = [
            np.mean(values[stream.came[key][-R:]]) + 3 * key if stream.came[key] else 0.0
            for key in boxes.keys.numpy()[: int(boxes.count)]
        ]
        truth = np.dot(prior[: len(present)], present)
        errors.append(np.mean(given.weights.numpy() * value) - truth)
        plain.append(np.mean(value) - truth)
    spread = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors)) < 4.5 * spread
    # Negative control: without the weights.
    assert abs(np.mean(plain)) > 10 * spread


def test_all_that_is_kept_of_a_stratum_comes_out_evenly():
    boxes = kept(capacity=64)
    stream = Stream({0: 0.5, 1: 0.5})
    exchanged(boxes, stream, 0, 64)
    counts = np.zeros(64, int)
    # What comes in again and again is one example, of a third stratum.
    for number in range(400):
        x = tf.zeros([B, 2]), tf.fill([B], 1_000_000)
        given = boxes.exchange(x, tf.fill([B], tf.constant(9, tf.int64)), tf.constant([number, 1]))
        numbers = given.examples[1].numpy()
        np.add.at(counts, numbers[numbers < 64], 1)
    assert counts.min() > 0
    for key in (0, 1):
        mine = counts[stream.came[key]]
        assert mine.max() <= 2 * mine.mean() + 5


def test_strata_may_show_late_and_vanish(monkeypatch):
    monkeypatch.setattr(reservoirs, "_HORIZON", 500.0)
    boxes, stream = kept(), Stream({0: 1.0})
    for number in range(5):
        exchanged(boxes, stream, number)
    assert float(boxes.rare_share) == 1
    stream.parts, stream.came = {7: 0.5, 8: 0.5}, stream.came | {7: [], 8: []}
    weights = []
    for number in range(5, 400):
        given = exchanged(boxes, stream, number)
        weights.append(given.weights.numpy())
        assert np.all(np.isfinite(weights[-1]))
    assert sorted(boxes.keys.numpy()[: int(boxes.count)]) == [0, 7, 8]
    prior = boxes.came.numpy() / boxes.came.numpy().sum()
    assert prior[0] < 1e-3 and float(boxes.shares[0]) < 0.15
    assert np.mean(weights[-50:]) == pytest.approx(1, abs=0.05)


def test_memory_is_as_stated():
    boxes = kept()
    x = tf.zeros([40, 2]), tf.range(40)
    boxes.exchange(x, tf.range(40, dtype=tf.int64), tf.constant([0, 1]))
    first = boxes.rings[0].numpy().shape[0]
    assert first == 40 * R
    boxes.exchange(
        (tf.zeros([1, 2]), tf.range(1)), tf.constant([99], tf.int64), tf.constant([1, 1])
    )
    assert boxes.rings[0].numpy().shape[0] == 80 * R


def test_more_of_a_stratum_than_fit_come_at_once():
    boxes, stream = kept(capacity=16), Stream({0: 1.0})
    exchanged(boxes, stream, 0, 16)
    given = exchanged(boxes, stream, 1, 16)
    assert set(given.examples[1].numpy()) <= set(range(16, 32))


def test_shares_follow_what_steps_say_of_the_scores():
    boxes, stream = kept(), Stream({0: 0.9, 1: 0.1})
    for number in range(50):
        exchanged(boxes, stream, number)
        boxes.scores.take_up(tf.constant([[0, 0, 1, 1]]), tf.constant([[0.1, 0.1, 3.0, 3.0]]))
    rare = int(np.argmin(boxes.came))
    hot = float(boxes.shares[rare]) if rare == 1 else float(boxes.shares[1])
    for number in range(50, 350):
        exchanged(boxes, stream, number)
        boxes.scores.take_up(tf.constant([[0, 0, 1, 1]]), tf.constant([[0.1, 0.1, 0.01, 0.01]]))
    assert hot > 0.5 and float(boxes.shares[1]) < 0.15
