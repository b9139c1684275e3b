"""Does importance sampling pay for this net on these data? The comparison as a function."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance import arguments, compat, random_access, samplers
from tf_importance.comparison import classes, result, training
from tf_importance.comparison.methods import (
    OTHERS,
    OURS,
    UNIFORM,
    Method,
    Task,
    by_default,
    needs_classes,
)
from tf_importance.comparison.result import Comparison, Row
from tf_importance.comparison.training import Parts, Run

__all__ = ["OTHERS", "OURS", "Comparison", "Row", "Run", "compare"]

# Of uniform sampling, in budgets: the scale of all others.
_LENGTHS = (0.5, 1.0, 2.0)
# Rates are chosen by runs of a seed that no figure is of.
_TUNING_SEED = 1000
_PASSES = 10
_HELD_OUT = 0.2
_SEEN = 4000
# Factors between neighbouring rates, and how many are tried beyond the compiled one at most.
_FACTOR, _FARTHEST = 3.0, 4


def compare(
    build: Callable[[], keras.Model],
    data: Any,
    methods: Iterable[str] | Mapping[str, Callable[[], samplers.Sampler]] | None = None,
    *,
    batch_size: int = 32,
    budget: int | None = None,
    seeds: int = 3,
    rates: Sequence[float] | None = None,
    validation_data: Any = None,
    augment: Callable[[Any], Any] | None = None,
    by: str = "held_out",
    costs: Mapping[str, float] | str | pathlib.Path | None = None,
    out: str | pathlib.Path | None = None,
    verbose: int = 1,
) -> Comparison:
    """Train a net by uniform sampling, by this library and as others do, at equal cost each.

        def build():
            net = keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dense(2)])
            net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            return net

        print(tfi.compare(build, (x, y), budget=2000, out="runs/does_it_pay"))

    * **Cost.** A unit is a uniform step of b. What a step of each method takes in units is measured
      once, in turn with uniform steps, and kept in `out`; given as `costs`, nothing depends on the
      machine's load, and runs repeat to the last digit.
    * **Rates.** Each method, and each length of uniform sampling, has the best of its own, by one
      rule: the compiled learning rate, three times and a third of it, and on in factors of 3 as
      long as that is better; one run each by a seed of its own, chosen on one half of the held-out
      data. Figures are of the other half. A learning rate that is a number falls linearly to 0
      over a run; a schedule is stretched to it.
    * **The start.** Of classes, all begin by predicting their shares in the data, where the last
      layer is a Dense one whose biases are 0: what rebalances classes gains nothing by that.
    * **Scale.** Uniform sampling runs for a half, once and twice the budget. A method saves as much
      as less time than uniform sampling would need for its loss (within a quarter and four times).

    Args:
        build: makes a compiled net: loss and optimizer as you would train it, plain Keras.
        data: `(x, y)`, nests of arrays; a finite `tf.data.Dataset` of examples `(x, y)`, or what
            has random access, as for `history_sample`; both are read into memory.
        methods: names of `tfi.comparison.OURS` and `OTHERS`; or {name: a function that makes a
            sampler}, compared beside uniform sampling alone. By default those that make sense:
            where a class has less than a third of an equal share strata and what else is done
            about rare classes; else fresh scores, memory, both under a switch, and pruning.
        batch_size: b.
        budget: uniform steps of b, the cost of each run; by default 10 passes.
        seeds: runs of each.
        rates: factors of the compiled learning rate to try, in place of that rule.
        validation_data: `(x, y)` that is held out; by default a fifth of the data at random.
        augment: changes the inputs of a batch, behind the draw.
        by: the loss that rates are chosen by and that time is read off: "held_out", or "train",
            that of 4,000 training examples.
        costs: of a step of each method, or an earlier comparison.json, or its folder.
        out: a folder: every run is kept there as it is made, a call that is interrupted goes on,
            and comparison.json, .txt and .png are written at the end.
        verbose: 0 for no progress bar, as in Keras.
    Returns:
        A `Comparison`; `print` shows a table and the verdict.
    Raises:
        TypeError, ValueError: an argument is out of range, the net is not compiled, or `out` has
            runs of another comparison.
    """
    net = _checked(build)
    x, y = _examples(data, "data")
    size = len(tf.nest.flatten(x)[0])
    batch_size = arguments.positive_integer("batch_size", batch_size)
    numbers = range(arguments.positive_integer("seeds", seeds))
    factors = None if rates is None else _factors(rates)
    arguments.one_of("by", by, tuple(result.LOSSES))
    parts = _parts(net, x, y, size, validation_data, batch_size)
    if parts.task.size < batch_size:
        raise ValueError(
            f"there are {parts.task.size} examples to train on, fewer than {batch_size=}. "
            "Give more, or smaller batches."
        )
    by_name = {result.UNIFORM: UNIFORM, **_methods(methods, parts.task)}
    if budget is None:
        budget = _PASSES * -(-parts.task.size // batch_size)
    budget = arguments.positive_integer("budget", budget)
    settings = {
        "examples": size,
        "batch_size": batch_size,
        "budget": budget,
        "seeds": list(numbers),
        "rates": factors,
        "methods": list(by_name),
        "learning_rate": _told_rate(net),
        "parameters": net.count_params(),
        "by": by,
    }
    del net
    kept = _Kept(None if out is None else pathlib.Path(out), settings)
    keys = [(result.UNIFORM, length) for length in _LENGTHS]
    keys += [(name, 1.0) for name in by_name if name != result.UNIFORM]
    measured = [result.UNIFORM, *_measured(by_name)]
    known = {result.UNIFORM: 1.0, **(kept.costs if costs is None else _costs(costs))}
    missing = [name for name in measured if name not in known]
    if missing:
        timed = [result.UNIFORM, *missing]
        known |= training.measured_costs(build, parts.task, {**OURS, **by_name}, timed, augment)
    bar = _Bar(budget, verbose)
    known = {name: known[name] for name in measured}
    kept.start(known)
    step_costs = {**dict.fromkeys(by_name, 1.0), **known}

    asked: set[tuple] = set()

    def run(name: str, length: float, seed: int, factor: float) -> Run:
        key = (name, length, seed, factor)
        found = kept.runs.get(key)
        if found is None:
            found = training.run(build, parts, by_name, key, budget, step_costs, augment)
            kept.add(found)
        if key not in asked:
            asked.add(key)
            bar.add(length)
        return found

    each = sum(length for _, length in keys)
    bar.expect(each * (len(numbers) + (4 if factors is None else len(factors))))
    chosen: dict[tuple[str, float], tuple[float, bool]] = {}
    for name, length in keys:

        def loss(factor: float, name=name, length=length) -> float:
            tried = run(name, length, _TUNING_SEED, factor)
            return tried.train_loss if by == "train" else tried.chosen

        if factors is None:
            chosen[name, length] = _climbed(loss)
        else:
            best = min(factors, key=loss)
            chosen[name, length] = best, best in (factors[0], factors[-1]) and len(factors) > 1
    bar.expect(bar.done + each * len(numbers))
    for seed in numbers:
        for name, length in keys:
            run(name, length, seed, chosen[name, length][0])
    ours = [name for name in by_name if name not in OTHERS and name != result.UNIFORM]
    # What a step of a switch costs changes as it decides.
    shown = {name: cost for name, cost in step_costs.items() if not _costs_vary(by_name, name)}
    found = result.summarized(list(kept.runs.values()), chosen, shown, settings, ours)
    if out is not None:
        found.save(out)
    return found


def _climbed(loss: Callable[[float], float]) -> tuple[float, bool]:
    """The factor of the least loss on a ladder around 1, and whether it is at an end of that."""
    best = min((_FACTOR**step for step in (0, 1, -1)), key=loss)
    up = best > 1
    for step in range(2, _FARTHEST + 1) if best != 1 else ():
        beyond = _FACTOR ** (step if up else -step)
        if not loss(beyond) < loss(best):
            return best, False
        best = beyond
    return best, best != 1


def _costs_vary(by_name: Mapping[str, Method], name: str) -> bool:
    return name in by_name and bool(by_name[name].costs)


# What is given --------------------------------------------------------------------------------


def _checked(build: Any) -> keras.Model:
    """A net as it is built.

    Raises:
        TypeError, ValueError: it is none, or not compiled.
    """
    if not callable(build) or isinstance(build, keras.Model):
        raise TypeError(
            "build must be a function without arguments that makes a compiled keras.Model, a new "
            f"one each time; got {arguments.named(build)}. Put what makes your net into a function."
        )
    net = build()
    if not isinstance(net, keras.Model) or hasattr(net, "datasets"):
        raise TypeError(
            "build must make a plain keras.Model, compiled; compare makes an ISModel of it; got "
            f"{arguments.named(net)}."
        )
    loss, _ = compat.compiled_loss(net)
    if loss is None:
        raise ValueError(
            "build must compile the net with a loss and an optimizer; it did not. Call "
            "net.compile(…) in it."
        )
    return net


def _factors(rates: Any) -> list[float]:
    """Factors of the learning rate, the smallest first."""
    wanted = "positive factors of the learning rate, such as [0.5, 1, 2]"
    found = arguments.listed("rates", rates, wanted)
    if not found:
        raise ValueError(f"rates must be {wanted}; got {arguments.named(rates)}.")

    def fits(factor: float) -> bool:
        return 0 < factor < math.inf

    return sorted(arguments.number("rates", factor, wanted, fits) for factor in found)


def _examples(data: Any, name: str) -> tuple[Any, Any]:
    """(x, y), nests of arrays in memory."""
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"{name} has no end, and is read into memory; give dataset.take(n).")
        spec = data.element_spec
        if not isinstance(spec, tuple) or len(spec) != 2:
            raise TypeError(f"{name} must be a dataset of examples (x, y); got {spec}.")
        return random_access.read(data, name)
    if random_access.is_numbered(data):
        return random_access.first(data)
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(
            f"{name} must be (x, y), nests of arrays, a tf.data.Dataset of examples (x, y), or "
            f"have random access; got {random_access.told(data)}."
        )
    random_access.opened(data)
    return tf.nest.map_structure(np.asarray, random_access.without_lists(data))


def _parts(
    net: keras.Model, x: Any, y: Any, size: int, validation_data: Any, batch_size: int
) -> Parts:
    order = np.random.default_rng(0).permutation(size)
    if validation_data is None:
        count = round(_HELD_OUT * size)
        held_out, order = random_access.rows((x, y), order[:count]), order[count:]
    else:
        held_out = _examples(validation_data, "validation_data")
    others = len(tf.nest.flatten(held_out)[0])
    if others < 2:
        raise ValueError(
            "validation_data must have two examples at least, to choose rates by one; got "
            f"{others}."
        )
    half = np.random.default_rng(1).permutation(others)
    train_x, train_y = random_access.rows((x, y), order)
    units = _units(net, train_x)
    loss, _ = compat.compiled_loss(net)
    head = classes.head_of(loss, train_y, units)
    task = Task(train_x, train_y, len(order), batch_size)
    if head is not None:
        labels = head.labels(train_y)
        if 0 <= labels.min() and labels.max() < head.classes:
            prior = np.bincount(labels, minlength=head.classes) / len(labels)
            task = task._replace(head=head, labels=labels, prior=prior)
    return Parts(
        task,
        chosen=random_access.rows(held_out, half[: others // 2]),
        reported=random_access.rows(held_out, half[others // 2 :]),
        seen=random_access.rows((train_x, train_y), np.arange(min(len(order), _SEEN))),
    )


def _units(net: keras.Model, x: Any) -> int | None:
    """Of a net's output [b, units]; None where it is another."""
    outputs = net(tf.nest.map_structure(lambda part: tf.constant(part[:1]), x), training=False)
    if tf.nest.is_nested(outputs) or outputs.shape.rank != 2:
        return None
    return outputs.shape[-1]


