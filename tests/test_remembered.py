"""Memory under a switch: what is drawn, remembered, predicted and decided, and that it resumes."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import fresh, gain, marks, observed, plans, switches
from tf_importance.samplers.switched import AT_ONCE
from tf_importance.scorers import forward
from tf_importance.switches import costs, trial

L = keras.layers
B, b, N = 24, 8, 256
LOSS = "sparse_categorical_crossentropy"
PLANS = plans.remembered(b, B, 8)


def compiled(rate=0.2, size=64, sampler=None, scorer=tfi.scorers.upper_bound, **options):
    net = keras.Sequential([keras.Input((2,)), L.Dense(8, "tanh"), L.Dense(4, "softmax")])
    model = tfi.ISModel(net, scorer=scorer)
    sampler = sampler or tfi.samplers.RAIS(N, training_set_size=size)
    rate = tfi.schedules.GainAdapted(rate)
    model.compile(keras.optimizers.SGD(rate), LOSS, sampler=sampler, **options)
    return model


def batches(model, points, switch=None, presample_size=B, seed=0, **kwargs):
    switch = switch or switches.Gain(step_seconds=1.0, scoring_seconds=1.0)
    return tfi.history_sample(
        points, model.sampler, b, presample_size=presample_size, switch=switch, model=model,
        seed=seed, **kwargs,
    ).repeat()  # fmt: skip


@pytest.fixture
def points(blobs):
    return tuple(part[:N] for part in blobs)


def forced(switch, plan: int):
    """The switch, deciding for one plan always."""
    switch.choose = lambda setting: tf.constant(plan)
    return switch


@pytest.mark.slow
@pytest.mark.parametrize("presample_size", [B, None])
def test_it_trains_and_uses_memory_where_that_pays(presample_size, points):
    keras.utils.set_random_seed(0)
    model, switch = compiled(0.5), switches.Gain(step_seconds=1.0, scoring_seconds=0.8)
    before = model.evaluate(*points, verbose=0)
    train = batches(model, points, switch, presample_size)
    logs = model.fit(train, steps_per_epoch=400, epochs=2, verbose=0).history
    assert model.evaluate(*points, verbose=0) < 0.7 * before
    assert int(switch.plan) > 0 and logs["importance"][1] > 0.5 and logs["gain"][1] > 1
    assert int(model.sampler.steps) == 800
    assert model.sampler.uncertainty_set.numpy().any()


@pytest.mark.slow
def test_equal_norms_are_trained_on_uniformly(points):
    """The guard: ±1 regression of a constant; memory costs 1 ms in 1,000 and is not used."""
    net = keras.Sequential([keras.Input((2,)), L.Dense(1, kernel_initializer="zeros")])
    model, sampler = tfi.ISModel(net), tfi.samplers.RAIS(N, training_set_size=64)
    schedule = tfi.schedules.GainAdapted(1e-6)
    model.compile(keras.optimizers.SGD(schedule), "mse", sampler=sampler)
    x = np.zeros_like(points[0])
    y = np.where(np.arange(N) % 2, 1.0, -1.0).astype(np.float32)
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=1e-3)
    logs = model.fit(batches(model, (x, y), switch), steps_per_epoch=400, verbose=0).history
    assert logs["importance"] == [0.0] and logs["gain"] == [1.0]
    assert not sampler.visits.numpy().any(), "there is nothing to remember it for"


def test_uniform_batches_are_passes_over_the_data(points):
    model = compiled()
    train = batches(model, points, forced(switches.Gain(), 0), None)
    told = [drawn for _, _, drawn in train.take(2 * N // b)]
    indices = np.concatenate([drawn["index"] for drawn in told])
    for one_pass in (indices[:N], indices[N:]):
        assert sorted(one_pass) == list(range(N))
    assert not np.array_equal(indices[:N], indices[N:])
    assert all(np.all(drawn["weight"] == 1) for drawn in told)


def take_up_all(model) -> None:
    """What the next block would be planned with: a dataset goes on, and nothing waits for it."""
    for dataset in model.sampler.datasets:
        dataset._learn(int(model.sampler.steps), int(model.sampler.journal.batch_size))


class Watch(keras.callbacks.Callback):
    """What was decided for each group: U uniform, L uniform and remembered, M memory.

    Of a row of M some are uniform, to be compared with.
    """

    def __init__(self, switch) -> None:
        super().__init__()
        self.switch, self.seen = switch, ""

    def on_train_batch_end(self, batch, logs=None) -> None:
        state = self.switch.decisions.decision
        if batch % AT_ONCE == 0:
            uniform = "L" if bool(state.remember) else "U"
            self.seen += uniform if int(self.switch.plan) == int(state.plan) == 0 else "M"


def promising(switch, taken: int):
    """The switch for which memory would pay, and that takes a plan unless another is held."""
    switch.worth_a_trial = lambda setting, plan, ratio: tf.constant(True)
    switch._best = lambda speeds, uniform, current: tf.constant(taken)
    return switch


def decided(points, groups: int, switch, *callbacks) -> tuple[str, tfi.samplers.Sampler]:
    """What was decided for so many groups, and the sampler."""
    model, watch = compiled(1e-6), Watch(switch)
    assert model.sampler.term == 6 * AT_ONCE * b
    train = batches(model, points, switch, None)
    model.fit(train, steps_per_epoch=groups * AT_ONCE, verbose=0, callbacks=[watch, *callbacks])
    return watch.seen, model.sampler


@pytest.mark.slow
def test_memory_learns_for_a_term_is_tried_out_and_rests_longer_each_time(points, monkeypatch):
    monkeypatch.setattr(trial, "_RISING", 1e9)
    switch = promising(switches.Gain(step_seconds=1.0, scoring_seconds=1.0), 0)
    seen, sampler = decided(points, 152, switch)
    tried = "L" * 6 + "M" * 38
    assert seen == tried + "U" * 6 + tried + "U" * 12 + tried + "U" * 2
    told = AT_ONCE * b * (len(seen) - seen.count("U"))
    assert sampler.visits.numpy().sum() == int(sampler.recent.count) == told


@pytest.mark.slow
def test_a_trial_goes_on_while_the_gain_rises(points, monkeypatch):
    monkeypatch.setattr(trial, "_RISING", 0.0)
    switch = promising(switches.Gain(step_seconds=1.0, scoring_seconds=1.0), 0)
    seen, _ = decided(points, 125, switch)
    assert seen == "L" * 6 + "M" * 19 * 6 + "U" * 5


@pytest.mark.slow
def test_what_a_trial_has_shown_to_pay_stays(points, monkeypatch):
    """And falls back to uniform batches after it, with the first pause once more."""
    monkeypatch.setattr(trial, "_RISING", 1e9)
    switch = promising(switches.Gain(step_seconds=1.0, scoring_seconds=1.0), 0)
    dropped = tf.Variable(False)
    switch._best = lambda speeds, uniform, current: tf.where(dropped, 0, current)

    class Drop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            dropped.assign(batch == 61 * AT_ONCE - 1)

    seen, _ = decided(points, 78, switch, Drop())
    assert seen[:61] == "L" * 6 + "M" * 55, "the trial is over after 44"
    assert seen[61:] == "U" * 6 + "L" * 6 + "M" * 5


@pytest.mark.slow
def test_memory_that_cannot_pay_is_told_nothing(points):
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=1.0)
    switch.worth_a_trial = lambda setting, plan, ratio: tf.constant(False)
    switch._best = lambda speeds, uniform, current: tf.constant(0)
    seen, sampler = decided(points, 40, switch)
    assert seen == "U" * 40 and not sampler.visits.numpy().any()


def test_a_trial_is_worth_it_near_uniform_speed(points):
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=8.0)
    batches(compiled(1e-6), points, switch)
    setting = types.SimpleNamespace(plans=PLANS.plans, batch_size=b, group_size=PLANS.group_size)

    def found(plan: int, ratio: float) -> bool:
        return bool(switch.worth_a_trial(setting, plan, tf.constant(ratio)))

    # Rescoring adds 8 seconds to 8 steps of 1; memory alone adds none, and has to gain a tenth.
    assert not found(2, 1.45) and found(2, 1.55)
    assert not found(1, 1.09) and found(1, 1.11)


@pytest.mark.parametrize(
    "extra, left, affordable", [(0.0, 0, True), (0.5, 1_519, False), (0.5, 1_520, True)]
)
def test_a_trial_is_cheap_beside_what_is_left(extra, left, affordable):
    """Two stretches of 19 groups of 8 batches: 304 steps; a tenth of what is left."""
    found = trial.is_affordable(tf.constant(extra), tf.constant(left, tf.int64), 4_800, 32, 256)
    assert bool(found) == affordable


@pytest.mark.parametrize("compiled_with_it", [True, False])
def test_fit_says_when_the_training_ends(points, compiled_with_it):
    """To the sampler that draws, whichever the model is compiled with."""
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=1.0, memory_seconds=8e9)
    switch.worth_a_trial = lambda setting, plan, ratio: tf.constant(True)
    model = compiled(1e-6)
    train = batches(model, points, switch, None)
    if compiled_with_it:
        drawing = next(iter(model.sampler.datasets))._sampler
        model.compile("sgd", model.loss, sampler=drawing)
    model.fit(train, steps_per_epoch=8, epochs=3, verbose=0)
    assert int(switch.decisions.end) == 24
    model.fit(train, steps_per_epoch=8, initial_epoch=3, epochs=5, verbose=0)
    assert int(switch.decisions.end) == 24 + 16
    assert not bool(switch.decisions.trial.learning), "a trial costs more than that"


def assert_resumed_alike(whole, switch, saved, made, steps: int) -> None:
    """From the checkpoint, so many steps more lead to what the whole run has led to."""
    resumed, its_switch, train = made()
    if hasattr(resumed.optimizer, "build"):
        resumed.optimizer.build(resumed.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer)
    checkpoint.restore(saved).assert_existing_objects_matched()
    resumed.fit(train, steps_per_epoch=steps, verbose=0)
    pairs = zip(
        [*whole.net.variables, *whole.sampler.variables, *switch.variables],
        [*resumed.net.variables, *resumed.sampler.variables, *its_switch.variables],
    )
    for mine, theirs in pairs:
        np.testing.assert_array_equal(tf.convert_to_tensor(mine), tf.convert_to_tensor(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [32, 104, 376], ids=["learning", "trial", "rest"])
def test_killed_about_a_trial_it_goes_on_with_it(stop, points, monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "_RISING", 1e9)

    def made():
        keras.utils.set_random_seed(0)
        model = compiled(0.1)
        model(tf.zeros([1, 2]))
        switch = promising(switches.Gain(step_seconds=1.0, scoring_seconds=1.0), 0)
        return model, switch, batches(model, points, switch, None, seed=7)

    whole, switch, train = made()
    whole.fit(train, steps_per_epoch=stop, verbose=0)
    state = switch.decisions.trial
    phase = [bool(state.learning), int(switch.held) > 0, int(state.until) > 0]
    assert phase == [stop == 32, stop == 104, stop == 376]
    saved = tf.train.Checkpoint(model=whole, optimizer=whole.optimizer).save(str(tmp_path / "at"))
    whole.fit(train, steps_per_epoch=424 - stop, verbose=0)
    assert_resumed_alike(whole, switch, saved, made, 424 - stop)


def test_uniform_steps_are_timed_without_what_memory_is_told(points):
    switch, model = switches.Gain(), compiled(1e-6)
    train = batches(model, points, switch, None)
    switch.decisions.trial.learning.assign(True)
    rows = tf.stack([told["row"][0] for _, _, told in train.take(15 * AT_ONCE)])[::AT_ONCE]
    groups = [kind > 0 for kind in model.sampler.journal.plans(rows, b).kinds]
    # Warm up, time uniform steps, then memory.
    assert groups == [True] * 5 + [False] * 5 + [True] * 5
    assert int(switch.costs.counts[0]) == 4, "but for the first of the row, each by the next one"


@pytest.mark.parametrize("warmed_up_by", [0, 1])
def test_all_that_is_not_in_use_is_timed_anew(points, warmed_up_by):
    switch = switches.Gain()
    batches(compiled(1e-6), points, switch)
    setting = types.SimpleNamespace(
        plans=plans.remembered(b, B, AT_ONCE).plans, warmed_up_by=warmed_up_by
    )

    def timed(best: int, numbers) -> list[int]:
        of = [switch._probed(setting, tf.constant(n, tf.int64), tf.constant(best)) for n in numbers]
        return [int(plan) for plan in of]

    # Strata are drawn by while nothing is timed yet.
    assert timed(2, range(21)) == [warmed_up_by] * 5 + [0] * 5 + [1] * 5 + [2] * 6
    for start in (64, 256):
        assert timed(0, range(start - 1, start + 11)) == [0] + [1] * 5 + [2] * 5 + [0]
        assert timed(2, range(start - 1, start + 11)) == [2] + [0] * 5 + [1] * 5 + [2]
    assert timed(0, range(1018, 1025)) == [0] + [1] * 5 + [0]
    assert timed(0, range(2042, 2049)) == [0] + [2] * 5 + [0]


@pytest.mark.parametrize("plan", [1, 2], ids=["memory", "rescored"])
@pytest.mark.slow
def test_what_memory_is_told_of_what_it_has_drawn(plan, points):
    model = compiled(1e-6)
    train = batches(model, points, forced(switches.Gain(), plan))
    model.fit(train, steps_per_epoch=100, verbose=0)
    size = (b, B)[plan - 1]
    take_up_all(model)
    # Two of the first groups are uniform, to be compared with, and told as well.
    assert int(model.sampler.recent.count) == 100 * size - 2 * AT_ONCE * (size - b)
    _, _, drawn = next(iter(train))
    assert drawn["weight"].shape == [size] and np.ptp(drawn["weight"].numpy()) > 0
    np.testing.assert_array_equal(drawn["memory"], drawn["weight"])
    # One of 8 or four of 24 are those next in a pass.
    share = (1 / 8, 4 / 24)[plan - 1]
    proposed = share + (1 - share) / model.sampler.weights_of(drawn["index"])
    np.testing.assert_allclose(drawn["weight"], 1 / proposed, rtol=1e-4)


@pytest.mark.slow
def test_the_mixture_of_memory_and_a_pass_is_unbiased(points):
    """z-test of Σ w over 3,000 batches of each example; memory's own weights must fail it."""
    model = compiled(1.0, size=512)
    train = batches(model, points, forced(switches.Gain(), 1), None)
    model.fit(train, steps_per_epoch=600, verbose=0)
    # Nothing is remembered of what is only looked at.
    told = [drawn for _, _, drawn in train.take(3000)]
    indices = np.stack([drawn["index"] for drawn in told])
    weights = np.stack([drawn["weight"] for drawn in told]).astype(np.float64)
    assert weights.max() <= 8, "one of the 8 is of a pass"
    own = model.sampler.weights_of(indices.reshape(-1)).numpy().reshape(indices.shape)
    assert own.max() > weights.max()

    def farthest(weights) -> float:
        sums = np.zeros([3000, N])
        np.add.at(sums, (np.arange(3000)[:, np.newaxis], indices), weights)
        means = sums.mean(axis=0) * N / b
        return np.abs((means - 1) / (sums.std(axis=0) * N / b / np.sqrt(3000))).max()

    assert farthest(weights) < 4.5
    assert farthest(own) > 6


