"""One run of a comparison: a net trained by a method until its budget is spent, and evaluated."""

from __future__ import annotations

import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_importance import compat, model, random_access, schedules, source
from tf_importance.comparison import classes
from tf_importance.comparison.methods import Method, Rival, Task, passes

_EVALUATED_AT_ONCE = 1024
# Steps between two looks at what is spent.
_EVERY = 8
_ROUNDS, _TIMED = 7, 48


class Parts(NamedTuple):
    """Examples: those that are trained on, and two parts of the others.

    Attributes:
        task: what is trained. chosen, reported: (x, y) by which rates are chosen, and that figures
            are of. seen: (x, y) of some training examples.
    """

    task: Task
    chosen: tuple[Any, Any]
    reported: tuple[Any, Any]
    seen: tuple[Any, Any]


class Run(NamedTuple):
    """One training; the first four say which.

    Attributes:
        method: its name. length: in budgets. seed: of weights and draws.
        factor: of the compiled learning rate.
        chosen, loss, train_loss: mean losses of the parts. error: share of wrong classes.
        average_precision: mean over the rare classes. steps: made. spent: cost units.
        drawn: share of the steps on batches that were not uniform; None of plain Keras.
    """

    method: str
    length: float
    seed: int
    factor: float
    chosen: float
    loss: float
    train_loss: float
    error: float | None
    average_precision: float | None
    steps: int
    spent: float
    drawn: float | None


class Course(keras.callbacks.Callback):
    """Lets the learning rate fall as the budget is spent, and ends the run with it.

    Args:
        told: what is set. rate_at: the rate by the share that is spent, in [0, 1].
        budget: cost units. cost: of a step, as it is now.
    """

    def __init__(
        self, told: schedules.Told, rate_at: Callable[[float], float], budget: float, cost: Callable
    ) -> None:
        super().__init__()
        self._told, self._rate_at, self._budget, self._cost = told, rate_at, budget, cost
        self._now = 1.0
        self.spent, self.steps, self.failed = 0.0, 0, False

    def on_train_batch_begin(self, batch, logs=None) -> None:
        if self.steps % _EVERY == 0:
            self._told.rate.assign(self._rate_at(self.spent / self._budget))
            self._now = self._cost()

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.steps += 1
        self.spent += self._now
        self.failed = not math.isfinite(float(logs["loss"]))
        if self.spent >= self._budget - 1e-9 or self.failed:
            self.model.stop_training = True


class Prepared(NamedTuple):
    """A compiled model and endless batches.

    Attributes:
        net: the user's. model: what is fitted. batches: of it. told: its learning rate.
        rate_at: by the share that is spent. rival: where it is one.
    """

    net: keras.Model
    model: keras.Model
    batches: tf.data.Dataset
    told: schedules.Told
    rate_at: Callable[[float], float]
    rival: Rival


def prepared(
    build: Callable[[], keras.Model],
    task: Task,
    method: Method,
    seed: int,
    factor: float,
    budget: float,
    augment: Callable | None,
) -> Prepared:
    """A new net, compiled for a method; a schedule is stretched from so many steps, the budget."""
    keras.utils.set_random_seed(seed)
    net = build()
    if not net.built:
        net(tf.nest.map_structure(lambda part: tf.constant(part[:1]), task.x), training=False)
    rate_at = rates(compat.learning_rate(net.optimizer), factor, budget)
    told = schedules.Told(rate_at(0.0))
    loss, loss_weights = compat.compiled_loss(net)
    if method.sampler is None:
        assert method.rival is not None, "a method has a sampler or is a rival"
        rival = method.rival(task)
        numbers = rival.numbers or (
            lambda seed: passes(np.arange(task.size), task.batch_size, seed)
        )
        source_of = (task.x, task.y) if rival.weights is None else (task.x, task.y, rival.weights)
        _, gather = random_access.opened(source_of)
        batches = numbers(seed).map(gather)
        loss = loss if rival.loss is None else rival.loss
        fitted, rate, own = net, told, {}
    else:
        rival, sampler = Rival(), method.sampler(task)
        fitted = model.ISModel(net, scorer=method.scorer)
        rate = schedules.GainAdapted(told) if method.follows_gain else told
        own = {"sampler": sampler}
    # A schedule goes into the optimizer's place for one.
    chosen = compat.innermost(net.optimizer)
    config = {**chosen.get_config(), "learning_rate": rate}
    compiled = {"loss": loss, "loss_weights": loss_weights, "jit_compile": net.jit_compile}
    fitted.compile(type(chosen).from_config(config), **compiled, **own)
    if method.sampler is not None:
        batches = source.history_sample(
            (task.x, task.y), own["sampler"], task.batch_size, model=fitted, seed=seed
        ).repeat()
    if task.head is not None and task.prior is not None:
        _start_at(net, task.head, task.prior, rival.shift)
    if augment is not None:
        batches = batches.map(lambda x, *rest: (augment(x), *rest))
    if method.sampler is None:
        batches = batches.prefetch(1)
    return Prepared(net, fitted, batches, told, rate_at, rival)


def _start_at(
    net: keras.Model, head: classes.Head, prior: np.ndarray, shift: np.ndarray | None
) -> None:
    """Let a net predict the shares of the classes at first, by the biases of its last layer.

    Args:
        shift: [K] what is added to its logits to predict.
    """
    last = net.layers[-1] if net.layers else None
    bias = getattr(last, "bias", None)
    if not net.built or not isinstance(last, keras.layers.Dense) or bias is None:
        return
    if np.any(compat.value(bias).numpy()):
        return
    wanted = np.log(np.maximum(prior, 1e-7)) - (0.0 if shift is None else shift)
    bias.assign(wanted if len(wanted) == bias.shape[0] else wanted[1:] - wanted[:1])