def _told_rate(net: keras.Model) -> Any:
    rate = compat.learning_rate(net.optimizer)
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return type(rate).__name__
    return float(tf.convert_to_tensor(rate))


def _methods(given: Any, task: Task) -> dict[str, Method]:
    if isinstance(given, Mapping):
        return {name: _own(name, make) for name, make in given.items()}
    if isinstance(given, str):
        given = [given]
    known = {**OURS, **OTHERS}
    chosen = by_default(task) if given is None else list(given)
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"methods must be of {', '.join(known)}; got {arguments.named(name)}."
                f"{arguments.meant(name, known)}"
            )
        if needs_classes(name) and task.head is None:
            raise ValueError(
                f"{name!r} is for a net with one output of classes under a plain cross-entropy, "
                "binary, categorical or sparse; leave it out."
            )
    return {name: known[name] for name in chosen}


def _own(name: str, make: Any) -> Method:
    if isinstance(make, samplers.Sampler) or not callable(make):
        raise TypeError(
            f"methods[{name!r}] must be a function that makes a sampler, a new one for each run, "
            f"such as lambda: tfi.samplers.RAIS(); got {arguments.named(make)}."
        )
    if name == result.UNIFORM or name in OTHERS:
        raise ValueError(f"{name!r} is the name of what is compared with; give another.")
    return Method(lambda task: make())