def test_weights_of_any_example_are_those_it_would_be_drawn_with(points):
    model = compiled(1e-3)
    np.testing.assert_array_equal(model.sampler.weights_of(tf.range(5)), np.ones(5))
    train = batches(model, points, forced(switches.Gain(), 1), None)
    model.fit(train, steps_per_epoch=120, verbose=0)
    weights = model.sampler.weights_of(tf.range(N)).numpy()
    assert np.sum(1 / (N * weights)) == pytest.approx(1, rel=1e-4) and np.ptp(weights) > 0.1
    drawn = model.sampler.draw(2000, 5)
    np.testing.assert_allclose(weights[drawn.indices], drawn.weights, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [43, 120])
def test_killed_and_resumed_it_goes_on_bit_for_bit(stop, points, tmp_path):
    """Decisions, draws, memory and parameters."""

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == stop - 1:
                checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.model.optimizer)
                self.path = checkpoint.save(str(tmp_path / "at"))

    def made():
        keras.utils.set_random_seed(0)
        model = compiled(0.5)
        model(tf.zeros([1, 2]))
        switch = switches.Gain(step_seconds=1.0, scoring_seconds=0.1)
        return model, switch, batches(model, points, switch, seed=7)

    (whole, switch, train), save = made(), Save()
    whole.fit(train, steps_per_epoch=160, verbose=0, callbacks=[save])
    assert_resumed_alike(whole, switch, save.path, made, 160 - stop)
    assert int(switch.plan) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, plan",
    [
        ({"jit_compile": True}, 2),
        ({"steps_per_execution": 4}, 0),
        ({"steps_per_execution": 4}, 2),
        ({"run_eagerly": True}, 1),
    ],
    ids=["xla, rescored", "four at once, uniform", "four at once, rescored", "eagerly, memory"],
)
def test_options_of_compile(options, plan, points):
    model, switch = compiled(0.1, **options), forced(switches.Gain(), plan)
    train = batches(model, points, switch, seed=None)
    switch.decisions.trial.learning.assign(True)
    model.fit(train, steps_per_epoch=12, verbose=0)
    assert int(model.sampler.steps) == 12
    take_up_all(model)
    # Half of the steps behind the first group are uniform, to be compared with.
    assert int(model.sampler.recent.count) == (8 * B + 4 * b if plan == 2 else 12 * b)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [1, 2], ids=["memory", "rescored"])
