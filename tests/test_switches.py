"""What switches decide, by moments and costs that are given, and what they measure."""

import copy
import gc
import pickle
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import observed, plans, switches
from tf_importance.switches import costs

B, b = 64, 16
MENU = (plans.Plan(b), plans.Plan(b, 1, B))


def compiled(rate=None, loss="sparse_categorical_crossentropy", net=None):
    if net is None:
        net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, activation="softmax")])
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(rate or tfi.schedules.GainAdapted(0.1)), loss)
    return model


def examples(blobs):
    return tf.data.Dataset.from_tensor_slices(blobs).repeat().shuffle(512, seed=1)


class Told:
    """A model that only has τ, and its meter, which only has the moments of the gain."""

    def __init__(self, tau=1.0, moments=(0.0, 4.0, 1.0, 1.0), rounding=(0.7,), enough=True):
        self.tau = tf.Variable(tau)
        self.now = tf.Variable(moments)
        self.rounding = tf.constant(rounding)
        self.enough = tf.constant(enough)
        self.largest = tf.Variable(100.0)
        self.sampling = None

    def meter_of(self, sampling):
        self.sampling = sampling
        return self

    def moments(self):
        moments = tfi.gain.Moments(*tf.unstack(self.now), self.rounding)
        return moments._replace(rounding=self.rounding * moments.drawn_square), self.enough

    def observed(self):
        """Of drawing all was seen that is predicted of it, and more."""
        nothing = observed.nothing().observed
        return nothing._replace(
            drawn=tf.constant(100.0),
            comparisons=tf.constant(100.0),
            square=tf.constant(1e-6),
            of_uniform=tf.constant(1.0),
            ratio=tf.constant(1e6),
        )

    def largest_gain(self):
        return tf.convert_to_tensor(self.largest)


def setting_of(model, menu=MENU, group_size=B) -> switches.Setting:
    meter = model.meter_of(plans.Menu(group_size, menu).sampling(0.0))
    return switches.Setting(model, group_size, menu, systematic=True, meter=meter)


def choices(switch, model, number=1, menu=MENU, group_size=B):
    setting = setting_of(model, menu, group_size)
    switch.open(setting)
    choose = tf.function(lambda: switch.choose(setting))
    return [int(choose()) for _ in range(number)]


def test_always_and_never():
    assert choices(switches.Always(), Told()) == [1]
    assert choices(switches.Never(), Told(tau=100.0)) == [0]


def test_tau_has_its_threshold():
    model, switch = Told(), switches.Tau(2.0)
    seen = []
    for tau in (1.9, 2.1, 2.0, 1.9):
        model.tau.assign(tau)
        seen += choices(switch, model)
    assert seen == [0, 1, 0, 0]


def test_gain_draws_where_the_gain_is_worth_its_cost():
    """U/b = 4/16 against (U ρ + F V)/b = (1 + 0.7)/16: r = 4/1.7 = 2.35."""
    for cost, expected in ((2.0, 1), (2.2, 0), (2.5, 0)):
        switch = switches.Gain(step_seconds=1.0, scoring_seconds=cost - 1)
        assert choices(switch, Told()) == [expected]
    assert float(switch.speedup) == 1
    switch = switches.Gain(step_seconds=2.0, scoring_seconds=1.0)
    choices(switch, Told())
    assert float(switch.speedup) == pytest.approx(4 / 1.7 / 1.5, rel=1e-5)


@pytest.mark.parametrize("memory, rescored", [(0.0, 0.0), (3.2, 0.0), (3.2, 12.0), (0.0, 12.0)])
def test_drawing_by_memory_costs_what_it_is_said_to(memory, rescored):
    """Of 8 batches at once: uniform 1, memory 1 + m/8, rescored 1 + s/8."""
    menu = plans.remembered(16, 48, 8)
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=rescored, memory_seconds=memory)
    seconds = switch._seconds(setting_of(Told(), menu.plans, menu.group_size))
    np.testing.assert_allclose(seconds, [1.0, 1 + memory / 8, 1 + rescored / 8])


