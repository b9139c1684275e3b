"""`tfi.compare`: its scale, its rivals, its verdict; the same numbers each time, resumed or not."""

import json
import math

import keras
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import tensorflow as tf

import tf_importance as tfi
from tf_importance.comparison import classes, methods, result, scale, training

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
N, B = 240, 16
Y = (RNG.random(N) < 0.1).astype(np.int32)
X = (RNG.normal(size=(N, 4)) + 1.5 * Y[:, None]).astype(np.float32)
# Steps of each method cost these: nothing is timed.
COSTS = {"uniform": 1.0, "strata": 1.1, "strata, scored": 2.0, "mine": 1.0, "inclusion": 1.0}


def build(units=2, activation=None, loss=LOSS):
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(units, activation)]
    net = keras.Sequential([keras.Input((4,)), *layers])
    net.compile(keras.optimizers.SGD(0.1), loss)
    return net


def compared(names, **given):
    options = {"batch_size": B, "budget": 16, "seeds": 1, "rates": [1.0], "costs": COSTS}
    return tfi.compare(build, (X, Y), names, verbose=0, **{**options, **given})


# The scale ----------------------------------------------------------------------------------


def test_a_power_law_is_read_off_exactly():
    of_time = scale.of_uniform({t: [3 * t**-0.7] * 3 for t in (0.5, 1.0, 2.0)})
    for time in (0.3, 0.5, 0.8, 1.0, 1.7, 3.0):
        assert of_time.time_to(3 * time**-0.7) == pytest.approx(time, rel=1e-6)
    assert of_time.time_to(1e-9) == scale.MOST
    assert of_time.time_to(math.inf) == of_time.time_to(math.nan) == scale.LEAST


def test_uniform_samplings_own_medians_are_worth_their_time():
    found = {0.5: [0.5, 0.4, 0.9], 1.0: [0.3, 0.31, 0.2], 2.0: [0.1, 0.12, 0.25]}
    of_time = scale.of_uniform(found)
    assert [of_time.time_to(loss) for loss in (0.5, 0.3, 0.12)] == pytest.approx([0.5, 1.0, 2.0])


def test_where_time_is_of_no_use_there_is_no_scale():
    assert scale.of_uniform({0.5: [0.3], 1.0: [0.3], 2.0: [0.299]}) is None
    assert scale.of_uniform({0.5: [0.3], 1.0: [math.inf], 2.0: [0.4]}) is None
    assert scale.of_uniform({0.5: [0.3], 1.0: [0.4], 2.0: [0.3]}) is None


@pytest.mark.parametrize("later", [0.3, 0.2])
def test_a_longer_run_that_is_no_better_makes_no_time_longer(later):
    """It overfits from 1 on: of a lower loss the runs before that tell, along their own line."""
    of_time = scale.of_uniform({0.5: [0.4], 1.0: [0.2], 2.0: [later]})
    found = [of_time.time_to(loss) for loss in (0.4, 0.2, 0.1)]
    assert found == pytest.approx([0.5, 1.0, 2.0])


# Classes ------------------------------------------------------------------------------------


def test_log_probabilities_of_all_forms_of_outputs():
    logits = RNG.normal(size=(5, 3)).astype(np.float32)
    wanted = scipy.special.log_softmax(logits, axis=1)
    of_logits = classes.Head(3, True, False).log_probabilities(logits)
    np.testing.assert_allclose(of_logits, wanted, rtol=1e-5)
    of_shares = classes.Head(3, False, False).log_probabilities(np.exp(wanted))
    np.testing.assert_allclose(of_shares, wanted, rtol=1e-4)
    one = logits[:, :1]
    pair = np.log([scipy.special.expit(-one[:, 0]), scipy.special.expit(one[:, 0])]).T
    np.testing.assert_allclose(classes.Head(2, True, False).log_probabilities(one), pair, rtol=1e-5)
    shares = scipy.special.expit(one)
    found = classes.Head(2, False, False).log_probabilities(shares)
    np.testing.assert_allclose(found, pair, rtol=1e-4)


