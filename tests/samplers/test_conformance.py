"""Laws of every sampler, listed once: draws, weights, bad scores, saved and restored state."""

import uuid

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance.samplers import Visit

N, BATCH = 40, 8
RNG = np.random.default_rng(0)
SCORES = RNG.gamma(0.5, 1.0, N).astype(np.float32) + 0.02
X = RNG.normal(size=(N, 3)).astype(np.float32)
Y = RNG.integers(2, size=N).astype(np.int32)


def oracle():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = tfi.ISModel(net)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    sampler = tfi.samplers.Oracle(N, model, scored_at_once=16)
    sampler.attach(lambda indices: (tf.gather(X, indices), tf.gather(Y, indices)))
    # A net that prefers some examples clearly.
    net.set_weights([3 * np.random.default_rng(1).normal(size=(3, 2)), np.zeros(2)])
    return sampler


def master():
    """Its exchange takes place when a training begins; a worker has scored everything by then."""
    store = tfi.stores.MemoryStore(uuid.uuid4().hex)
    scored = oracle()
    # However long a test takes from one exchange to the next, it is no silence.
    sampler = tfi.distributed.Master(N, scored._model(), store, fallback_seconds=1e6)
    sampler.attach(scored.gather)

    def exchange():
        sampler.exchange.once()
        version, now = int(sampler.version.numpy()), store.now()
        for shard in range(store.layout.shards):
            examples = store.layout.examples(shard)
            scores = SCORES[examples.start : examples.stop]
            store.write([tfi.stores.Message(shard, scores, version, now)])
        sampler.exchange.once()

    sampler._start = exchange
    return sampler


SAMPLERS = {
    "uniform": lambda: tfi.samplers.Uniform(N),
    "proportional": lambda: tfi.samplers.Proportional(N, alpha=0.8),
    "rank_based": lambda: tfi.samplers.RankBased(N, 10.0, sort_every=1),
    "rais": lambda: tfi.samplers.RAIS(N, training_set_size=2 * N),
    "inclusion": lambda: tfi.samplers.Inclusion(N),
    "stratified": lambda: tfi.samplers.Stratified(SCORES > 1.0),
    "oracle": oracle,
    "master": master,
}
REMEMBER = ["proportional", "rank_based", "rais", "inclusion"]


def mixed(p):
    """With the share of all draws that is uniform."""
    return 0.99 * p + 0.01 / N


def step(sampler, indices, scores) -> tf.Tensor:
    """What a training step does with a sampler."""
    scales = sampler.update(Visit(indices, tf.ones_like(scores), scores))
    row = [tf.reduce_mean(scores**2), tf.reduce_mean(scores) ** 2, tf.constant(1.0)]
    sampler.gain.learn(tf.stack([row]))
    return scales


def visit(sampler, indices, scores, updates=None, step=step) -> np.ndarray:
    scales = step(sampler, tf.constant(indices, tf.int64), tf.constant(scores, tf.float32))
    if updates is not None:
        sampler.maintain(updates, None) if sampler.follows_training else sampler.tend()
    return scales.numpy()


_trained = {}


def trained(name, noise=0.2):
    """A sampler that has visited every example several times, with noisy scores."""
    sampler = SAMPLERS[name]()
    sampler.begin()
    if name not in _trained:
        rng = np.random.default_rng(1)
        traced = tf.function(step, autograph=False)
        for number in range(60):
            indices = (np.arange(BATCH) + number * BATCH) % N
            scores = SCORES[indices] * np.exp(noise * rng.normal(size=BATCH))
            visit(sampler, indices, scores, number + 1, traced)
        sampler.draw(BATCH, 3)
        _trained[name] = [variable.numpy() for variable in sampler.variables]
    for variable, value in zip(sampler.variables, _trained[name]):
        variable.assign(value)
    sampler.begin()
    return sampler


