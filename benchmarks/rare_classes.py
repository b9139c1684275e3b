"""What rare classes cost: python -m benchmarks.rare_classes [--tasks=mnist_1,…]

Of each task and method: how much it costs to reach the test log loss, and the average precision,
that uniform sampling has after 4,000 steps. One unit is a uniform step of b = 64; scoring a
pre-sample of 4b counts by the measured seconds of a forward pass. On the ladder of 250, 500, 1,000,
2,000, 4,000, 8,000 steps, Adam, linear decay to 0 at the end of each run, the shortest run counts
whose median over three seeds is as good; a method that never is counts as 8,000 steps, and has ≥
before it.

The learning rate of each method and rung is the best of a grid by the validation log loss, with a
seed of its own, sought from the best of the rung before in factors of about 3; so is the rare share
of down_sampled, of 10, 25 and 50 %, and focal's γ of 1 and 2. A method climbs until it has reached
both; uniform sampling, the whole ladder.

Runs are kept in --out/TASK.jsonl as they are made, and a command that is interrupted goes on there.
Several tasks can be run by several processes. --report makes --out/report.json and .md of what is
there.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import command, measure
from reports import figures
from trainers import nets, rare_classes
from trainers.datasets import made_up, rare
from trainers.rare_sampling import METHODS

FLAGS = flags.FLAGS
flags.DEFINE_list("tasks", [], "Tasks; all by default.")
flags.DEFINE_list(
    "methods", [], "Methods; by default all but fixed_strata, log_odds and logit_adjusted."
)
flags.DEFINE_integer("seeds", 3, "Runs of each method.")
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_boolean("report", False, "Run nothing; report on what is there.")
flags.DEFINE_string("out", "runs/benchmarks/rare_classes", "Where runs and results go.")

BATCH_SIZE = 64
LADDER = (250, 500, 1000, 2000, 4000, 8000)
_OF_UNIFORM = 4000
_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_TUNING_SEED = 1000
# Trained on logits that are moved by constants, a net is what it is by uniform sampling.
_LEFT_OUT = ("fixed_strata", "log_odds", "logit_adjusted")
_SCORED = ("scored", "scored_strata")


class Task(NamedTuple):
    """A data set and a net."""

    dataset: str
    net: str
    options: Mapping[str, Any] = {}


TASKS = {
    "flights_late": Task("flights_late", "flights_mlp", {"split": "rows"}),
    "flights_late_days": Task("flights_late", "flights_mlp", {"split": "days"}),
    "flights_cancelled": Task("flights_cancelled", "flights_mlp", {"split": "rows"}),
    "mnist_10": Task("mnist", "mlp_128", {"share": 0.0975}),
    "mnist_1": Task("mnist", "mlp_128", {"share": 0.01}),
    "mnist_01": Task("mnist", "mlp_128", {"share": 0.001}),
    "cifar10_1": Task("cifar10", "cnn", {"share": 0.01}),
    "cifar10_long_tail": Task("cifar10", "cnn", {"long_tail": 100.0}),
}


class Choice(NamedTuple):
    """What is tuned; `own` is the rare share of down_sampled or focal's γ, else None."""

    rate: float
    own: float | None = None


class Run(NamedTuple):
    """One training and what it gave."""

    method: str
    steps: int
    seed: int
    rate: float
    own: float | None
    validation_loss: float
    test_loss: float
    average_precision: float
    calibration_error: float
    scored: float

    @property
    def of(self) -> tuple:
        return self[:5]


_OWN = {"down_sampled": ("rare_share", (0.25, 0.1, 0.5)), "focal": ("gamma", (2.0, 1.0))}
_OWN |= dict.fromkeys(("fixed_strata", "log_odds"), ("rare_share", (0.25, 0.1, 0.4)))


class Rate(keras.callbacks.Callback):
    """Lets the learning rate fall linearly to 0, and counts the steps that were scored."""

    def __init__(self, told: tf.Variable, steps: int) -> None:
        super().__init__()
        self._told, self._steps, self._rate = told, steps, float(told)
        self._step, self.scored = 0, 0

    def on_train_batch_begin(self, batch, logs=None) -> None:
        if self._step % 8 == 0:
            self._told.assign(self._rate * (1 - self._step / self._steps))
            decisions = getattr(self.model.sampler, "decisions", None)
            if decisions is not None:
                self.scored += 8 * (int(decisions.decision.read().plan) == 2)
        self._step += 1