def rates(rate: Any, factor: float, budget: float) -> Callable[[float], float]:
    """The learning rate by the share of the budget that is spent.

    A number falls linearly to 0; a schedule of `budget` steps is stretched to the run.
    """
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return lambda share: factor * float(rate(share * budget))
    first = factor * float(tf.convert_to_tensor(rate))
    return lambda share: first * (1 - share)


def run(
    build: Callable[[], keras.Model],
    parts: Parts,
    methods: Mapping[str, Method],
    key: tuple[str, float, int, float],
    budget: float,
    costs: Mapping[str, float],
    augment: Callable | None,
) -> Run:
    """Train and evaluate; everything that was made for it is let go.

    Args:
        key: method, length, seed and factor. budget: cost units of length 1.
        costs: of a step of each method that has one.
    """
    name, length, seed, factor = key
    method, whole = methods[name], length * budget
    task = parts.task._replace(costs=costs)
    made = prepared(build, task, method, seed, factor, budget, augment)
    course = Course(made.told, made.rate_at, whole, _cost_of(name, method, made.model, costs))
    most = math.ceil(whole / min([costs[one] for one in method.costs or (name,)]) - 1e-9)
    logs = _fitted(made, max(most, 1), course)
    drawn = logs["importance"][-1] if "importance" in logs else None
    losses = _evaluated(made, parts, course.failed)
    keras.backend.clear_session()
    gc.collect()
    return Run._make([*key, *losses, course.steps, round(course.spent, 3), drawn])


def _fitted(made: Prepared, steps: int, callback: keras.callbacks.Callback) -> dict[str, list]:
    """The logs of so many steps."""
    with warnings.catch_warnings():
        # What was drawn is in the table.
        warnings.filterwarnings("ignore", "nothing was drawn")
        return made.model.fit(
            made.batches, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[callback]
        ).history


def _cost_of(name: str, method: Method, fitted: keras.Model, costs: Mapping) -> Callable[[], float]:
    """Of a step, by the plan that a switch is at."""
    if not method.costs:
        return lambda: costs[name]
    by_plan = [costs[one] for one in method.costs]
    return lambda: by_plan[int(fitted.sampler.decisions.decision.plan)]


def _evaluated(made: Prepared, parts: Parts, failed: bool) -> tuple:
    """chosen, loss, train_loss, error and average precision."""
    head, rival = parts.task.head, made.rival
    if failed:
        return (math.inf, math.inf, math.inf, None if head is None else 1.0, None)
    if head is None:
        found = [_compiled_loss(made.net, *part) for part in parts[1:]]
        return (*found, None, None)
    logs = [_log_probabilities(made.net, head, x) for x, _ in parts[1:]]
    labels = [head.labels(y) for _, y in parts[1:]]
    shift = np.zeros(head.classes) if rival.shift is None else rival.shift
    scale = classes.temperature(logs[0], labels[0]) if rival.fitted else 1.0
    logs = [classes.moved(scale * each, shift) for each in logs]
    losses = [classes.log_loss(*pair) for pair in zip(logs, labels)]
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
    error = float(np.mean(logs[1].argmax(axis=1) != labels[1]))
    return (*losses, error, classes.average_precision(logs[1], labels[1]))


def _log_probabilities(net: keras.Model, head: classes.Head, x: Any) -> np.ndarray:
    found = []
    # Not compiled: each run has a net of its own, of which TensorFlow would warn.
    for part in tf.data.Dataset.from_tensor_slices(x).batch(_EVALUATED_AT_ONCE):
        logs = head.log_probabilities(net(part, training=False))
        found.append(logs.numpy().astype(np.float64))
    return np.concatenate(found)


def _compiled_loss(net: keras.Model, x: Any, y: Any) -> float:
    """As `evaluate` has it."""
    logs = net.evaluate(x, y, batch_size=_EVALUATED_AT_ONCE, verbose=0, return_dict=True)
    return float(logs["loss"]) if math.isfinite(logs["loss"]) else math.inf


# Costs ----------------------------------------------------------------------------------------


class _Seconds(keras.callbacks.Callback):
    """Seconds a step, from the end of the first one on.

    Of processor time where there is no other processor: what else a machine does is not in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []
        alone = not (
            tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU")
        )
        self._clock = time.process_time if alone else time.perf_counter

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.ends.append(self._clock())

    @property
    def of_a_step(self) -> float:
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def measured_costs(
    build: Callable[[], keras.Model],
    task: Task,
    methods: Mapping[str, Method],
    names: Sequence[str],
    augment: Callable | None,
) -> dict[str, float]:
    """Seconds of a step of each method over those of a uniform one, in turn in one process.

    Args:
        names: of methods, the first is uniform sampling.
    """
    made = {n: prepared(build, task, methods[n], 0, 1.0, 1e9, augment) for n in names}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for number in range(_ROUNDS + 1):
        # Turning the order around spreads what a neighbour on the machine takes.
        order = list(names) if number % 2 else list(names)[::-1]
        found = {}
        for name in order:
            seconds, one = _Seconds(), made[name]
            _fitted(one, _TIMED, seconds)
            found[name] = seconds.of_a_step
        if number:  # The first round traces.
            for name in names:
                ratios[name].append(found[name] / found[names[0]])
    keras.backend.clear_session()
    return {name: round(statistics.median(each), 3) for name, each in ratios.items()}