def test_xla_compiles_scorers_with_a_pass_of_their_own(plan, points):
    model = compiled(0.1, scorer=tfi.scorers.gradient_norm, jit_compile=True)
    train = batches(model, points, forced(switches.Gain(), plan), seed=None)
    model.fit(train, steps_per_epoch=6, verbose=0)
    take_up_all(model)
    assert int(model.sampler.recent.count) == 6 * (B if plan == 2 else b)


# The gain ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def population():
    """Gradients [n, d], scores that know them roughly, and a memory that knows them less."""
    rng = np.random.default_rng(0)
    sizes = np.exp(1.2 * rng.normal(size=(2000, 1)))
    gradients = rng.normal(size=(2000, 6))
    gradients *= sizes / np.linalg.norm(gradients, axis=1, keepdims=True)
    gradients += 0.15
    norms = np.linalg.norm(gradients, axis=1)
    scores = norms * np.exp(0.2 * rng.normal(size=2000))
    remembered = norms * np.exp(0.6 * rng.normal(size=2000)) + 0.2 * norms.mean()
    p = remembered / remembered.sum()
    return gradients.astype(np.float32), scores.astype(np.float32), p.astype(np.float32)


def exact(population, smoothing, rate) -> gain.Moments:
    """The moments by their definitions in gain.py, all examples at once."""
    gradients, scores, p = (part.astype(np.float64) for part in population)
    squares, memory = (gradients**2).sum(axis=1), 1 / (len(p) * p)
    mean = (gradients.mean(axis=0) ** 2).sum()
    smooth = scores + smoothing * scores.mean() / memory
    score = (1 + smoothing) * scores.mean()
    counts = rate * memory * smooth / score
    fractions = counts - np.floor(counts)
    of_each = fractions * (1 - fractions) * squares / smooth**2
    rounded = score**2 * (p * of_each).sum() / rate
    return gain.Moments(
        mean, squares.mean(), score, (squares / smooth).mean(), [rounded], (memory * squares).mean()
    )