def _measured(by_name: Mapping[str, Method]) -> list[str]:
    """Methods whose steps are timed: those with a sampler, and what a switch chooses from."""
    names: dict[str, None] = {}
    for name, method in by_name.items():
        steps = method.costs or ([name] if method.sampler is not None else [])
        names |= {step: None for step in steps if step != result.UNIFORM}
    return list(names)


def _costs(given: Any) -> dict[str, float]:
    if isinstance(given, Mapping):
        return {name: float(cost) for name, cost in given.items()}
    path = pathlib.Path(given)
    path = path / "comparison.json" if path.is_dir() else path
    return dict(json.loads(path.read_text())["costs"])


# What is kept ---------------------------------------------------------------------------------


class _Kept:
    """Runs and costs in a folder.

    Args:
        folder: None to keep nothing. settings: of this comparison.
    Raises:
        ValueError: the folder has another one.
    """

    def __init__(self, folder: pathlib.Path | None, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, dict(settings)
        self.costs: dict[str, float] = {}
        self.runs: dict[tuple, Run] = {}
        if folder is None or not (folder / "settings.json").exists():
            return
        before = json.loads((folder / "settings.json").read_text())
        self.costs = before.pop("costs")
        # More seeds and other methods may come; the rest makes the runs what they are.
        changed = [
            name
            for name, value in before.items()
            if name not in ("seeds", "methods", "rates", "by") and settings[name] != value
        ]
        if changed:
            told = ", ".join(f"{name} {before[name]} and not {settings[name]}" for name in changed)
            raise ValueError(
                f"out={str(folder)!r} has the runs of another comparison, of {told}; give another "
                "folder, or remove it."
            )
        path = folder / "runs.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            one = Run(**json.loads(line))
            self.runs[one[:4]] = one

    def start(self, costs: Mapping[str, float]) -> None:
        """Write down what the runs will be."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # Of fewer methods than before there are fewer costs.
        others = any(self.costs.get(name, cost) != cost for name, cost in costs.items())
        if self.runs and others:
            raise ValueError(
                f"out={str(self._folder)!r} has runs by other costs; leave costs out, or give "
                "another folder."
            )
        text = json.dumps({**self._settings, "costs": {**self.costs, **costs}}, indent=2)
        (self._folder / "settings.json").write_text(text + "\n")

    def add(self, run: Run) -> None:
        self.runs[run[:4]] = run
        if self._folder is not None:
            with (self._folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps(run._asdict()) + "\n")


class _Bar:
    """Keras's progress bar in cost units, with the time that is left.

    Args:
        budget: cost units of a run of length 1. verbose: 0 for none.
    """

    def __init__(self, budget: int, verbose: int) -> None:
        self._budget, self.done = budget, 0.0
        self._bar = keras.utils.Progbar(None, verbose=verbose, unit_name="unit")

    def expect(self, budgets: float) -> None:
        """So many budgets in all."""
        self._bar.target = round(budgets * self._budget)

    def add(self, length: float) -> None:
        """A run of so many budgets is done."""
        self.done += length
        done = round(self.done * self._budget)
        # Where more rates are tried than was expected.
        self._bar.target = max(self._bar.target, done)
        self._bar.update(done)