def drawn(sampler, batches, size=500, seed=0):
    """Indices and weights of many draws from an unchanging sampler."""
    draw = tf.function(lambda: sampler.draw(size, seed), autograph=False)
    parts = [draw() for _ in range(batches)]
    return tuple(np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_frequencies_match_the_probabilities_that_the_weights_state(name):
    sampler = trained(name)
    if name == "uniform":
        # Whole passes, from the first example of one.
        sampler.position.assign(0)
    indices, weights = drawn(sampler, 12, size=N if name == "uniform" else 2_000)
    p = np.full(N, np.nan)
    p[indices] = 1 / (N * weights.astype(np.float64))
    known = np.isfinite(p)
    assert p[known].sum() == pytest.approx(1, abs=2e-3)
    counts = np.bincount(indices, minlength=N)
    if name == "uniform":
        assert set(counts) == {12}, "every pass has every example once"
        return
    expected = np.where(known, p, 0) * len(indices)
    often = expected > 5
    scaled = expected[often] * counts[often].sum() / expected[often].sum()
    assert scipy.stats.chisquare(counts[often], scaled).pvalue > 1e-3
    # Negative control: they are not uniform.
    assert scipy.stats.chisquare(counts).pvalue < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_weighted_means_are_unbiased(name):
    sampler = trained(name)
    indices, weights = drawn(sampler, 40, size=N * 25)
    values = SCORES**2 + 1
    terms = values[indices] * weights
    error = terms.std() / np.sqrt(len(terms)) + 1e-9
    assert abs(terms.mean() - values.mean()) < 4.5 * error
    # Negative control: without the weights the mean leans towards the examples drawn often.
    if name in [*REMEMBER, "master"]:
        assert abs(values[indices].mean() - values.mean()) > 10 * error


@pytest.mark.parametrize("name", REMEMBER)
def test_larger_scores_are_drawn_more_often(name):
    sampler = trained(name)
    indices, _ = drawn(sampler, 10)
    counts = np.bincount(indices, minlength=N)
    assert scipy.stats.spearmanr(counts, SCORES).statistic > 0.8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("name", ["rais", "stratified", "inclusion"])
def test_a_bad_score_changes_nothing(name, bad):
    """In `Proportional` and `RankBased` it counts as an average one: test_any_scores.py."""
    sampler, other = trained(name), trained(name)
    scales = visit(sampler, range(BATCH), np.full(BATCH, bad))
    assert scales.tolist() == [1] * BATCH
    mine, theirs = drawn(sampler, 2, seed=5), drawn(other, 2, seed=5)
    np.testing.assert_array_equal(mine[0], theirs[0])
    np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-6)


@pytest.mark.parametrize("scores", quick(["zero", "equal", "nan", "huge", "tiny"], "nan", "huge"))
@pytest.mark.parametrize("name", SAMPLERS)
def test_degenerate_scores_never_corrupt_a_run(name, scores):
    values = {"zero": 0.0, "equal": 0.5, "nan": np.nan, "huge": 1e30, "tiny": 1e-30}
    sampler = SAMPLERS[name]()
    sampler.begin()
    traced = tf.function(step, autograph=False)
    for number in range(40):
        indices = (np.arange(BATCH) + number * BATCH) % N
        visit(sampler, indices, np.full(BATCH, values[scores]), number + 1, traced)
    indices, weights = drawn(sampler, 4)
    assert np.all((indices >= 0) & (indices < N)) and len(set(indices)) > N / 2
    assert np.all(np.isfinite(weights) & (weights > 0))
    assert np.isfinite(sampler.gain.ratio.numpy())


@pytest.mark.parametrize("name", REMEMBER)
def test_an_example_that_was_never_visited_stays_in_reach(name):
    sampler = SAMPLERS[name]()
    sampler.begin()
    traced = tf.function(step, autograph=False)
    for number in range(80):
        indices = 1 + (np.arange(BATCH) + number * BATCH) % (N - 1)
        visit(sampler, indices, np.ones(BATCH), number + 1, traced)
    indices, weights = drawn(sampler, 40, size=2000)
    assert 0 in indices
    assert np.all(np.isfinite(weights))