def factor(moments) -> float:
    """F = D/V."""
    return float(moments.rounding[0] / (moments.score * moments.square_per_score))


def as_they_are(scores, labels, weights):
    """A scorer of scores."""
    del labels, weights
    return fresh.Scores(scores, tf.zeros([0]))


def redrawn(population, smoothing, seed):
    """A pre-sample of 4 · 16 by p, and 16 of it by fresh scores: their mean gradient."""
    gradients, scores, p = map(tf.constant, population)
    first = tfi.proposals.multinomial(p, 64, tf.stack([seed, 1]))
    way = fresh.Way(as_they_are, smoothing, tfi.proposals.systematic, 16)
    of_first = tf.gather(scores, first.indices)
    scored = way.scored(fresh.Group(of_first, None, first.weights, first.weights))
    second = tfi.proposals.systematic(scored.proposal, 16, tf.stack([seed, 2]))
    indices = tf.gather(first.indices, second.indices)
    weights = tf.gather(first.weights, second.indices) * second.weights
    return indices, weights, tf.reduce_mean(
        weights[:, tf.newaxis] * tf.gather(gradients, indices), axis=0
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_variance_of_batches_redrawn_from_what_memory_drew(population, smoothing):
    """4,000 pre-samples; a uniform pre-sample's formula must be wrong."""
    run = tf.function(
        lambda: tf.map_fn(
            lambda seed: redrawn(population, smoothing, seed)[2],
            tf.range(4000),
            fn_output_signature=tf.float32,
        )
    )
    means = run().numpy().astype(np.float64)
    truth = population[0].mean(axis=0)
    assert np.abs(means.mean(axis=0) - truth).max() < 0.05, "unbiased"
    moments = exact(population, smoothing, 16 / 64)
    found = moments.mean_square + ((means - truth) ** 2).sum(axis=1).mean()
    of_memory = moments._replace(square=moments.remembered)
    predicted = float(gain.drawn_square(of_memory, 16, 16 / 64, factor(moments)))
    assert found == pytest.approx(predicted, rel=0.07)
    uniform = float(gain.drawn_square(moments, 16, 16 / 64, factor(moments)))
    assert abs(found / uniform - 1) > 0.1


@pytest.mark.slow
def test_redrawn_batches_estimate_the_moments(population):
    """z-test of U, Q, F, M and S over 4,000 batches, and A as the switch corrects it.

    U in the place of M must fail both.
    """
    gradients, scores, p = map(tf.constant, population)
    sampling = gain.Sampling((16 / 64,), 0.2)

    def one(seed):
        indices, weights, mean = redrawn(population, 0.2, seed)
        rows = tf.gather(gradients, indices)
        found = gain.batch_moments(
            tf.gather(scores, indices),
            tf.reduce_sum(rows**2, axis=1),
            weights,
            tf.reduce_sum(mean**2),
            sampling,
            tf.reduce_mean(scores),
            1 / (len(population[2]) * tf.gather(p, indices)),
        )
        moments = (found.square, found.square_per_score, found.rounding[0], found.remembered)
        return tf.stack([*moments, found.score, found.mean_square])

    run = tf.function(lambda: tf.map_fn(one, tf.range(4000), fn_output_signature=tf.float32))
    values = run().numpy().astype(np.float64)
    moments = exact(population, 0.2, 16 / 64)
    truth = [moments.square, moments.square_per_score, moments.rounding[0], moments.remembered]
    truth = np.array([*truth, moments.score])
    uncorrected = values[:, 5].mean()
    values = values[:, :5]
    errors = values.std(axis=0) / np.sqrt(len(values))
    distances = np.abs(values.mean(axis=0) - truth)
    # The weights of a pre-sample share its error, so that ratios of them lean a little.
    assert (distances < 4 * errors + 0.02 * np.abs(truth)).all()
    assert abs(values[:, 3].mean() - moments.square) > 8 * errors[3]

    def corrected(presamples) -> float:
        measured = moments._replace(mean_square=uncorrected, square=presamples)
        return gain.corrected_mean_square(measured, 16, 64, factor(moments))

    assert corrected(moments.remembered) == pytest.approx(moments.mean_square, rel=0.1)
    assert corrected(moments.square) != pytest.approx(moments.mean_square, rel=0.3)


class Told:
    """A model without a bound on its gain, and its meter."""

    def __init__(self, moments, sampling):
        self.now, self.sampling = moments, sampling

    def moments(self):
        return self.now, tf.constant(True)

    def observed(self):
        return observed.nothing().observed

    def largest_gain(self):
        return tf.constant(1e6)


def test_predictions_of_each_plan(population):
    moments = exact(population, 0.0, b / B)
    told = gain.Moments(*(tf.constant(part, tf.float32) for part in moments))
    model = Told(told, PLANS.sampling(0.0))
    setting = switches.Setting(model, PLANS.group_size, PLANS.plans, True, model)
    uniform = moments.mean_square + (moments.square - moments.mean_square) / b
    memory = moments.mean_square + (moments.remembered - moments.mean_square) / b
    second = moments.score * moments.square_per_score - moments.mean_square
    of_presample = b / B * (moments.remembered - moments.mean_square)
    of_draws = factor(moments) * second
    rescored = moments.mean_square + (of_presample + of_draws) / b
    found = setting.gains(tf.constant(0)).numpy()
    np.testing.assert_allclose(found, [1, uniform / memory, uniform / rescored], rtol=1e-5)
    assert 1 < found[1] < found[2]
    perfect = moments.mean_square + second / b
    largest = setting.largest_gain_of_memory().numpy()
    assert largest == pytest.approx(uniform / perfect, rel=1e-5) and largest > found[1]


@pytest.mark.slow
def test_training_measures_what_memory_is_worth(points):
    """R of a frozen net, against all examples' norms and the probabilities of the mixture."""
    keras.utils.set_random_seed(0)
    model = compiled(1e-12, size=2048)
    train = batches(model, points, forced(switches.Gain(), 1))
    model.fit(train, steps_per_epoch=1500, verbose=0)
    measured = marks.found(train).meter.moments()[0]
    x, y = map(tf.constant, points)

    @tf.function(autograph=False)
    def exact_squares():
        with forward.recorded() as passes:
            model(x, training=False)
        return tfi.scorers.last_layer.gradient_squares(
            model.net, model.objective, y, passes[-1], tf.ones([N])
        ).per_example

    squares = exact_squares()
    own = model.sampler.weights_of(tf.range(N))
    # One of 8 is of a pass.
    truth = float(tf.reduce_mean(squares / (1 / 8 + (7 / 8) / own)))
    assert float(measured.remembered) == pytest.approx(truth, rel=0.1)
    assert float(measured.square) == pytest.approx(float(tf.reduce_mean(squares)), rel=0.1)
    assert truth < 0.95 * float(tf.reduce_mean(squares))


# Costs and arguments -------------------------------------------------------------------------


def test_costs_of_memory_and_of_scores_are_apart():
    found, now = costs.StepCosts(PLANS.plans, PLANS.group_size), 10.0
    for plan, seconds in [(0, 8.0)] * 4 + [(1, 10.0)] * 4 + [(2, 16.0)] * 4:
        found.asked(tf.constant(now, tf.float64))
        found.chosen(tf.constant(plan))
        now += seconds
    found.asked(tf.constant(now, tf.float64))
    np.testing.assert_allclose(found.seconds(), [1.0, 1.25, 2.0])


def test_what_does_not_fit_is_refused(points):
    model = compiled()
    with pytest.raises(TypeError, match="tfi.switches.Gain, or None to use memory always"):
        batches(model, points, switches.Tau())
    with pytest.raises(ValueError, match="larger than batch_size.*got 8 and 8"):
        batches(model, points, presample_size=b)
    with pytest.raises(TypeError, match="model must be a tfi.ISModel; got None"):
        tfi.history_sample(points, model.sampler, b, switch=switches.Gain())
    with pytest.raises(ValueError, match="batches of 2 at least; got 1"):
        tfi.history_sample(points, model.sampler, 1, switch=switches.Gain(), model=model)
    other = compiled(sampler=tfi.samplers.Proportional(N))
    with pytest.raises(ValueError, match="remembered by the model's scorer.*got tfi.scorers.loss"):
        batches(model, points, scorer=tfi.scorers.loss)
    with pytest.raises(ValueError, match="as RAIS.. and Stratified.. do; got Proportional"):
        batches(other, points)
    model.compile(keras.optimizers.SGD(0.1), LOSS, sampler=model.sampler)
    with pytest.warns(UserWarning, match="follows the gain"):
        batches(model, points)


@pytest.mark.slow
def test_a_switch_measures_costs_without_a_seed(points):
    model, switch = compiled(), switches.Gain()
    model.fit(batches(model, points, switch, seed=None), steps_per_epoch=300, verbose=0)
    assert np.isfinite(switch.costs.seconds()).all()