K = keras.losses


@pytest.mark.parametrize(
    "loss, y, units, head",
    [
        (LOSS, Y, 2, (2, True, False)),
        ("sparse_categorical_crossentropy", Y[:, None], 3, (3, False, False)),
        (K.CategoricalCrossentropy(), np.eye(2)[Y], 2, (2, False, True)),
        (K.BinaryCrossentropy(from_logits=True), Y.astype(float), 1, (2, True, False)),
        (K.BinaryCrossentropy(), np.eye(3)[Y], 3, None),
        (K.CategoricalCrossentropy(label_smoothing=0.1), np.eye(2)[Y], 2, None),
        (K.BinaryCrossentropy(), 0.3 * Y, 1, None),
        ("mse", Y, 1, None),
        (LOSS, Y, None, None),
    ],
)
def test_classes_are_found_where_the_loss_is_their_cross_entropy(loss, y, units, head):
    assert classes.head_of(loss, y, units) == (head and classes.Head(*head))


def test_average_precision_is_scikit_learns():
    labels = RNG.integers(3, size=200)
    logs = scipy.special.log_softmax(RNG.normal(size=(200, 3)) + 2 * np.eye(3)[labels], axis=1)
    common = np.bincount(labels).argmax()
    wanted = [
        sklearn.metrics.average_precision_score(labels == k, logs[:, k])
        for k in range(3)
        if k != common
    ]
    assert classes.average_precision(logs, labels) == pytest.approx(np.mean(wanted))


def test_the_temperature_undoes_a_factor():
    labels = RNG.integers(3, size=4000)
    logs = scipy.special.log_softmax(1.5 * np.eye(3)[labels] + RNG.gumbel(size=(4000, 3)), axis=1)
    right = classes.temperature(logs, labels)
    assert classes.temperature(3 * logs, labels) == pytest.approx(right / 3, rel=0.06)


# Rivals -------------------------------------------------------------------------------------


def task(y=Y, head=None, units=2):
    head = head or classes.Head(units, True, False)
    prior = np.bincount(y, minlength=units) / len(y)
    return methods.Task(X[: len(y)], y, len(y), B, head, y, prior)


def test_moved_logits_are_keras_cross_entropy_of_them():
    logits, y = RNG.normal(size=(7, 3)).astype(np.float32), RNG.integers(3, size=7)
    shift = np.array([0.5, -1.0, 0.2], np.float32)
    for head, labels in (((3, True, False), y), ((3, True, True), np.eye(3)[y])):
        found = methods.Moved(head, shift)(labels, logits)
        assert float(found) == pytest.approx(float(LOSS(y, logits + shift)), rel=1e-5)
    log_p = scipy.special.log_softmax(logits, axis=1)[np.arange(7), y]
    focal = np.mean(-((1 - np.exp(log_p)) ** 2) * log_p)
    assert float(methods.Moved((3, True, False), gamma=2.0)(y, logits)) == pytest.approx(
        focal, rel=1e-5
    )
    config = methods.Moved((3, True, False), shift, 2.0).get_config()
    assert methods.Moved.from_config(config).get_config() == config


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_down_sampled_batches_have_their_share_and_the_odds_put_it_right(share):
    rival = methods.OTHERS[f"down-sampled, {share:.0%}"].rival(task())
    numbers = np.concatenate([batch.numpy() for batch in rival.numbers(3).take(200)])
    found = Y[numbers].mean()
    assert abs(found - share) < 4.5 * np.sqrt(share * (1 - share) / len(numbers))
    # What is learned of such batches by a net that knows nothing, put right, is the prior.
    put_right = classes.moved(np.log([[1 - share, share]]), rival.shift)
    np.testing.assert_allclose(np.exp(put_right[0]), task().prior, rtol=1e-6)