def test_gain_counts_what_the_learning_rate_can_follow():
    model = Told()
    model.largest.assign(1.5)
    assert choices(switches.Gain(step_seconds=1.0, scoring_seconds=0.3), model) == [1]
    assert choices(switches.Gain(step_seconds=1.0, scoring_seconds=0.4), model) == [0]


def test_gain_stays_where_it_is_until_another_plan_is_clearly_faster():
    """Cost 2: on from r = 2.2 upwards, and for three weighings at least; off below 2."""
    switch, model = switches.Gain(step_seconds=1.0, scoring_seconds=1.0), Told()
    seen = []
    for ratio in (2.1, 2.3, 2.1, 1.5, 2.01, 2.01, 1.99, 2.1):
        # r = 4/(1 + F V) with F = 0.7, V = Q.
        model.now.assign([0.0, 4.0, 1.0, (4 / ratio - 1) / 0.7])
        seen += choices(switch, model)
    assert seen == [0, 1, 1, 1, 1, 1, 0, 0]


def test_noise_that_does_not_limit_training_is_no_gain():
    """The same variances under a mean gradient that outweighs them."""
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=0.2)
    assert choices(switch, Told(moments=(3.9, 4.0, 1.0, 3.9))) == [0]


def test_nothing_is_decided_before_enough_is_known():
    free = switches.Gain(step_seconds=1.0, scoring_seconds=0.0)
    assert choices(free, Told(enough=False)) == [0]


def test_auto_takes_the_fastest_of_many_plans():
    menu = plans.menu(16, "auto")
    rates = [1 / 12, 1 / 6, 1 / 4, 1 / 3, 1 / 2]
    rounding = tuple(np.linspace(0.6, 0.2, len(rates)).astype(np.float32))
    model = Told(rounding=rounding)
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=4.0)
    setting = setting_of(model, menu.plans, menu.group_size)
    assert setting.meter.sampling.rates == pytest.approx(rates)
    index = choices(switch, model, 1, menu.plans, menu.group_size)[0]
    seconds = [1 + (4.0 / p.batches(192) if p.draws else 0) for p in menu.plans]
    speeds = setting.gains(tf.constant(0)).numpy() / seconds
    assert speeds[index] == pytest.approx(speeds.max()) and speeds[index] > 1.1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"step_seconds": 1.0}, "given together.*got 1.0, None and 0.0"),
        ({"step_seconds": 0.0, "scoring_seconds": 1.0}, "must be positive.*got 0.0"),
        ({"memory_seconds": 1.0}, "or none of them, and all are measured; got None, None and 1.0"),
        (
            {"step_seconds": 1.0, "scoring_seconds": 1.0, "memory_seconds": -1.0},
            "memory_seconds must be not negative; got -1.0",
        ),
        ({"hysteresis": 0.0}, "hysteresis must be positive; got 0.0"),
    ],
)
def test_wrong_arguments_of_gain(arguments, message):
    with pytest.raises(ValueError, match=message):
        switches.Gain(**arguments)


@pytest.mark.parametrize("bad", [-1.0, np.nan, True, "breakeven"])
def test_wrong_thresholds(bad):
    with pytest.raises(ValueError, match="threshold of τ must be.*got"):
        switches.Tau(bad)


def test_wrong_combinations_are_refused(blobs):
    model = compiled()
    with pytest.raises(ValueError, match="tau_threshold=2.0 is short for a switch"):
        tfi.importance_sample(model, switch=switches.Always(), tau_threshold=2.0)
    with pytest.raises(TypeError, match="one of tfi.switches; got 'gain'"):
        tfi.importance_sample(model, switch="gain")
    with pytest.raises(ValueError, match="give switch=tfi.switches.Gain"):
        tfi.importance_sample(model, presample_size="auto")
    with pytest.raises(ValueError, match="at most presample_size.*got 5 · 32 and 128"):
        tfi.importance_sample(model, 32, draws_per_presample=5)
    with pytest.raises(ValueError, match="smoothing must be finite.*got -0.1"):
        tfi.importance_sample(model, smoothing=-0.1)
    switch = switches.Gain()
    tfi.importance_sample(model, 16, 64, switch=switch)
    tfi.importance_sample(model, 16, 64, switch=switch)
    with pytest.raises(ValueError, match="measures one model and pipeline"):
        tfi.importance_sample(model, 16, 32, switch=switch)


