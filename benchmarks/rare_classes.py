"""What rare classes cost: python -m benchmarks.rare_classes [--tasks=mnist_1,…]

Of each task and method: how much it costs to reach the test log loss, and the average precision,
that uniform sampling has at its best within 4,000 steps. One unit is a uniform step of b = 64;
scoring a pre-sample of 4b counts by the measured seconds of a forward pass. On the ladder of 250,
500, 1,000, 2,000, 4,000, 8,000 steps, Adam, linear decay to 0 at the end of each run, the shortest
run counts whose median over three seeds is as good; a method that never is counts as 8,000 steps,
and has ≥ before it.

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
import gc
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import command, ladder, measure
from benchmarks.ladder import LADDER, Choice, Run
from reports import figures
from trainers import nets, rare_classes
from trainers.datasets import made_up, rare
from trainers.rare_sampling import METHODS

# Fixed shares, to compare learned ones with; logits that are moved by constants, by which a net is
# what it is by uniform sampling; and a stream of what is in memory.
_LEFT_OUT = ("fixed_strata", "log_odds", "logit_adjusted", "streamed_strata")
FLAGS = flags.FLAGS
flags.DEFINE_list("tasks", [], "Tasks; all by default.")
flags.DEFINE_list("methods", [], f"Methods; by default all but {', '.join(_LEFT_OUT)}.")
flags.DEFINE_integer("seeds", 3, "Runs of each method.")
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_boolean("report", False, "Run nothing; report on what is there.")
flags.DEFINE_string("out", "runs/benchmarks/rare_classes", "Where runs and results go.")

BATCH_SIZE = 64
_SCORED = ("scored", "scored_strata")


class Task(NamedTuple):
    """A data set and a net."""

    dataset: str
    net: str
    options: Mapping[str, Any] = {}


# What a method has beside a learning rate: a flag, and its values, the likeliest first.
_OWN = {"down_sampled": ("rare_share", (0.25, 0.1, 0.5)), "focal": ("gamma", (2.0, 1.0))}
_OWN |= dict.fromkeys(("fixed_strata", "log_odds"), ("rare_share", (0.25, 0.1, 0.4)))
TASKS = {
    "flights_late": Task("flights_late", "flights_mlp", {"split": "rows"}),
    "flights_late_days": Task("flights_late", "flights_mlp", {"split": "days"}),
    "flights_cancelled": Task("flights_cancelled", "flights_mlp", {"split": "rows"}),
    "mnist_10": Task("mnist", "mlp_128", {"share": 0.0975}),
    "mnist_1": Task("mnist", "mlp_128", {"share": 0.01}),
    "mnist_01": Task("mnist", "mlp_128", {"share": 0.001}),
    "cifar10_1": Task("cifar10", "strided_cnn", {"share": 0.01}),
    "cifar10_long_tail": Task("cifar10", "strided_cnn", {"long_tail": 100.0}),
}


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
    # The data set is in the graph of its pipeline, which holds itself.
    gc.collect()
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
    if method in ("switched_strata", "streamed_strata"):
        values(["run", "--follow_gain", "--gain_ceiling=1"])
    return values


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
    rounds = 1 if FLAGS.short else 7
    return measure.scoring_cost(lambda: step(batch), forward, repeats, rounds)


def run(name: str, methods: list[str], out: pathlib.Path) -> None:
    """All runs of a task that are not there yet."""
    task = TASKS[name]
    data = load(task)
    (out / f"{name}.json").write_text(json.dumps({"scoring": scoring_cost(task, data)}) + "\n")
    runs = ladder.Runs(out / f"{name}.jsonl", functools.partial(train, task, data))
    own = {method: values for method, (_, values) in _OWN.items()}
    plan = ladder.Plan(own, seeds=FLAGS.seeds)
    if FLAGS.short:
        plan = ladder.Plan(ladder=LADDER[:1], rates=ladder.RATES[1:2], seeds=1)
    target = ladder.target_of(ladder.climbed(runs, "uniform", None, plan))
    for method in methods:
        if method != "uniform":
            ladder.climbed(runs, method, target, plan)


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
        by_method = ladder.by_method(ladder.Runs(path))
        if "uniform" in by_method:
            scoring = json.loads(path.with_suffix(".json").read_text())["scoring"]
            methods = ladder.costs(by_method, scoring)
            found[path.stem] = {"scoring": scoring, "methods": methods}
    return {"tasks": found}


def markdown(result: Mapping[str, Any]) -> str:
    """What each method cost on each task, and a table of log losses and of precisions for each."""
    tasks = result["tasks"]
    parts = ["Cost to uniform sampling's log loss (average precision) within 4,000 steps:\n"]
    methods = {method: None for task in tasks.values() for method in task["methods"]}
    rows = []
    for method in methods:
        found = {name: task["methods"].get(method) for name, task in tasks.items()}
        told = {name: "" if one is None else _costs_text(one) for name, one in found.items()}
        rows.append({"method": method, **told})
    scoring = {name: f"{task['scoring']:.2f}" for name, task in tasks.items()}
    parts.append(figures.markdown([*rows, {"method": "scoring, in steps", **scoring}]) + "\n")
    for name, task in tasks.items():
        for what, of in (
            ("log loss: median (range)", _loss_text),
            ("average precision; calibration error; rate (and share or γ)", _others_text),
        ):
            rows = []
            for method, one in task["methods"].items():
                by_steps = {rung["steps"]: of(rung) for rung in one["rungs"]}
                told = {str(steps): by_steps.get(steps, "") for steps in LADDER}
                rows.append({"method": method, **told})
            parts += [f"{name}, {what}\n", figures.markdown(rows) + "\n"]
    return "\n".join(parts)


def _costs_text(one: Mapping[str, Any]) -> str:
    by_loss = _at_least(one["cost"], one["reached"])
    return f"{by_loss} ({_at_least(one['cost_of_precision'], one['precision_reached'])})"


def _at_least(value: float, reached: bool) -> str:
    return f"{value:,.0f}" if reached else f"≥ {value:,.0f}"


def _loss_text(rung: Mapping[str, Any]) -> str:
    low, high = rung["losses"]
    return f"{rung['loss']:.4f} ({low:.4f} to {high:.4f})"


def _others_text(rung: Mapping[str, Any]) -> str:
    rate, own = rung["choice"]
    chosen = f"{rate:g}" if own is None else f"{rate:g}, {own:g}"
    return f"{rung['average_precision']:.2f}; {rung['calibration_error']:.4f}; {chosen}"


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