def test_class_weights_are_balanced_and_put_right():
    rival = methods.OTHERS["class weights"].rival(task())
    of_class = np.bincount(Y, rival.weights)
    np.testing.assert_allclose(of_class, N / 2, rtol=1e-5)
    put_right = classes.moved(np.log([[0.5, 0.5]]), rival.shift)
    np.testing.assert_allclose(np.exp(put_right[0]), task().prior, rtol=1e-6)


def test_a_random_half_stays_the_same_half():
    rival = methods.OTHERS["a random half"].rival(task())
    seen = {int(i) for batch in rival.numbers(1).take(40) for i in batch}
    again = {int(i) for batch in rival.numbers(2).take(40) for i in batch}
    assert seen == again and len(seen) == N // 2


# The same batches ---------------------------------------------------------------------------


def of_a_switch(seed):
    """Indices of a switched sampler's batches while it draws nothing."""
    model = tfi.ISModel(build())
    sampler = methods.OURS["switched"].sampler(task())
    rate = tfi.schedules.GainAdapted(0.1)
    model.compile(keras.optimizers.SGD(rate), LOSS, sampler=sampler)
    drawn = tfi.history_sample((X, Y), sampler, B, model=model, seed=seed).repeat().take(40)
    # Rows are as long as a pre-sample; a uniform batch is in front.
    return [drawing["index"].numpy()[:B].tolist() for _, _, drawing in drawn]


@pytest.mark.filterwarnings("ignore:batches of Switched are read")
def test_uniform_batches_are_those_of_a_switch_that_draws_nothing():
    """In passes that batches do not divide, each of them in an order of its own."""
    batches = [batch.numpy().tolist() for batch in methods.passes(np.arange(N), B, 7).take(40)]
    assert batches == of_a_switch(7)
    assert batches != of_a_switch(8)
    for first in range(0, 30, 15):
        assert sorted(sum(batches[first : first + 15], [])) == list(range(N))
    odd = [batch.numpy().tolist() for batch in methods.passes(np.arange(10, 47), 5, 0).take(37)]
    assert all(sorted(sum(odd, [])[p : p + 37]) == list(range(10, 47)) for p in range(0, 185, 37))


def test_a_switch_that_draws_nothing_is_the_same_run():
    """At a rate at which any difference would grow."""
    parts = training.Parts(task(), (X[:50], Y[:50]), (X[50:90], Y[50:90]), (X, Y))
    costs = {"uniform": 1.0, "memory": 100.0, "memory, scored": 200.0}
    every = {"uniform": methods.UNIFORM, **methods.OURS}
    one, other, another = (
        training.run(build, parts, every, (name, 1.0, seed, 30.0), 300, costs, None)
        for name, seed in (("uniform", 0), ("switched", 0), ("uniform", 1))
    )
    assert other.drawn == 0
    np.testing.assert_allclose(other[4:8], one[4:8], rtol=1e-4)
    assert abs(another.train_loss / one.train_loss - 1) > 1e-2