def test_a_learning_rate_that_does_not_follow_is_warned_of():
    with pytest.warns(UserWarning, match="lower variance is not less time"):
        tfi.importance_sample(compiled(rate=0.1), switch=switches.Gain())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lower variance")
        tfi.importance_sample(compiled(), switch=switches.Gain())


# Costs ------------------------------------------------------------------------------------


def timed(menu, presample_size, sequence):
    """Costs after pre-samples of these plans that took these seconds."""
    found, now = costs.StepCosts(menu, presample_size), 100.0
    for plan, seconds in sequence:
        found.asked(tf.constant(now, tf.float64))
        found.chosen(tf.constant(plan))
        now += seconds
    found.asked(tf.constant(now, tf.float64))
    return found.seconds().numpy()


def test_costs_are_medians_of_what_pre_samples_took():
    """Uniform: 4 steps of 1 s, one pause; drawn: a step and 2 s of scoring."""
    uniform = [(0, 4.0)] * 3 + [(0, 60.0)] + [(0, 4.0)] * 3
    np.testing.assert_allclose(timed(MENU, B, uniform), [1.0, np.inf])
    np.testing.assert_allclose(timed(MENU, B, uniform + [(1, 3.0)] * 5), [1.0, 3.0])


def test_the_first_of_a_row_is_not_timed():
    """It overlaps with the steps of another plan."""
    sequence = [(0, 4.0)] * 4 + [(1, 9.0), (1, 3.0), (1, 3.0)] + [(0, 1.0), (0, 4.0)]
    np.testing.assert_allclose(timed(MENU, B, sequence), [1.0, 3.0])


def test_scoring_that_overlaps_costs_nothing():
    np.testing.assert_allclose(timed(MENU, B, [(0, 4.0)] * 3 + [(1, 0.9)] * 3), [1.0, 1.0])


def test_what_is_not_known_is_not_chosen():
    assert np.isinf(timed(MENU, B, [])).all()
    assert np.isinf(timed(MENU, B, [(1, 3.0)] * 5)).all()


def test_costs_of_several_draws():
    menu = plans.menu(16, "auto")
    at = {plan: i for i, plan in enumerate(menu.plans)}
    sequence = [(at[plans.Plan(16)], 12 * 1.0)] * 3
    sequence += [(at[plans.Plan(16, 1, 64)], 3 * 1.0 + 6.0)] * 3
    seconds = timed(menu.plans, menu.group_size, sequence)
    for plan, index in at.items():
        expected = 1 + (6.0 / plan.batches(192) if plan.draws else 0.0)
        assert seconds[index] == pytest.approx(expected, rel=1e-5)


class Clock(keras.callbacks.Callback):
    """The time that switches measure: a step takes so many seconds, scoring so many more."""

    def __init__(self, monkeypatch, step: float, scoring: float) -> None:
        super().__init__()
        self.now = tf.Variable(100.0, dtype=tf.float64, trainable=False)
        self._step, self._scoring = step, scoring
        monkeypatch.setattr(tf, "timestamp", self.now.read_value)

    def scorer(self, model, x, y):
        with tf.control_dependencies([self.now.assign_add(self._scoring)]):
            return tfi.scorers.upper_bound(model, tf.identity(x), y)

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.now.assign_add(self._step)


def by(clock: Clock, data, batch_size: int, presample_size: int, steps: int, rate=0.1):
    """A run by this clock, with a seed so that nothing is asked for ahead: switch and history."""
    model, switch = compiled(tfi.schedules.GainAdapted(rate)), switches.Gain()
    sample = tfi.importance_sample(
        model, batch_size, presample_size, switch=switch, scorer=clock.scorer, seed=0
    )
    train = examples(data).apply(sample)
    history = model.fit(train, steps_per_epoch=steps, verbose=0, callbacks=[clock]).history
    return switch, history