@pytest.mark.parametrize("name", quick(SAMPLERS, "rais", "inclusion", "stratified"))
def test_a_restored_sampler_goes_on_alike(name, tmp_path):
    sampler = trained(name)
    path = tf.train.Checkpoint(sampler=sampler).save(str(tmp_path / "at"))
    other = SAMPLERS[name]()
    tf.train.Checkpoint(sampler=other).restore(path).assert_consumed()
    other.begin()
    sampler.begin()
    draws = [tf.function(lambda s=s: s.draw(BATCH, 4), autograph=False) for s in (sampler, other)]
    steps = [tf.function(step, autograph=False) for _ in draws]
    for number in range(60, 64 if name == "oracle" else 100):
        batches = [draw() for draw in draws]
        np.testing.assert_array_equal(batches[0].indices, batches[1].indices)
        np.testing.assert_array_equal(batches[0].weights, batches[1].weights)
        indices = batches[0].indices.numpy()
        for each, traced in zip((sampler, other), steps):
            visit(each, indices, SCORES[indices] + 0.01 * number, number + 1, traced)


@pytest.mark.parametrize("name", ["uniform", "stratified", *REMEMBER])
def test_equal_seeds_draw_alike_and_others_not(name):
    batches = [trained(name).draw(N, seed).indices.numpy() for seed in (1, 1, 2)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert not np.array_equal(batches[0], batches[2])


@pytest.mark.parametrize("name", REMEMBER)
def test_an_index_out_of_range_is_refused(name):
    sampler = trained(name)
    with pytest.raises(tf.errors.InvalidArgumentError, match="40"):
        visit(sampler, [N, 0, 1, 2, 3, 4, 5, 6], np.ones(BATCH))


@pytest.mark.parametrize("name", REMEMBER)
def test_duplicates_in_a_batch_count_once_by_their_mean(name):
    sampler, other = trained(name), trained(name)
    visit(sampler, [5, 5, 6, 7], [1.0, 3.0, 1.0, 1.0])
    visit(other, [5, 6, 7], [2.0, 1.0, 1.0])
    mine, theirs = drawn(sampler, 2, seed=5), drawn(other, 2, seed=5)
    np.testing.assert_array_equal(mine[0], theirs[0])
    np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-5)


@pytest.mark.parametrize("size", [0, -3, 2.5, True])
@pytest.mark.parametrize("kind", [tfi.samplers.Uniform, tfi.samplers.Proportional])
def test_a_wrong_number_of_examples_is_refused(kind, size):
    with pytest.raises(ValueError, match="num_examples must be a positive integer; got"):
        kind(size)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: tfi.samplers.Proportional(N, alpha=-1), "alpha .* got -1"),
        (lambda: tfi.samplers.Proportional(N, beta=1.5), "beta .* got 1.5"),
        (lambda: tfi.samplers.Proportional(N, epsilon=0), "epsilon .* got 0"),
        (lambda: tfi.samplers.RankBased(N, 0.5), "selection_pressure .* got 0.5"),
        (lambda: tfi.samplers.RankBased(N, sort_every=0), "sort_every .* got 0"),
        (lambda: tfi.samplers.RankBased(N, recompute_every=-1), "recompute_every .* got -1"),
        (lambda: tfi.samplers.Inclusion(N, share=0), r"share .*\(0, 1\]; got 0"),
        (lambda: tfi.samplers.Inclusion(N, until=1.5), "until .* got 1.5"),
        (lambda: tfi.samplers.Inclusion(N, smoothing=0), "smoothing .* got 0"),
        (lambda: tfi.samplers.Inclusion(N, batches=0), "batches .* got 0"),
        (lambda: tfi.samplers.InfoBatch(N, pruned=1), r"pruned .*\[0, 1\); got 1"),
        (lambda: tfi.samplers.RAIS(N, training_set_size=0), "training_set_size .* got 0"),
        (lambda: tfi.samplers.RAIS(N, gain_smoothing=0), r"gain_smoothing .*\(0, 1\]; got 0"),
        (lambda: tfi.samplers.RAIS(N, outlier_threshold=-1), "outlier_threshold .* got -1"),
        (lambda: tfi.samplers.RAIS(N, features=np.ones(3)), r"40 examples.* got shape \(3,\)"),
        (lambda: tfi.samplers.RAIS(N, features=-np.ones(N)), "not negative.*from -1"),
        (lambda: tfi.samplers.RAIS(N, 20).check_batch_size(16), "20 for batches of 16"),
    ],
)
def test_bad_arguments_are_refused_with_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Of one sampler alone -----------------------------------------------------------------------