# The comparison -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_numbers_each_time_resumed_or_not(tmp_path):
    first = compared(["strata", "logit adjustment"], out=tmp_path / "one")
    text = (tmp_path / "one" / "comparison.json").read_text()
    assert json.loads(text)["verdict"] == first.verdict
    assert (tmp_path / "one" / "comparison.png").stat().st_size > 5_000
    # Moved by a constant with which the net starts: uniform sampling to the last digit.
    by_name = {row.method: row for row in first.rows}
    assert by_name["logit adjustment"].loss == pytest.approx(by_name["uniform"].loss, rel=1e-5)
    assert by_name["strata"].loss != by_name["uniform"].loss
    # The steps that a budget buys.
    steps = {(run.method, run.length): run.steps for run in first.runs}
    assert steps["uniform", 0.5] == 8 and steps["uniform", 2.0] == 32
    assert steps["strata", 1.0] == math.ceil(16 / 1.1)
    assert by_name["strata"].drawn == 1 and by_name["uniform"].drawn is None
    # Interrupted in the midst.
    lines = (tmp_path / "one" / "runs.jsonl").read_text().splitlines()
    (tmp_path / "one" / "runs.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    again = compared(["strata", "logit adjustment"], costs=None, out=tmp_path / "one")
    assert str(again) == str(first) and again.costs == first.costs
    assert (tmp_path / "one" / "comparison.json").read_text() == text
    # Another method comes to the runs that are there; of its steps the costs are measured beside.
    more = compared(["strata", "inclusion"], costs=None, out=tmp_path / "one")
    assert more.costs["strata"] == 1.1 and more.costs["inclusion"] > 0
    assert more.rows[1] == first.rows[1]
    with pytest.raises(ValueError, match="budget 16 and not 20"):
        compared(["strata"], budget=20, out=tmp_path / "one")


def test_a_folder_is_gone_on_with_by_fewer_methods_and_not_by_other_costs(tmp_path):
    settings = dict.fromkeys(("seeds", "methods", "rates", "by", "budget"))
    first = tfi.comparison._Kept(tmp_path, settings)
    first.start({"uniform": 1.0, "memory": 1.5, "inclusion": 1.1})
    first.add(training.Run("uniform", 1.0, 0, 1.0, *[0.5] * 5, 4, 4.0, None))
    tfi.comparison._Kept(tmp_path, settings).start({"uniform": 1.0, "memory": 1.5})
    again = tfi.comparison._Kept(tmp_path, settings)
    assert again.costs == {"uniform": 1.0, "memory": 1.5, "inclusion": 1.1} and len(again.runs) == 1
    with pytest.raises(ValueError, match="runs by other costs; leave costs out"):
        again.start({"uniform": 1.0, "memory": 1.6})


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [tf.data.Dataset.from_tensor_slices, lambda data: list(zip(*data))]
)
def test_a_sampler_of_ones_own_and_examples_one_by_one(kind):
    data = kind((X, Y))
    found = tfi.compare(
        build,
        data,
        {"mine": lambda: tfi.samplers.Proportional()},
        batch_size=B,
        budget=8,
        seeds=1,
        rates=[1.0],
        costs=COSTS,
        augment=lambda x: x + 0.0,
        verbose=0,
    )
    assert [row.method for row in found.rows] == ["uniform", "mine"]
    assert found.rows[1].is_ours and found.rows[1].cost == 1.0


@pytest.mark.slow
def test_a_net_without_classes_is_compared_by_its_own_loss():
    def regression():
        return build(1, loss="mse")

    found = tfi.compare(
        regression, (X, X.sum(axis=1)), ["inclusion"], batch_size=B, budget=24, seeds=1,
        rates=[1.0], costs=COSTS, verbose=0,
    )  # fmt: skip
    assert found.rows[0].error is None and np.isfinite(found.rows[1].loss)
    with pytest.raises(ValueError, match="'focal loss' is for a net with one output of classes"):
        tfi.compare(regression, (X, X.sum(axis=1)), ["focal loss"], costs=COSTS)


@pytest.mark.slow
def test_costs_are_measured_once():
    found = compared(["strata, scored"], costs=None)
    assert found.costs["uniform"] == 1.0 and found.costs["strata, scored"] > 0
    again = compared(["strata, scored"], costs=found.costs)
    assert again.runs == found.runs