@pytest.mark.parametrize("step, scoring", [(3.0, 2.0), (0.5, 0.125)])
def test_training_measures_its_own_steps(blobs, monkeypatch, step, scoring):
    switch, _ = by(Clock(monkeypatch, step, scoring), blobs, b, B, 120)
    np.testing.assert_allclose(switch.costs.seconds(), [step, step + scoring])


def test_without_a_seed_the_time_is_the_machines(blobs):
    """Steps that run beside the pipeline; what they take differs, and is not negative."""
    switch, model = switches.Gain(), compiled()
    train = examples(blobs).apply(tfi.importance_sample(model, b, B, switch=switch))
    model.fit(train, steps_per_epoch=120, verbose=0)
    uniform, drawn = switch.costs.seconds().numpy()
    assert np.isfinite([uniform, drawn]).all() and 0 <= uniform <= drawn


# In training ------------------------------------------------------------------------------


def fitted(blobs, seed=0, epochs=1, steps=180, callbacks=(), **kwargs):
    keras.utils.set_random_seed(3)
    model = compiled(tfi.schedules.GainAdapted(1.0))
    switch = kwargs.setdefault("switch", switches.Gain(step_seconds=1.0, scoring_seconds=0.2))
    train = examples(blobs).apply(tfi.importance_sample(model, b, seed=seed, **kwargs))
    fit = {"steps_per_epoch": steps, "epochs": epochs, "callbacks": list(callbacks)}
    return model, switch, model.fit(train, verbose=0, **fit).history


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"presample_size": 64, "draws_per_presample": 2},
        {"presample_size": "auto"},
    ],
    ids=["two draws", "auto"],
)
def test_the_same_seeds_and_costs_give_the_same_run(blobs, sizes):
    runs = [fitted(blobs, **sizes) for _ in range(2)]
    (model, switch, history), (again, its_switch, its_history) = runs
    assert history == its_history
    for one, other in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert history["importance"][0] > 0.1, "it must have been drawn from"
    assert history["gain"][-1] != 1
    assert int(switch.plan) == int(its_switch.plan)


def test_t_counts_the_gains(blobs):
    gains = []
    noted = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: gains.append(logs["gain"])
    )
    model, _, _ = fitted(blobs, presample_size=64, callbacks=[noted])
    schedule = model.optimizer._learning_rate
    assert float(schedule.following) == pytest.approx(sum(gains), rel=1e-4)
    assert sum(gains) > 1.05 * len(gains)


@pytest.mark.slow
def test_gains_are_one_for_uniform_batches(blobs):
    """τ's switch with a learning rate that follows: r of drawn batches, 1 of the others."""
    always = {"switch": switches.Always(), "resampling": "systematic", "smoothing": 0.2}
    _, _, drawn = fitted(blobs, presample_size=64, **always)
    _, _, uniform = fitted(blobs, switch=switches.Never(), presample_size=64)
    assert drawn["gain"][0] > 1.1 and uniform["gain"][0] == 1


def test_where_all_norms_are_equal_training_is_uniform(blobs):
    """The guard: ±1 regression of a constant, whatever scoring costs."""
    x, _ = blobs
    labels = np.where(np.arange(len(x)) % 2, 1.0, -1.0).astype(np.float32)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    net.layers[-1].kernel.assign(tf.zeros([2, 1]))
    x = np.zeros_like(x)
    model = compiled(tfi.schedules.GainAdapted(1e-6), "mse", net)
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=1e-3)
    train = (
        tf.data.Dataset.from_tensor_slices((x, labels))
        .repeat()
        .apply(tfi.importance_sample(model, b, B, switch=switch, seed=0))
    )
    history = model.fit(train, steps_per_epoch=300, verbose=0).history
    assert history["importance"] == [pytest.approx(8 / 300)], "the first pre-samples, to find out"
    assert history["gain"] == [1.0]
    assert float(switch.speedup) == 1


