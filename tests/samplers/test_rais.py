"""RAIS against its transcription: features, proposals, training of c and d while steps go on."""

import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.reference import rais as reference
from tf_importance import robust
from tf_importance.samplers import Visit, history_features

N, BATCH, SIZE = 30, 6, 48
PERIOD = SIZE // BATCH
NORMS = np.random.default_rng(0).gamma(1.0, 1.0, N) + 0.05
SIDE = np.random.default_rng(1).random([N, 2])
# Of example i at its visit v.
OF_VISITS = np.random.default_rng(2).random([N, 200, 2]).astype(np.float32)


def of_visits(indices, visits):
    places = tf.stack([indices, tf.cast(visits, tf.int64)], axis=1)
    return tf.gather_nd(tf.constant(OF_VISITS), places)


def run(sampler, steps, seed=0, start=0, memory=None):
    """Steps by the sampler's own draws; every example's norms by its visits, in `memory`."""
    draw = tf.function(lambda: sampler.draw(BATCH, seed), autograph=False)
    traced = tf.function(lambda i, w, s: sampler.update(Visit(i, w, s)), autograph=False)
    memory = [[] for _ in range(N)] if memory is None else memory
    sampler.begin()
    sampler.tend()
    draws = []
    for number in range(start, start + steps):
        indices, weights = (part.numpy() for part in draw())
        norms = NORMS[indices] * np.exp(0.3 * np.sin(number * (1 + indices)))
        traced(indices, weights, tf.constant(norms, tf.float32))
        for index in set(indices):
            memory[index].append(norms[list(indices).index(index)])
        sampler.tend()
        draws.append((indices, weights))
    return draws, memory


def test_what_a_function_of_visits_gives_is_checked_and_later_on_kept_out():
    with pytest.raises(ValueError, match=r"30 examples.* got shape \(5,\)"):
        tfi.samplers.RAIS(N, SIZE, features=lambda indices, visits: tf.ones([5]))
    with pytest.raises(ValueError, match="not negative.*from -1"):
        tfi.samplers.RAIS(N, SIZE, features=lambda indices, visits: -tf.ones_like(visits))

    def worse(indices, visits):
        return tf.where(visits > 2, float("nan"), 1.0)

    sampler = tfi.samplers.RAIS(N, SIZE, features=worse)
    draws, _ = run(sampler, 5 * PERIOD)
    assert sampler.uncertainty_set.numpy().any() and sampler.visits.numpy().max() > 2
    assert all(np.all(np.isfinite(weights)) for _, weights in draws)


@pytest.mark.parametrize("visits", [0, 1, 2, 3, 4, 5, 9, 16, 40])
def test_features_are_moving_averages_variances_and_deviations(visits):
    norms = np.random.default_rng(visits).gamma(1.0, 1.0, visits)
    history = tf.fill([1, history_features.LENGTH], history_features.EMPTY)
    for norm in norms:
        history = history_features.pushed(history, tf.constant([norm], tf.float32))
    found = history_features.of_history(history)[0]
    np.testing.assert_allclose(found, reference.features(norms)[:-1], rtol=1e-4, atol=1e-6)


def test_equal_norms_have_no_variance_however_large():
    history = tf.fill([1, history_features.LENGTH], 12345.678)
    assert np.all(history_features.of_history(history)[0, 5:].numpy() == 0)


def side_rows(side, visits) -> np.ndarray:
    """[N, m] of examples that have been visited so often."""
    if side is None:
        return np.zeros([N, 0])
    return OF_VISITS[np.arange(N), visits] if callable(side) else side