def train(task: Task, data: rare.Rare, method: str, steps: int, seed: int, choice: Choice) -> Run:
    """One training, evaluated at its end."""
    keras.utils.set_random_seed(seed)
    own = {} if choice.own is None else {_OWN[method][0]: choice.own}
    settings = settings_of(task, method, seed, learning_rate=choice.rate, **own)
    net = nets.build(task.net, data.train.x.shape[1:], data.num_classes)
    prepared = METHODS[method].prepare(settings, net, data)
    rate = Rate(prepared.told_rate, steps)
    prepared.model.fit(
        prepared.batches, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[rate]
    )
    predict = rare_classes.Predictor(net, METHODS[method], data)
    validation = rare_classes.evaluation(predict, data.validation)
    test = rare_classes.evaluation(predict, data.test)
    keras.backend.clear_session()
    scored = 1.0 if method in _SCORED else rate.scored / steps
    return Run(
        *(method, steps, seed, *choice, _finite(validation.loss), _finite(test.loss)),
        *(test.average_precision, test.calibration_error, scored),
    )


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else 1e9


def settings_of(task: Task, method: str, seed: int, **given: Any) -> flags.FlagValues:
    """The trainer's flags of a run."""
    values = flags.FlagValues()
    rare_classes.define(values)
    told = {"method": method, "batch_size": BATCH_SIZE, "seed": seed, **given}
    values(["run", *(f"--{name}={value}" for name, value in told.items())])
    if method.startswith("switched"):
        values(["run", "--follow_gain", "--gain_ceiling=1"])
    return values


class Runs:
    """The runs of a task, kept in a file; each is made once."""

    def __init__(self, path: pathlib.Path, make: Callable[..., Run] | None = None) -> None:
        self._path, self._make = path, make
        lines = path.read_text().splitlines() if path.exists() else []
        self._found = {run.of: run for run in (Run(**json.loads(line)) for line in lines)}

    def __iter__(self) -> Iterator[Run]:
        return iter(self._found.values())

    def get(self, method: str, steps: int, seed: int, choice: Choice) -> Run:
        """The run, made now where it is not there."""
        key = (method, steps, seed, *choice)
        if key not in self._found:
            run = self._make(method, steps, seed, choice)
            with self._path.open("a") as file:
                file.write(json.dumps(run._asdict()) + "\n")
            self._found[key] = run
            which = f"{method} {steps} {choice.rate:g} {choice.own or ''} seed {seed}"
            told = f"{run.test_loss:.5f}, average precision {run.average_precision:.3f}"
            print(f"  {which}: {told}", flush=True)
        return self._found[key]


class Plan(NamedTuple):
    """How far methods climb, among which learning rates, and how often each rung is run."""

    ladder: Sequence[int] = LADDER
    rates: Sequence[float] = _RATES
    seeds: int = 3


_WHOLE = Plan()


def tuned(runs: Runs, method: str, steps: int, start: Choice, rates=_RATES) -> Choice:
    """The best choice by validation: its own value at the rate so far, then up or down in rates."""

    def loss(choice: Choice) -> float:
        return runs.get(method, steps, _TUNING_SEED, choice).validation_loss

    own = _OWN[method][1] if method in _OWN else (None,)
    best = min((start._replace(own=one) for one in own), key=loss)
    for step in (1, -1):
        while 0 <= (place := rates.index(best.rate) + step) < len(rates):
            other = best._replace(rate=rates[place])
            if loss(other) >= loss(best):
                break
            best = other
    return best


class Rung(NamedTuple):
    """A method's runs of one length: medians, and ranges, over the seeds."""

    steps: int
    choice: Choice
    loss: float
    losses: tuple[float, float]
    average_precision: float
    precisions: tuple[float, float]
    calibration_error: float
    scored: float