@pytest.mark.parametrize("rare, scoring", [(0.05, 1.0), (0.5, 1.0), (0.05, 4.0)])
def test_it_starts_on_where_the_first_pre_samples_say_that_few_examples_matter(rare, scoring):
    rng = np.random.default_rng(0)
    labels = (rng.random(4096) < rare).astype(np.float32)
    x = (rng.normal(size=(4096, 2)) + labels[:, None]).astype(np.float32)
    prior = keras.initializers.Constant(np.log(rare / (1 - rare)))
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, bias_initializer=prior)])
    model = compiled(1e-3, keras.losses.BinaryCrossentropy(from_logits=True), net)
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=scoring)
    train = (
        tf.data.Dataset.from_tensor_slices((x, labels[:, None]))
        .repeat()
        .apply(tfi.importance_sample(model, b, 4 * b, switch=switch, seed=0))
    )
    drawn = [
        model.fit(train, steps_per_epoch=steps, verbose=0).history["importance"][0]
        for steps in (8, 12)
    ]
    if scoring == 4.0:
        assert drawn == [0.0, 0.0], "no drawing gains as much as this costs"
    else:
        assert drawn[0] == 1.0
        # One group of four batches is uniform, to compare with.
        assert (drawn[1] > 0.6) == (rare < 0.5), "half and half all scores are alike"


@pytest.mark.parametrize("scoring", [3.0, 0.0], ids=["", "negative control"])
@pytest.mark.slow
def test_measuring_scores_few_pre_samples_while_it_does_not_pay(monkeypatch, scoring):
    """The stated share: 5 of the first pre-samples, and 5 from the 64th and the 256th on.

    A gain cannot exceed B/b = 4, which is the cost of a step after scoring for 3.
    """
    rng = np.random.default_rng(0)
    # Confident, and wrong for three of four: norms that differ.
    data = (5 * rng.normal(size=(512, 2))).astype(np.float32), rng.integers(4, size=512)
    _, history = by(Clock(monkeypatch, 1.0, scoring), data, 4, 16, 1200, 1e-3)
    if scoring:
        assert history["importance"][0] == pytest.approx(15 / 1200, rel=0.01)
    else:
        assert history["importance"][0] > 3 * 15 / 1200


@pytest.mark.slow
def test_decisions_and_costs_are_checkpointed(blobs, tmp_path):
    model, switch, _ = fitted(blobs, switch=switches.Gain(), presample_size=64)
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "at"))
    other, its_switch = compiled(), switches.Gain()
    tfi.importance_sample(other, b, 64, switch=its_switch)(examples(blobs))
    tf.train.Checkpoint(model=other).restore(path).expect_partial()
    assert int(its_switch.presamples) == int(switch.presamples) > 10
    np.testing.assert_array_equal(its_switch.costs.timings, switch.costs.timings)
    np.testing.assert_array_equal(other.meter.state, model.meter.state)


@pytest.mark.slow
def test_sample_weights_are_no_importance(blobs):
    """Uniform batches with weights 5: the moments of the weighted losses, r as without."""
    keras.utils.set_random_seed(0)
    found = []
    for scale in (1.0, 5.0):
        model = compiled(tfi.schedules.GainAdapted(1e-9))
        model.net.set_weights([np.ones([2, 4], np.float32) * [1, -1, 0.5, 0], np.zeros(4)])
        weights = np.full(len(blobs[0]), scale, np.float32)
        train = (
            tf.data.Dataset.from_tensor_slices((*blobs, weights))
            .repeat()
            .apply(tfi.importance_sample(model, b, B, switch=switches.Always(), seed=2))
        )
        model.fit(train, steps_per_epoch=80, verbose=0)
        found.append(np.array([float(part) for part in model.meter.moments()[0][:4]]))
    plain, weighted = found
    np.testing.assert_allclose(weighted[1:], plain[1:] * [25, 5, 5], rtol=1e-3)
    np.testing.assert_allclose(weighted[0], plain[0] * 25, rtol=0.05, atol=1e-2)


# What a switch, a pipeline and a model must not take from each other -------------------------


def test_a_switch_serves_one_model():
    switch = switches.Gain()
    tfi.importance_sample(compiled(), 16, 64, switch=switch)
    gc.collect()
    # The first model is gone, and another may have its address.
    for _ in range(3):
        with pytest.raises(ValueError, match="one model and pipeline"):
            tfi.importance_sample(compiled(), 16, 64, switch=switch)