@pytest.mark.slow
@pytest.mark.parametrize("name", [*methods.OURS, *methods.OTHERS])
def test_every_method_trains(name):
    every = {**methods.OURS, **methods.OTHERS}
    parts = training.Parts(task(), (X[:50], Y[:50]), (X[50:90], Y[50:90]), (X, Y))
    costs = dict.fromkeys(["uniform", *every], 1.5)
    found = training.run(build, parts, every, (name, 1.0, 0, 1.0), 24, costs, None)
    assert np.isfinite([found.chosen, found.loss, found.train_loss, found.error]).all()
    assert found.steps == 16 and found.spent == 24


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "switched", "strata, scored"])
def test_runs_repeat_to_the_last_digit(name):
    """Long enough for RAIS to draw; no clock is read, by the switch neither."""
    parts = training.Parts(task(), (X[:50], Y[:50]), (X[50:90], Y[50:90]), (X, Y))
    costs = {"uniform": 1.0, "memory": 1.2, "memory, scored": 1.6, "strata, scored": 2.0}
    first, second = (
        training.run(build, parts, methods.OURS, (name, 1.0, 0, 1.0), 1200, costs, None)
        for _ in range(2)
    )
    assert first == second
    assert first.drawn > 0 or name == "switched"


def test_by_default_what_makes_sense_is_compared():
    assert "strata" in methods.by_default(task())
    balanced = methods.by_default(task(np.arange(N) % 2))
    assert "strata" not in balanced and "inclusion" in balanced
    assert not task(np.arange(N) % 10, units=10).is_rare
    assert task(np.minimum(np.arange(N) % 40, 9), units=10).is_rare


def test_the_ladder_of_rates_goes_on_while_it_is_better():
    from tf_importance.comparison import _climbed

    tried = []

    def of(best):
        def loss(factor):
            tried.append(factor)
            return abs(math.log(factor / best))

        return loss

    assert _climbed(of(1.0)) == (1.0, False) and sorted(tried) == [1 / 3, 1, 3]
    assert _climbed(of(9.0)) == (9.0, False)
    assert _climbed(of(1 / 9)) == (pytest.approx(1 / 9), False)
    assert _climbed(of(1e9)) == (81.0, True)


def test_a_schedule_is_stretched_to_runs_of_any_length():
    halved = keras.optimizers.schedules.PiecewiseConstantDecay([50], [1.0, 0.1])
    at = training.rates(halved, 2.0, 100)
    assert [at(share) for share in (0.0, 0.4, 0.6)] == pytest.approx([2.0, 2.0, 0.2])
    assert [training.rates(0.3, 3.0, 100)(s) for s in (0.0, 0.5, 1.0)] == pytest.approx(
        [0.9, 0.45, 0.0]
    )

    def by_schedule():
        net = build()
        net.compile(keras.optimizers.SGD(halved), LOSS)
        return net

    seen = []

    class Seen(training.Course):
        def on_train_batch_begin(self, batch, logs=None):
            super().on_train_batch_begin(batch, logs)
            seen.append(float(self._told.rate))

    parts = training.Parts(task(), (X[:50], Y[:50]), (X[50:90], Y[50:90]), (X, Y))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Course", Seen)
        key = ("a random half", 0.5, 0, 1.0)
        training.run(by_schedule, parts, methods.OTHERS, key, 100, {"a random half": 1.0}, None)
    # A run of half the budget is through with the schedule as well.
    assert len(seen) == 50 and seen[0] == pytest.approx(1.0) and seen[-1] == pytest.approx(0.1)


# The verdict --------------------------------------------------------------------------------


def runs_of(method, losses, length=1.0):
    return [
        training.Run(method, length, seed, 1.0, loss, loss, loss / 2, 0.1, 0.5, 10, 10.0, 0.5)
        for seed, loss in enumerate(losses)
    ]


def concluded(by="held_out", **losses):
    runs = [r for t in (0.5, 1.0, 2.0) for r in runs_of("uniform", [0.1 / t] * 3, t)]
    chosen = {("uniform", t): (1.0, False) for t in (0.5, 1.0, 2.0)}
    for name, found in losses.items():
        runs += runs_of(name, found)
        chosen[name, 1.0] = 1.0, name == "edge"
    settings = {"seeds": [0, 1, 2], "by": by}
    ours = [name for name in losses if name != "rival"]
    return result.summarized(runs, chosen, {"strata": 1.0}, settings, ours)


