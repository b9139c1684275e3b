"""A cascade: of F examples B by a cheap first score, of these b by the real one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tests.reference import gain as exact_gain
from tests.reference import inclusion as reference
from tf_importance import cascade, fresh, gain, proposals

F, B, b = 24, 12, 4
RNG = np.random.default_rng(0)
# By what the first and the second score go; an example of the first score 0 has a second one.
FIRST = np.concatenate([[0.0, 30.0], np.exp(RNG.normal(size=F - 2))]).astype(np.float32)
SECOND = np.exp(RNG.normal(size=F)).astype(np.float32)


def looked_up(table, calls=None):
    """A scorer of one-hot examples."""

    def scorer(model, x, y):
        if calls is not None:
            calls.append(x.shape)
        return tf.linalg.matvec(x, tf.constant(table))

    return scorer


def one_hot_model(rate=1.0):
    """Its kernel holds, negative, the weights that each example was trained on with, over b."""
    net = keras.Sequential(
        [keras.Input((F,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(rate), lambda y, outputs: outputs[:, 0])
    return model


def sampled(model, **options):
    options = {"first_size": F, "first_scorer": looked_up(FIRST), "scorer": looked_up(SECOND)} | (
        options
    )
    options.setdefault("tau_threshold", "always" if "switch" not in options else None)
    options.setdefault("seed", 3)
    return tfi.importance_sample(model, b, B, **options)


def examples(count=F):
    data = np.eye(F, dtype=np.float32)[:count], np.zeros(count, np.float32)
    return tf.data.Dataset.from_tensor_slices(data)


def increments(model, dataset, steps):
    """[steps, F] the weights, over b, that each example was trained on with."""
    kernels = [np.zeros(F)]

    def note(batch, logs):
        kernels.append(-model.net.get_weights()[0][:, 0].astype(np.float64))

    noted = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    model.fit(dataset, steps_per_epoch=steps, verbose=0, callbacks=[noted])
    return np.diff(kernels, axis=0)


# The first draw ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, B, F - 1])
def test_inclusion_probabilities(size):
    chances = cascade.probabilities(tf.constant(FIRST), size).numpy()
    np.testing.assert_allclose(chances, reference.proportional(FIRST, size / F, 0.2), rtol=1e-9)
    assert chances.sum() == pytest.approx(size) and chances.max() <= 1
    counts = cascade.counts(tf.constant(chances), size).numpy()
    np.testing.assert_allclose(counts, size / (F * chances), rtol=1e-6)
    assert counts.max() <= 6.001, "whatever the score"


@pytest.mark.parametrize("worth", [np.zeros(F), np.full(F, np.nan), np.arange(F) - 1.0])
def test_unusable_scores_leave_all_alike(worth):
    chances = cascade.probabilities(tf.constant(worth, tf.float32), B).numpy()
    np.testing.assert_allclose(chances, B / F)


def chosen_at(chances, size, offset):
    """Positions whose part of the cumulative sum holds a point k + u."""
    ends = np.cumsum(chances) * size / np.sum(chances)
    return np.searchsorted(ends, np.arange(size) + offset, side="right")


def test_choices_against_numpy():
    """In any order, and never twice."""
    chances = cascade.probabilities(tf.constant(FIRST), B)
    orders = set()
    for number in range(40):
        seed = tf.constant([number, 7])
        offset = tf.random.stateless_uniform([], seed, dtype=tf.float64).numpy()
        found = cascade.chosen(chances, B, seed).numpy()
        np.testing.assert_array_equal(np.sort(found), chosen_at(chances.numpy(), B, offset))
        assert len(set(found)) == B
        orders.add(tuple(np.argsort(found)))
    assert len(orders) > 35


@pytest.mark.parametrize("sizes", [(3, 1), (5, 2), (4, 3)])
def test_both_draws_together_are_unbiased(sizes):
    """Exactly: over all offsets of the first draw, and all draws of the second, for F = 7.

    What an example is expected to count in a batch's mean is 1/F; without the weights of the first
    draw it is not.
    """
    presample, batch = sizes
    first, second = FIRST[:7], SECOND[:7]
    chances = cascade.probabilities(tf.constant(first), presample)
    counts = cascade.counts(chances, presample)
    # Between two of these the same examples come out.
    ends = np.cumsum(chances.numpy())
    breaks = np.unique(np.concatenate([[0.0, 1.0], ends % 1]))
    way = fresh.Way(lambda x, y, w: fresh.Scores(x, tf.zeros([0])), 0.1, None, batch)
    expected, unweighted = np.zeros(7), np.zeros(7)
    for low, high in zip(breaks[:-1], breaks[1:]):
        if high - low < 1e-12:
            continue
        here = chosen_at(chances.numpy(), presample, (low + high) / 2)
        group = fresh.Group(tf.constant(second), tf.zeros([7]), tf.ones([7]), tf.ones([7]))
        group = fresh.taken(group, tf.constant(here), counts)
        proposal = way.scored(group).proposal
        # Each of b draws takes j with probability g_j and counts w_j/b: b g_j w_j m_j/b.
        counted = proposal * proposals.importance_weights(proposal)
        expected[here] += (high - low) * (counted * group.weights).numpy()
        unweighted[here] += (high - low) * counted.numpy()
    np.testing.assert_allclose(expected, 1 / 7, rtol=1e-5)
    assert np.abs(unweighted * 7 - 1).max() > 0.2


# In a training ----------------------------------------------------------------------------


@pytest.mark.parametrize("score_in", ["pipeline", "step"])
def test_what_trains_is_unbiased(score_in):
    """By Monte Carlo, all the way through fit: each example counts 1/F; |z| < 4.5 for all.

    The same draws without their weights must fail.
    """
    steps = 800
    model = one_hot_model()
    found = increments(model, examples().repeat().apply(sampled(model, score_in=score_in)), steps)
    errors = found.std(axis=0, ddof=1) / np.sqrt(steps)
    assert np.abs((found.mean(axis=0) - 1 / F) / errors).max() < 4.5
    assert int(model.optimizer.iterations) == steps
    drawn = (found > 0).astype(float)
    unweighted = drawn / drawn.sum(axis=1, keepdims=True)
    errors = unweighted.std(axis=0, ddof=1) / np.sqrt(steps)
    assert np.abs((unweighted.mean(axis=0) - 1 / F) / errors).max() > 6


@pytest.mark.parametrize("score_in", quick(["pipeline", "step"], "step"))
def test_sample_weights_are_of_the_loss(score_in):
    """What an example counts is its own weight over F; one of 0 is never drawn."""
    own = np.linspace(0, 2, F).astype(np.float32)
    steps = 800
    model = one_hot_model()
    weighted = tf.data.Dataset.from_tensor_slices(own)
    data = tf.data.Dataset.zip((examples(), weighted)).map(lambda one, w: (*one, w)).repeat()
    found = increments(model, data.apply(sampled(model, score_in=score_in)), steps)
    errors = found.std(axis=0, ddof=1) / np.sqrt(steps) + 1e-9
    assert np.abs((found.mean(axis=0) - own / F) / errors).max() < 4.5
    assert found[:, 0].max() == 0


def test_both_places_of_scoring_draw_alike():
    """Same seed, same draws."""
    found = []
    for score_in in ("pipeline", "step"):
        model = one_hot_model()
        data = examples().repeat().apply(sampled(model, score_in=score_in))
        found.append(increments(model, data, 30))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_the_first_score_sees_all_and_the_second_what_is_left():
    firsts, seconds = [], []
    model = one_hot_model()
    options = {
        "first_scorer": looked_up(FIRST, firsts),
        "scorer": looked_up(SECOND, seconds),
        "score_in": "pipeline",
    }
    x, _, weights = next(iter(examples().apply(sampled(model, **options))))
    assert x.shape == (b, F) and weights.shape == (b,)
    assert set(map(tuple, firsts)) == {(F, F)} and set(map(tuple, seconds)) == {(B, F)}


@pytest.mark.parametrize("score_in", ["pipeline", "step"])
@pytest.mark.parametrize("spoilt", ["first", "second"])
def test_unusable_scores_lose_nothing(score_in, spoilt):
    """Groups whose first scores are none leave whole; of second ones, what was drawn first does."""
    nothing = looked_up(np.full(F, np.nan, np.float32))
    options = {"first_scorer": nothing} if spoilt == "first" else {"scorer": nothing}
    model = one_hot_model()
    left, groups = (F if spoilt == "first" else B) // b, 40
    data = examples().repeat(groups).apply(sampled(model, score_in=score_in, **options))
    found, logs = [], {}
    step = tf.function(lambda *batch: model.train_step(batch), reduce_retracing=True)
    before = np.zeros(F)
    for batch in data:
        logs = step(*batch)
        kernel = -model.net.get_weights()[0][:, 0].astype(np.float64)
        found.append(kernel - before)
        before = kernel
    assert len(found) == groups * left
    assert logs["fallbacks"] == groups and logs["importance"] == 0
    of_groups = np.array(found).reshape(groups, left, F).mean(axis=1)
    if spoilt == "first":
        np.testing.assert_allclose(of_groups, 1 / F, rtol=1e-4)
        return
    chances = cascade.probabilities(tf.constant(FIRST), B).numpy()
    counts = np.where(of_groups > 1e-9, 1 / (F * chances), 0)
    np.testing.assert_allclose(of_groups, counts, rtol=1e-3, atol=1e-6)
    errors = of_groups.std(axis=0, ddof=1) / np.sqrt(groups) + 1e-6
    assert np.abs((of_groups.mean(axis=0) - 1 / F) / errors).max() < 4.5


def test_a_short_group_leaves_uniformly():
    model = one_hot_model()
    with pytest.warns(UserWarning, match="nothing will be drawn"):
        data = examples(F - 5).apply(sampled(model, score_in="pipeline"))
    batches = list(data)
    total = sum(np.einsum("i,ij->j", batch[2], batch[0]) for batch in batches)
    assert len(batches) == -(-(F - 5) // b)
    assert (total[: F - 5] >= 1).all() and (total[F - 5 :] == 0).all()


def test_while_it_is_off_nothing_is_scored_and_every_example_comes():
    """The switch is the paper's, whose τ is that of the scorer's B."""
    model = one_hot_model()
    switch = tfi.switches.Tau("guaranteed")
    data = examples().repeat().apply(sampled(model, tau_threshold=None, switch=switch))
    with pytest.warns(UserWarning, match="begins above 2.00"):  # (B + 3b)/(3b)
        found = increments(model, data, 2 * F // b)
    np.testing.assert_allclose(found.sum(axis=0), 2 / b, rtol=1e-4)


# The gain ---------------------------------------------------------------------------------


def test_moments_know_what_the_first_draw_did():
    """Uniform batches under a Gain switch tell m; so do drawn ones."""
    model = one_hot_model(tfi.schedules.GainAdapted(0.01))
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1e-6)
    data = (
        examples()
        .repeat()
        .apply(sampled(model, switch=switch, score_in="pipeline", resampling="multinomial"))
    )
    chances = cascade.probabilities(tf.constant(FIRST), B).numpy()
    kinds = set()
    for x, _, told in data.take(60):
        which = x.numpy().argmax(axis=1)
        np.testing.assert_allclose(told["memory"], B / (F * chances[which]), rtol=1e-5)
        is_drawn = bool((told["weight"].numpy() != 1).any())
        kinds.add(is_drawn)
        if not is_drawn:
            np.testing.assert_allclose(told["weight"], 1)
    assert kinds == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("systematic", [False, True], ids=["multinomial", "systematic"])
def test_the_variance_of_cascaded_batches(systematic):
    """E‖g‖² as the gain has it, with M = E[m v²] for U; never less than it is.

    Draws of the first kind avoid each other, which the equation does not count.
    """
    rng = np.random.default_rng(1)
    count, wide, presample, batch = 4_000, 192, 48, 12
    gradients = rng.normal(size=(count, 6)).astype(np.float32)
    sizes = np.exp(1.2 * rng.normal(size=(count, 1))).astype(np.float32)
    gradients *= sizes / np.linalg.norm(gradients, axis=1, keepdims=True)
    gradients += 0.1
    norms = np.linalg.norm(gradients, axis=1)
    cheap = norms * np.exp(0.7 * rng.normal(size=count)).astype(np.float32)
    scores = norms * np.exp(0.2 * rng.normal(size=count)).astype(np.float32)
    resample = proposals.systematic if systematic else proposals.multinomial
    way = fresh.Way(lambda x, y, w: fresh.Scores(y, tf.zeros([0])), 0.0, resample, batch)
    rows = tf.constant(gradients)

    def one(number):
        seed = tf.stack([number, 1])
        group = tf.random.experimental.stateless_shuffle(tf.range(count), seed)[:wide]
        chances = cascade.probabilities(tf.gather(cheap, group), presample)
        ones = tf.ones([wide])
        whole = fresh.Group(tf.gather(rows, group), tf.gather(scores, group), ones, ones)
        picked = cascade.chosen(chances, presample, seed)
        left = fresh.taken(whole, picked, cascade.counts(chances, presample))
        drawn, _ = way.drawn(left, way.scored(left).proposal, seed + 5)
        return tf.reduce_mean(drawn.weights[0][:, tf.newaxis] * drawn.inputs[0], axis=0)

    run = tf.function(lambda: tf.map_fn(one, tf.range(6_000), fn_output_signature=tf.float32))
    means = run().numpy().astype(np.float64)
    found = (means**2).sum(axis=1).mean()
    # m of an example is that of its group; over groups about mean(s̃)/s̃.
    smooth = cheap + 0.2 * cheap.mean()
    memory = smooth.mean() / smooth
    exact = exact_gain.moments(gradients, scores)
    remembered = (memory * norms**2).mean()
    moments = gain.Moments(*map(tf.constant, exact), tf.zeros([0]))._replace(
        square=tf.constant(remembered, tf.float32)
    )
    rate = batch / presample
    rounding = 1.0
    if systematic:
        rounding = exact_gain.rounding(gradients, memory * scores, rate)
    predicted = float(gain.drawn_square(moments, batch, rate, rounding))
    uniform = float(gain.uniform_square(moments._replace(square=tf.constant(exact.square)), batch))
    assert 0.75 * predicted < found < 1.05 * predicted
    assert found < 0.6 * uniform


# What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"first_size": None}, "Give both or neither"),
        ({"first_scorer": None}, "Give both or neither"),
        ({"first_size": B}, "larger than presample_size"),
        ({"first_size": F + 1}, "multiple of batch_size"),
        ({"first_size": 0}, "first_size"),
        ({"strata": lambda x, y: y}, "another one"),
    ],
    ids=["no size", "no scorer", "no larger", "no multiple", "none", "strata"],
)
def test_half_a_cascade_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        sampled(one_hot_model(), **options)


@pytest.mark.parametrize(
    ("scorer", "error", "says"),
    [
        ("loss", TypeError, "callable"),
        (lambda model, x, y: x, ValueError, "one score for each example"),
        (lambda model, x, y: no_such_name, ValueError, "no_such_name"),  # noqa: F821
    ],
    ids=["a string", "shape", "an error"],
)
def test_a_first_scorer_that_is_none_is_refused(scorer, error, says):
    with pytest.raises(error, match=says):
        examples().apply(sampled(one_hot_model(), first_scorer=scorer))


def test_a_presample_of_a_batch_is_refused():
    model = one_hot_model()
    with pytest.raises(ValueError, match="nothing to choose"):
        tfi.importance_sample(model, b, b, first_size=F, first_scorer=looked_up(FIRST))