@pytest.mark.parametrize("side", [None, SIDE, of_visits], ids=["none", "fixed", "of visits"])
def test_the_proposal_is_proposition_4_1_of_all_that_was_seen(side):
    sampler = tfi.samplers.RAIS(N, SIZE, features=side)
    draws, memory = run(sampler, 5 * PERIOD)
    c, d = sampler.uncertainty_set.numpy().astype(np.float64)
    assert c.any(), "c and d must have been trained by now"
    visits = sampler.visits.numpy()
    np.testing.assert_array_equal(
        visits, np.bincount(np.concatenate([indices for indices, _ in draws]), minlength=N)
    )
    rows = side_rows(side, visits)
    features = np.stack([reference.features(*pair) for pair in zip(memory, rows)])
    p = reference.proposal(features, c, d)
    indices, weights = sampler.draw(500, 9)
    # Of all draws 1 % are uniform.
    drawn_by = 0.99 * p + 0.01 / N
    np.testing.assert_allclose(1 / (N * weights.numpy()), drawn_by[indices.numpy()], rtol=1e-4)
    np.testing.assert_allclose(sampler.features, features, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(sampler.feature_totals, features.sum(axis=0), rtol=1e-4)
    # Negative control: features of a visit less give another proposal.
    older = np.stack([reference.features(norms[:-1], row) for norms, row in zip(memory, rows)])
    wrong = reference.proposal(older, c, d)
    assert np.abs(wrong / p - 1).max() > 0.01


def test_a_feature_of_the_visit_is_learned_and_known_before_the_draw():
    """Norms that follow nothing but a number which is another at each visit."""
    sampler = tfi.samplers.RAIS(N, SIZE, features=of_visits)
    sampler.begin()
    draw = tf.function(lambda: sampler.draw(BATCH, 0), autograph=False)
    update = tf.function(sampler.update, autograph=False)
    for _ in range(6 * PERIOD):
        indices, weights = draw()
        coming = OF_VISITS[indices, sampler.visits.numpy()[indices]]
        update(Visit(indices, weights, tf.constant(coming[:, 0] + 0.01)))
        sampler.tend()
    indices, weights = sampler.draw(2000, 3)
    coming = OF_VISITS[np.arange(N), sampler.visits.numpy()][:, 0]
    p = np.full(N, np.nan)
    p[indices] = 1 / (N * weights.numpy())
    known = np.isfinite(p)
    assert np.corrcoef(p[known], coming[known])[0, 1] > 0.95
    # Negative control: the feature of the visit before says nothing.
    past = OF_VISITS[np.arange(N), sampler.visits.numpy() - 1][:, 0]
    assert abs(np.corrcoef(p[known], past[known])[0, 1]) < 0.6


def test_the_first_pass_has_every_example_once_and_weights_stay_1_until_c_and_d_are_there():
    sampler = tfi.samplers.RAIS(N, SIZE)
    draws, _ = run(sampler, 5 * PERIOD)
    first = np.concatenate([indices for indices, _ in draws[: N // BATCH]])
    assert sorted(first) == list(range(N))
    uniform = [bool(np.all(weights == 1)) for _, weights in draws]
    # n + |D| visits after 13 steps; the next multiple of the period is 16; effect 4 later.
    assert uniform.index(False) == 16 + PERIOD // 2
    assert not any(uniform[16 + PERIOD // 2 :])


def test_training_sees_the_last_visits_as_they_were_and_all_features():
    seen = []
    original = robust.train
    sampler = tfi.samplers.RAIS(N, SIZE)

    def spy(data, *rest):
        seen.append(data)
        return original(data, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust, "train", spy)
        draws, _ = run(sampler, 20)
    (data,) = seen
    memory = [[] for _ in range(N)]
    rows = []
    for number, (indices, weights) in enumerate(draws[:16]):
        norms = NORMS[indices] * np.exp(0.3 * np.sin(number * (1 + indices)))
        rows += [
            (*reference.features(memory[i]), norm, w) for i, norm, w in zip(indices, norms, weights)
        ]
        for index in set(indices):
            memory[index].append(norms[list(indices).index(index)])
    expected = np.array(rows[-SIZE:])
    np.testing.assert_allclose(data.features, expected[:, :-2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data.norms, expected[:, -2], rtol=1e-5)
    np.testing.assert_allclose(data.weights, expected[:, -1])
    means = np.mean([reference.features(norms) for norms in memory], axis=0)
    np.testing.assert_allclose(data.mean_features, means, rtol=1e-4)


def test_mean_features_do_not_drift_while_norms_fall_by_orders_of_magnitude():
    """Variances fall with the square: errors of the first of them would outweigh the last."""
    seen = []
    original = robust.train
    sampler = tfi.samplers.RAIS(N, SIZE)

    def spy(data, *rest):
        seen.append(data.mean_features)
        return original(data, *rest)

    batches = np.random.default_rng(0).integers(N, size=(300, BATCH))
    update = tf.function(sampler.update, autograph=False)
    memory = [[] for _ in range(N)]
    expected = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust, "train", spy)
        for step, batch in enumerate(batches):
            norms = (NORMS[batch] * 10.0 ** (-5 * step / len(batches))).astype(np.float32)
            update(Visit(tf.constant(batch), tf.ones([BATCH]), tf.constant(norms)))
            for index in set(batch):
                memory[index].append(norms[list(batch).index(index)])
            begun = int(sampler.training_visits.numpy())
            sampler.tend()
            if int(sampler.training_visits.numpy()) not in (begun, -1):
                expected.append(np.mean([reference.features(norms) for norms in memory], axis=0))
        sampler.end()
    assert len(seen) == len(expected) > 20
    np.testing.assert_allclose(seen, expected, rtol=1e-3)


def test_steps_go_on_while_c_and_d_are_trained_and_its_speed_changes_nothing(monkeypatch):
    draws = []
    original = robust.train
    for seconds in (0.0, 0.2):
        threads = set()

        def slow(*arguments, seconds=seconds, threads=threads):
            threads.add(threading.current_thread())
            time.sleep(seconds)
            return original(*arguments)

        monkeypatch.setattr(robust, "train", slow)
        draws.append(run(tfi.samplers.RAIS(N, SIZE), 4 * PERIOD)[0])
        assert threads and threading.main_thread() not in threads
    for mine, theirs in zip(*draws):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


@pytest.mark.parametrize("stop", [3, 16, 18, 20])
def test_restored_at_any_step_it_goes_on_bit_for_bit(stop, tmp_path):
    """Before, in the midst of and after a training of c and d."""
    whole, _ = run(tfi.samplers.RAIS(N, SIZE), 34)
    sampler = tfi.samplers.RAIS(N, SIZE)
    run(sampler, stop)
    path = tf.train.Checkpoint(sampler=sampler).save(str(tmp_path / "at"))
    other = tfi.samplers.RAIS(N, SIZE)
    tf.train.Checkpoint(sampler=other).restore(path).assert_consumed()
    rest, _ = run(other, 34 - stop, start=stop)
    for mine, theirs in zip(rest, whole[stop:]):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


def test_an_error_in_the_thread_reaches_the_training():
    def broken(*_):
        raise ArithmeticError("singular")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust, "train", broken)
        with pytest.raises(ArithmeticError, match="singular"):
            run(tfi.samplers.RAIS(N, SIZE), 30)


def test_outliers_are_scaled_for_one_step_and_remembered_as_they_were():
    sampler = tfi.samplers.RAIS(N, SIZE, outlier_threshold=9.0)
    _, memory = run(sampler, 5 * PERIOD)
    c, d = sampler.uncertainty_set.numpy().astype(np.float64)
    features = np.stack([reference.features(norms) for norms in memory])
    indices, norms = np.arange(4), np.array([1.0, 1e3, 1.0, 0.0])
    scales = sampler.update(
        Visit(tf.constant(indices), tf.ones([4]), tf.constant(norms, tf.float32))
    ).numpy()
    surprise = (features[:4] @ c - norms * scales) ** 2 / (features[:4] @ d)
    assert scales[1] < 1 and surprise[1] == pytest.approx(9.0, rel=1e-3)
    assert float(sampler.history[1, 0]) == 1e3
    assert float(sampler.outliers) >= 0.25


def test_the_draw_stays_in_reach_of_examples_that_look_finished():
    sampler = tfi.samplers.RAIS(N, SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "NORMS", np.where(np.arange(N) < 3, 0.0, NORMS))
        run(sampler, 8 * PERIOD)
    indices, weights = (part.numpy() for part in sampler.draw(200_000, 1))
    assert {0, 1, 2} <= set(indices)
    assert weights.max() < 3000


@pytest.mark.parametrize(
    "num_examples, size", [(100, 5_000), (3_000, 9_000), (60_000, 20_000)], ids=str
)
def test_what_c_and_d_are_trained_on_by_default(num_examples, size):
    assert tfi.samplers.RAIS(num_examples).term == num_examples + 2 * size