def test_a_method_that_pays_is_told_with_its_range():
    found = concluded(strata=[0.05, 0.04, 0.08], rival=[0.07, 0.07, 0.07])
    assert found.pays
    assert found.verdict == (
        "At equal time strata reaches a loss of 0.05, where uniform sampling has 0.1 and would "
        "need 2 times as long: it saves 50% (20 to 60%). Of what else is done rival is the best, "
        "and saves 30% (30 to 30%)."
    )


def test_what_is_not_faster_with_each_seed_is_not_worth_it():
    found = concluded(strata=[0.05, 0.04, 0.11], edge=[0.2, 0.2, 0.2])
    assert not found.pays
    assert found.verdict.startswith("Stop here: not worth it. The best, strata, saves 50% (-10 to")
    assert "edge of those that were tried" in str(found)
    assert not concluded(strata=[0.099, 0.098, 0.097]).pays
    slower = concluded(strata=[0.2, 0.2, 0.2]).verdict
    assert slower.endswith("strata, takes 2 times as long as uniform sampling.")


def test_without_a_scale_nothing_is_said_of_time():
    runs = [r for t in (0.5, 1.0, 2.0) for r in runs_of("uniform", [0.1] * 3, t)]
    chosen = {("uniform", t): (1.0, False) for t in (0.5, 1.0, 2.0)} | {("a", 1.0): (1.0, False)}
    found = result.summarized(
        runs + runs_of("a", [0.05] * 3), chosen, {}, {"seeds": [0, 1, 2]}, ["a"]
    )
    assert "Nothing can be said of time" in found.verdict and not found.pays
    json.dumps(found.to_json())
    same = result.summarized(
        runs + runs_of("a", [0.1] * 3), chosen, {}, {"seeds": [0, 1, 2]}, ["a"]
    )
    assert same.rows[1].speedups == (1.0, 1.0, 1.0)
    assert same.verdict == "Stop here: not worth it. The best, a, saves 0% (0 to 0%)."


def test_the_training_loss_may_count_instead():
    found = concluded(by="train", strata=[0.05, 0.04, 0.08])
    assert "reaches a training loss of 0.025, where uniform sampling has 0.05" in found.verdict
    assert found.rows[1].losses == (0.025, 0.02, 0.04)


# Refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, kind, message",
    [
        ({"build": build()}, TypeError, "must be a function .*; got a Sequential"),
        ({"build": lambda: 3}, TypeError, "plain keras.Model, compiled.* got 3"),
        ({"build": lambda: tfi.ISModel(build())}, TypeError, "got an ISModel"),
        (
            {"build": lambda: keras.Sequential([keras.layers.Dense(2)])},
            ValueError,
            "must compile the net",
        ),
        ({"data": X}, TypeError, r"data must be \(x, y\).*; got an array of shape"),
        (
            {"data": tf.data.Dataset.from_tensor_slices((X, Y)).repeat()},
            ValueError,
            "data has no end",
        ),
        ({"methods": ["stratta"]}, ValueError, "methods must be of strata, .*; got 'stratta'"),
        ({"methods": {"mine": tfi.samplers.RAIS()}}, TypeError, r"methods\['mine'\] must be a f"),
        ({"methods": {"uniform": lambda: None}}, ValueError, "'uniform' is the name"),
        ({"rates": [0.0]}, ValueError, "rates must be positive"),
        ({"by": "test"}, ValueError, "by must be one of 'held_out', 'train'; got 'test'"),
        ({"seeds": 0}, ValueError, "seeds must be a positive integer; got 0"),
        ({"batch_size": 1000}, ValueError, "192 examples to train on"),
        ({"validation_data": (X[:1], Y[:1])}, ValueError, "two examples at least.*; got 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, kind, message):
    arguments = {"build": build, "data": (X, Y), "costs": COSTS, "verbose": 0, **given}
    with pytest.raises(kind, match=message):
        tfi.compare(arguments.pop("build"), arguments.pop("data"), **arguments)