def rung(found: list[Run]) -> Rung:
    """What runs that differ by their seeds say."""

    def of(name: str) -> list[float]:
        return [getattr(run, name) for run in found]

    median = {name: statistics.median(of(name)) for name in Run._fields[6:]}
    return Rung(
        steps=found[0].steps,
        choice=Choice(found[0].rate, found[0].own),
        loss=median["test_loss"],
        losses=(min(of("test_loss")), max(of("test_loss"))),
        average_precision=median["average_precision"],
        precisions=(min(of("average_precision")), max(of("average_precision"))),
        calibration_error=median["calibration_error"],
        scored=median["scored"],
    )


def climbed(runs: Runs, method: str, target: Rung | None, plan: Plan = _WHOLE) -> list[Rung]:
    """The rungs of a method until it is as good as the target in both, or the ladder ends."""
    choice, found = Choice(plan.rates[len(plan.rates) // 2]), []
    for steps in plan.ladder:
        choice = tuned(runs, method, steps, choice, plan.rates)
        found.append(rung([runs.get(method, steps, seed, choice) for seed in range(plan.seeds)]))
        if target is not None and all(any(map(good, found)) for good in as_good_as(target)):
            break
    return found


def as_good_as(target: Rung) -> tuple[Callable[[Rung], bool], Callable[[Rung], bool]]:
    """Whether a rung has the target's log loss, and whether it has its average precision."""
    return (
        lambda one: one.loss <= target.loss,
        lambda one: one.average_precision >= target.average_precision,
    )


def target_of(uniform: list[Rung]) -> Rung:
    """What uniform sampling has after 4,000 steps, or after as many as there are."""
    return next((one for one in uniform if one.steps == _OF_UNIFORM), uniform[-1])


def cost(rungs: list[Rung], is_good: Callable[[Rung], bool], scoring: float) -> tuple[float, bool]:
    """Units to the first rung that is good, and whether there is one."""
    for one in rungs:
        if is_good(one):
            return one.steps * (1 + scoring * one.scored), True
    return float(LADDER[-1]), False


def scoring_cost(task: Task, data: rare.Rare) -> float:
    """Seconds of a forward pass of 4b over those of a uniform step of b."""
    net = nets.build(task.net, data.train.x.shape[1:], data.num_classes)
    prepared = METHODS["uniform"].prepare(settings_of(task, "uniform", 0), net, data)
    x, y = (part[: 4 * BATCH_SIZE] for part in (data.train.x, data.train.y))
    x = tf.constant(np.resize(x, (4 * BATCH_SIZE, *x.shape[1:])))
    batch = x[:BATCH_SIZE], tf.constant(np.resize(y, BATCH_SIZE))
    model = prepared.model
    step = tf.function(model.train_step, reduce_retracing=True)
    forward = tf.function(lambda: net(x, training=False))
    model.optimizer.build(model.trainable_variables)
    repeats = 2 if FLAGS.short else 100
    found = measure.interleaved(
        {
            "step": lambda: measure.call_seconds(lambda: step(batch), repeats),
            "forward": lambda: measure.call_seconds(forward, repeats),
        },
        rounds=1 if FLAGS.short else 7,
        say=lambda line: None,
    )
    return statistics.median(one["forward"] / one["step"] for one in found)


def run(name: str, methods: list[str], out: pathlib.Path) -> None:
    """All runs of a task that are not there yet."""
    task = TASKS[name]
    data = load(task)
    (out / f"{name}.json").write_text(json.dumps({"scoring": scoring_cost(task, data)}) + "\n")
    runs = Runs(out / f"{name}.jsonl", functools.partial(train, task, data))
    plan = Plan(seeds=FLAGS.seeds)
    if FLAGS.short:
        plan = Plan(ladder=LADDER[:1], rates=_RATES[1:2], seeds=1)
    target = target_of(climbed(runs, "uniform", None, plan))
    for method in methods:
        if method != "uniform":
            climbed(runs, method, target, plan)


def load(task: Task) -> rare.Rare:
    """A task's data, made up under --short."""
    if FLAGS.short:
        return made_up.rare_classes(task.dataset, "long_tail" in task.options)
    return rare.load(task.dataset, FLAGS.data_dir, **task.options)


# Results ----------------------------------------------------------------------------------


def report(out: pathlib.Path) -> dict[str, Any]:
    """Of each task what each method cost, and its rungs; as far as the runs go."""
    found = {}
    for path in sorted(out.glob("*.jsonl")):
        by_method: dict[str, list[Rung]] = {}
        final = [run for run in Runs(path) if run.seed != _TUNING_SEED]
        final.sort(key=lambda run: (run.method, run.steps, run.rate, str(run.own)))
        for (method, *_), same in itertools.groupby(
            final, key=lambda run: (run.method, run.steps, run.rate, run.own)
        ):
            by_method.setdefault(method, []).append(rung(list(same)))
        if "uniform" in by_method:
            scoring = json.loads(path.with_suffix(".json").read_text())["scoring"]
            found[path.stem] = {
                "scoring": scoring,
                "methods": costs(by_method, scoring),
            }
    return {"tasks": found}


def costs(by_method: Mapping[str, list[Rung]], scoring: float) -> dict[str, Any]:
    """Cost to uniform sampling's loss and precision of 4,000 steps, by method, with its rungs."""
    goals = as_good_as(target_of(by_method["uniform"]))
    result = {}
    for method, rungs in by_method.items():
        by_loss, by_precision = (cost(rungs, good, scoring) for good in goals)
        result[method] = {
            "cost": by_loss[0],
            "reached": by_loss[1],
            "cost_of_precision": by_precision[0],
            "precision_reached": by_precision[1],
            "rungs": [one._asdict() for one in rungs],
        }
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """Two tables a task: costs, and log losses by steps."""
    parts = []
    for name, task in result["tasks"].items():
        uniform = task["methods"]["uniform"]
        rows, losses = [], []
        order = sorted(task["methods"], key=lambda method: task["methods"][method]["cost"])
        for method in order:
            one = task["methods"][method]
            rows.append(
                {
                    "method": method,
                    "cost": _at_least(one["cost"], one["reached"]),
                    "times_less": f"{uniform['cost'] / one['cost']:.2f}",
                    "to_its_precision": _at_least(
                        one["cost_of_precision"], one["precision_reached"]
                    ),
                    "precision_times_less": (
                        f"{uniform['cost_of_precision'] / one['cost_of_precision']:.2f}"
                    ),
                }
            )
            by_steps = {rung["steps"]: rung for rung in one["rungs"]}
            told = {str(steps): _rung_text(by_steps.get(steps)) for steps in LADDER}
            losses.append({"method": method, **told})
        parts.append(f"## {name}\n\nScoring a pre-sample: {task['scoring']:.2f} steps.\n")
        parts.append(figures.markdown(rows) + "\n")
        parts.append("Log loss (range; average precision; calibration error; rate) by steps:\n")
        parts.append(figures.markdown(losses) + "\n")
    return "\n".join(parts)


def _at_least(value: float, reached: bool) -> str:
    return f"{value:.0f}" if reached else f"≥ {value:.0f}"


def _rung_text(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    low, high = one["losses"]
    rate, own = one["choice"]
    chosen = f"{rate:g}" if own is None else f"{rate:g}, {own:g}"
    return (
        f"{one['loss']:.4f} ({low:.4f} to {high:.4f}; {one['average_precision']:.2f}; "
        f"{one['calibration_error']:.4f}; {chosen})"
    )


def main(_) -> None:
    tf.get_logger().setLevel("ERROR")
    command.shorten(tasks=["mnist_1"], methods=["strata", "down_sampled"])
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    unknown = {*FLAGS.tasks} - {*TASKS} | {*FLAGS.methods} - {*METHODS}
    if unknown:
        raise app.UsageError(
            f"unknown: {', '.join(sorted(unknown))}; tasks are {', '.join(TASKS)}, methods "
            f"{', '.join(METHODS)}."
        )
    if not FLAGS.report:
        methods = FLAGS.methods or [name for name in METHODS if name not in _LEFT_OUT]
        for name in FLAGS.tasks or TASKS:
            print(name, flush=True)
            run(name, methods, out)
    result = report(out)
    measure.write(str(out / "report.json"), result)
    (out / "report.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    app.run(main)
