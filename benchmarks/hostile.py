"""What a Gain switch costs where drawing does not pay: python -m benchmarks.hostile [--nets=…]

Each net is trained uniformly at its own best rate (--rates, by three seeds), and drawn from at that
one, under `tfi.switches.Gain` and `GainAdapted`, for as many cost units: one is a uniform step, and
a drawn one counts 1 + (B/b)/3, as the paper has it. Rates fall linearly to 0 at the end of the
budget; drawn training ends there too, since a first run says what its steps cost. By train loss in
inference, drawn over uniform: the geometric mean over seeds, and its standard error. Examples are
shuffled across passes, since whoever ends with a pass ends lower (by 2 % with dropout) than whoever
has read a few groups more.

Runs are kept in --out.jsonl as they are made, and a command that is interrupted goes on there.
"""

from __future__ import annotations

import math
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure, runs
from reports import figures

FLAGS = flags.FLAGS
flags.DEFINE_list("nets", [], "Nets; all by default.")
flags.DEFINE_list("rates", ["0.1", "0.2", "0.4", "0.8", "1.6"], "Learning rates to choose from.")
flags.DEFINE_integer("steps", 2000, "Cost units of a training.")
flags.DEFINE_integer("seeds", 16, "Pairs of runs.")
flags.DEFINE_string("out", "runs/benchmarks/hostile.json", "Where the result goes.")

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIZE, PRESAMPLE = 32, 128
SCORING = PRESAMPLE / SIZE / 3
EXAMPLES = 8000


class Case(NamedTuple):
    """A net, its labels, and what it is scored by; None for the upper bound."""

    middle: Callable[[], list[keras.layers.Layer]]
    noise: float = 0.0
    scorer: Callable | None = None


CASES = {
    "dropout": Case(lambda: [L.Dropout(0.5)]),
    "weighted batch norm": Case(lambda: [tfi.layers.BatchNormalization()]),
    "constant scorer": Case(list, scorer=runs.equal_scores),
    "label noise": Case(list, noise=0.3),
    "noise in the net": Case(lambda: [L.GaussianNoise(1.0)]),
}


class Run(NamedTuple):
    """One training: its loss at the end, what it cost, and the share of drawn batches."""

    net: str
    rate: float
    way: str
    budget: int
    seed: int
    loss: float
    cost: float
    drawn: float


def data_of(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, so many of them random."""
    x, y, rng = runs.largest_sums(EXAMPLES)
    return x, np.where(rng.random(EXAMPLES) < noise, rng.integers(0, 5, EXAMPLES), y)


def train(name: str, rate: float, way: str, budget: int, seed: int) -> Run:
    """Train a net, drawn or uniformly, until its schedule of so many steps ends."""
    case = CASES[name]
    x, y = data_of(case.noise)
    keras.utils.set_random_seed(seed)
    hidden = [L.Dense(128, "relu"), *case.middle()]
    net = keras.Sequential([keras.Input((20,)), *hidden, L.Dense(5)])
    schedule: Any = keras.optimizers.schedules.PolynomialDecay(rate, budget, 0.0)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).repeat().shuffle(EXAMPLES, seed=seed)
    model = net
    if way == "drawn":
        model = tfi.ISModel(net)
        schedule = tfi.schedules.GainAdapted(schedule)
    model.compile(keras.optimizers.SGD(schedule), LOSS)
    if way == "drawn":
        switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=SCORING)
        batches = batches.apply(
            tfi.importance_sample(model, SIZE, PRESAMPLE, switch=switch, scorer=case.scorer)
        )
    else:
        batches = batches.batch(SIZE)
    steps = []
    counted = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(1))
    most = budget if way == "uniform" else 3 * budget
    history = model.fit(
        batches, steps_per_epoch=most, verbose=0, shuffle=None, callbacks=[counted]
    ).history
    drawn = float(history.get("importance", [0.0])[0])
    logits = net(x, training=False)
    loss = float(np.mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)))
    keras.backend.clear_session()
    return Run(name, rate, way, budget, seed, loss, len(steps) * (1 + SCORING * drawn), drawn)


def _told(run: Run) -> str:
    return f"{' '.join(map(str, run[:5]))}: {run.loss:.4g}"


def compared(name: str, kept: runs.Runs) -> dict[str, Any]:
    """Drawn over uniform training at equal cost."""
    budget = FLAGS.steps
    tried = range(min(FLAGS.seeds, 3))
    rate = min(
        map(float, FLAGS.rates),
        key=lambda rate: statistics.median(
            kept.get(name, rate, "uniform", budget, seed).loss for seed in tried
        ),
    )
    ratios, costs, shares = [], [], []
    for seed in range(FLAGS.seeds):
        uniform = kept.get(name, rate, "uniform", budget, seed)
        first = kept.get(name, rate, "drawn", budget, seed)
        fitting = round(budget * budget / first.cost)
        drawn = kept.get(name, rate, "drawn", fitting, seed)
        ratios.append(math.log(drawn.loss / uniform.loss))
        costs.append(drawn.cost / budget)
        shares.append(drawn.drawn)
    return {
        "rate": rate,
        "of_uniform": round(math.exp(statistics.mean(ratios)), 3),
        "error": round(float(np.std(ratios)) / math.sqrt(max(len(ratios) - 1, 1)), 3),
        "cost": round(statistics.median(costs), 3),
        "drawn": round(statistics.median(shares), 3),
    }


def markdown(result: dict[str, Any]) -> str:
    """A row for each net."""
    rows = [
        {
            "net": name,
            "rate": f"{found['rate']:g}",
            "train loss over uniform's": f"{found['of_uniform']:.3f} ± {found['error']:.3f}",
            "cost": f"{found['cost']:.2f}",
            "batches drawn": f"{100 * found['drawn']:.0f} %",
        }
        for name, found in result.items()
    ]
    return figures.markdown(rows)


def main(_) -> None:
    tf.get_logger().setLevel("ERROR")
    command.shorten(steps=40, seeds=1, nets=["dropout"], rates=["0.1"])
    unknown = {*FLAGS.nets} - {*CASES}
    if unknown:
        raise app.UsageError(f"unknown: {', '.join(unknown)}; nets are {', '.join(CASES)}.")
    out = pathlib.Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = runs.Runs(out.with_suffix(".jsonl"), Run, train, _told)
    result = {name: compared(name, kept) for name in FLAGS.nets or CASES}
    measure.write(FLAGS.out, {"steps": FLAGS.steps, "results": result})
    print(markdown(result))


if __name__ == "__main__":
    app.run(main)