def test_proportional_is_schauls_equation_1():
    sampler = tfi.samplers.Proportional(N, alpha=0.5, epsilon=1e-3)
    visit(sampler, range(N), SCORES)
    indices, weights = drawn(sampler, 4)
    priorities = (SCORES.astype(np.float64) + 1e-3) ** 0.5
    p = mixed(priorities / priorities.sum())
    np.testing.assert_allclose(weights, 1 / (N * p[indices]), rtol=1e-5)


def test_an_unvisited_example_has_the_largest_priority():
    sampler = tfi.samplers.Proportional(N, alpha=1.0)
    visit(sampler, range(10), np.linspace(1, 50, 10))
    indices, weights = drawn(sampler, 20)
    unvisited = weights[indices >= 10]
    assert np.all(unvisited == weights.min())
    assert weights[indices == 9] == pytest.approx(unvisited[0], rel=1e-5)


@pytest.mark.slow
def test_annealed_beta_corrects_by_its_power_and_below_1_is_biased_as_documented():
    def sampler(beta):
        sampler = tfi.samplers.Proportional(N, alpha=1.0, beta=beta)
        visit(sampler, range(N), SCORES)
        return sampler

    schedule = keras.optimizers.schedules.PolynomialDecay(0.4, 1000, 1.0)
    indices, weights = drawn(sampler(schedule), 1, size=10_000)
    full = drawn(sampler(1.0), 1, size=10_000)[1]
    np.testing.assert_allclose(weights, full**0.4, rtol=1e-5)
    # E[w v] = mean((n p)^(1−β) v).
    p = mixed(SCORES / SCORES.sum())
    expected = np.mean((N * p) ** 0.6 * SCORES)
    terms = SCORES[indices] * weights
    assert abs(terms.mean() - expected) < 4.5 * terms.std() / 100
    assert abs(terms.mean() - SCORES.mean()) > 10 * terms.std() / 100


def test_normalized_weights_are_at_most_1():
    sampler = tfi.samplers.Proportional(N, normalize=True)
    visit(sampler, range(N), SCORES)
    assert float(tf.reduce_max(sampler.draw(BATCH, 0).weights)) == 1


@pytest.mark.parametrize("pressure", [1.0, 10.0, 1e4])
def test_rank_based_is_loshchilov_and_hutters_equation_3(pressure):
    sampler = tfi.samplers.RankBased(N, pressure, sort_every=1)
    visit(sampler, range(N), SCORES)
    sampler.draw(1, 0)
    indices, weights = drawn(sampler, 10)
    ranks = np.argsort(np.argsort(-SCORES, kind="stable"))
    p = np.exp(-np.log(pressure) / N) ** ranks
    p = mixed(p / p.sum())
    np.testing.assert_allclose(weights, 1 / (N * p[indices]), rtol=1e-5)


def test_rank_based_sorts_when_it_is_due():
    sampler = tfi.samplers.RankBased(N, 10.0, sort_every=3)
    visit(sampler, range(N), SCORES)
    best, first = np.argmax(SCORES), int(sampler.ranked[0])
    firsts = []
    for _ in range(4):
        sampler.draw(BATCH, 0)
        firsts.append(int(sampler.ranked[0]))
    assert firsts == [first, first, first, best]


def test_the_selection_pressure_falls_exponentially():
    pressure = tfi.samplers.selection_pressure(100.0, 1.0, 10)
    np.testing.assert_allclose([pressure(0), pressure(5), pressure(10)], [100, 10, 1], rtol=1e-4)
    sampler = tfi.samplers.RankBased(N, pressure)
    weights = [sampler.draw(50, 0).weights.numpy().max() for _ in range(12)]
    assert weights[0] > 3 and weights[-1] == pytest.approx(1, abs=1e-5)