@pytest.mark.slow
def test_moments_of_another_way_of_drawing_do_not_count(blobs):
    """Rates and smoothing are others: what was measured says nothing of the new pipeline."""
    model, _, _ = fitted(blobs, switch=switches.Always(), presample_size=64)
    assert bool(model.meter.moments()[1])
    examples(blobs).apply(tfi.importance_sample(model, b, "auto", switch=switches.Gain()))
    assert not bool(model.meter.moments()[1])
    examples(blobs).apply(tfi.importance_sample(model, b, 64, switch=switches.Always()))
    assert bool(model.meter.moments()[1])


def test_batches_of_one_have_no_gain_and_are_refused():
    with pytest.raises(ValueError, match="batches of 2 at least; got 1"):
        tfi.importance_sample(compiled(), 1, switch=switches.Gain())


def test_mixed_precision_does_not_hide_the_learning_rate(blobs):
    """Keras wraps the optimizer; the schedule inside moves on all the same."""
    policy = keras.mixed_precision if hasattr(keras, "mixed_precision") else keras.dtype_policies
    setter = getattr(policy, "set_global_policy", None) or policy.set_dtype_policy
    setter("mixed_float16")
    try:
        model = compiled(tfi.schedules.GainAdapted(0.1))
        assert model.follows_gain
        model.fit(*blobs, batch_size=64, verbose=0)
        assert float(model.schedule.following) == 8
    finally:
        setter("float32")


def test_accumulated_steps_are_refused():
    if "gradient_accumulation_steps" not in keras.optimizers.SGD().get_config():
        pytest.skip("this version of Keras does not accumulate")
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    rate = tfi.schedules.GainAdapted(0.1)
    optimizer = keras.optimizers.SGD(rate, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="makes one of 4"):
        tfi.ISModel(net).compile(optimizer, "mse")


def test_class_weight_beside_batches_with_a_gain_is_refused(blobs):
    model = compiled()
    train = examples(blobs).apply(tfi.importance_sample(model, b, 64, switch=switches.Gain()))
    with pytest.raises(ValueError, match="class weights as sample weights"):
        model.fit(train, steps_per_epoch=1, class_weight={0: 2.0}, verbose=0)


def test_a_short_group_is_no_timing(blobs):
    """One group of 64 and a short end in each pass: nothing can be timed, nothing is."""
    switch, model = switches.Gain(), compiled()
    data = tuple(part[:72] for part in blobs)
    train = tf.data.Dataset.from_tensor_slices(data).apply(
        tfi.importance_sample(model, b, B, switch=switch)
    )
    model.fit(train, epochs=4, verbose=0)
    assert int(switch.presamples) == 4 and not switch.costs.counts.numpy().any()


def test_auto_scores_each_pre_sample_when_its_turn_has_come(blobs):
    """Two pre-samples of 6b in a group of 12b: the second one's scores are a step newer."""
    seen = []

    def spying(model, x, y):
        value = tf.reduce_sum(tf.abs(model.trainable_variables[0]))
        tf.py_function(lambda v: seen.append(float(v)), [value], [])
        return tfi.scorers.upper_bound(model, x, y)

    class Second(switches.Switch):
        def choose(self, setting):
            return tf.constant(2)

    model = compiled(tfi.schedules.GainAdapted(0.5))
    menu = plans.menu(b, "auto")
    assert menu.plans[2] == plans.Plan(b, 1, 6 * b)
    second = switches.Gain(step_seconds=1.0, scoring_seconds=1.0)
    second.choose = Second().choose
    train = examples(blobs).apply(
        tfi.importance_sample(model, b, "auto", switch=second, scorer=spying)
    )
    model.fit(train, steps_per_epoch=4, verbose=0)
    assert len(seen) >= 4 and len(set(seen[:4])) == 4


@pytest.mark.parametrize(
    "switch", [switches.Gain(step_seconds=1.0, scoring_seconds=2.0), switches.Tau(2.0)], ids=repr
)
def test_a_copy_is_as_it_was_made(switch):
    for other in (copy.deepcopy(switch), pickle.loads(pickle.dumps(switch))):
        assert repr(other) == repr(switch) and other is not switch
