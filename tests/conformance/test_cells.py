"""Each cell of the table: the step that Keras makes of the drawn examples, or a refusal."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.conformance import table
from tests.conformance.drawn import INDICES, WEIGHTS, Given, b, equal_scores, resampled

CELLS = table.cells()
OWN = np.random.default_rng(1).gamma(1.0, 1.0, table.N).astype("float32")


def by_output(task, value):
    """The value for each output, where there are several."""
    if not task.outputs:
        return value
    return (
        dict.fromkeys(task.outputs, value) if task.by_name else tuple(value for _ in task.outputs)
    )


def labels_of(task, loss):
    classes = task.classes
    return by_output(task, classes if loss.labels == "classes" else table.one_hot(classes))


def sample_weights(task, form):
    rng = np.random.default_rng(2)
    if form == "none":
        return None
    if form == "elements":
        return rng.gamma(1.0, 1.0, (table.N, *task.inner)).astype("float32")
    if form == "by output":
        parts = [rng.gamma(1.0, 1.0, table.N).astype("float32") for _ in task.outputs]
        return dict(zip(task.outputs, parts)) if task.by_name else tuple(parts)
    return OWN[:, None] if form == "[n, 1]" else OWN


def compile_args(cell, task):
    def metrics(name):
        make = table.METRICS[table.LOSSES[cell.loss].labels][cell.metric]
        if not task.outputs:
            return [make(name=name)]
        each = [[make(name=name)] for _ in task.outputs]
        return dict(zip(task.outputs, each)) if task.by_name else each

    if isinstance(table.METRICS[table.LOSSES[cell.loss].labels][cell.metric](name="m"), str):
        kinds = {"metrics": metrics("m")}
    else:
        kinds = {"metrics": metrics("m"), "weighted_metrics": metrics("w")}
    return {"optimizer": keras.optimizers.SGD(0.5), "jit_compile": False, **kinds}


def losses_of(cell, task):
    loss = by_output(task, table.LOSSES[cell.loss].make())
    return list(loss) if isinstance(loss, tuple) else loss


def ours(cell, task, net, y, own):
    model = tfi.ISModel(net)
    if cell.route == table.ROUTES[0]:
        model.compile(loss=losses_of(cell, task), sampler=Given(), **compile_args(cell, task))
        y = list(y) if isinstance(y, tuple) else y
        fitted = model.fit(task.x, y, sample_weight=own, batch_size=b, steps_per_epoch=1, verbose=0)
    else:
        model.compile(loss=losses_of(cell, task), **compile_args(cell, task))
        parts = (task.x, y) if own is None else (task.x, y, own)
        sampled = tfi.importance_sample(
            model,
            b,
            table.N,
            tau_threshold="always",
            scorer=equal_scores,
            resampling=resampled,
            score_in="step" if cell.route == table.ROUTES[2] else "pipeline",
        )
        fitted = model.fit(tf.data.Dataset.from_tensor_slices(parts).apply(sampled), verbose=0)
    return {name: values[-1] for name, values in fitted.history.items()}


def of_each(weights, task):
    """Weights [b, …], for each value of a loss."""
    shape = (b, *task.inner)
    return np.broadcast_to(
        weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape
    )


def plain(cell, task, net, y, own):
    """Keras's own step on the drawn examples, weighted by hand; and its metrics."""

    def drawn(nest):
        return tf.nest.map_structure(lambda part: part[INDICES], nest)

    def weighted(part):
        part = part[:, 0] if part.ndim == 2 and part.shape[1] == 1 else part
        return of_each(part[INDICES] * WEIGHTS.reshape(-1, *[1] * (part.ndim - 1)), task)

    x, labels = drawn(task.x), drawn(y)
    weights = of_each(WEIGHTS, task)
    if own is None:
        own = np.ones(table.N, np.float32)
    own = tf.nest.map_structure(weighted, own)
    if task.outputs and not tf.nest.is_nested(own):
        own = by_output(task, own)
    outputs = net(x)
    found = {}
    make = table.METRICS[table.LOSSES[cell.loss].labels][cell.metric]
    if not task.outputs and not isinstance(make(name="m"), str):
        for name, kind in (("m", weights), ("w", own)):
            metric = make(name=name)
            metric.update_state(labels, outputs, sample_weight=kind)
            found[name] = float(metric.result())
    net.compile(keras.optimizers.SGD(0.5), losses_of(cell, task), run_eagerly=True)
    as_lists = [list(part) if isinstance(part, tuple) else part for part in (x, labels, own)]
    net.train_on_batch(as_lists[0], as_lists[1], sample_weight=as_lists[2])
    return found


def in_make_test(number: int) -> bool:
    return number % 10 == 0


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, id=cell.name, marks=[] if in_make_test(i) else [pytest.mark.slow])
        for i, cell in enumerate(CELLS)
    ],
)
def test_it_is_keras_own_step_or_refused(cell):
    task = table.TASKS[cell.task]
    if table.LOSSES[cell.loss].only_keras_3 and not table.KERAS_3:
        pytest.skip("Keras 2 has no such loss")
    y, own = labels_of(task, table.LOSSES[cell.loss]), sample_weights(task, cell.weights)
    keras.utils.set_random_seed(3)
    net, other = task.net(), task.net()
    for one in (net, other):
        one(tf.nest.map_structure(lambda part: part[:1], task.x))
    other.set_weights(net.get_weights())
    before = net.get_weights()
    if cell.refused:
        with pytest.raises((ValueError, TypeError), match=cell.refused):
            ours(cell, task, net, y, own)
        for mine, theirs in zip(net.get_weights(), before):
            np.testing.assert_array_equal(mine, theirs)
        return
    logs = ours(cell, task, net, y, own)
    wanted = plain(cell, task, other, y, own)
    reduced = cell.task == "mixed precision"
    tolerance = {"rtol": 2e-2, "atol": 8e-3} if reduced else {"rtol": 1e-4, "atol": 1e-6}
    moved = False
    for mine, theirs, was in zip(net.get_weights(), other.get_weights(), before):
        np.testing.assert_allclose(mine, theirs, **tolerance)
        moved |= bool(np.abs(mine - was).max() > 1e-5)
    assert moved, "a step must change something"
    for name, value in wanted.items():
        assert logs[name] == pytest.approx(value, rel=2e-2 if reduced else 1e-4, abs=1e-6)


def test_there_are_enough_cells():
    assert len(CELLS) >= 300
    assert sum(in_make_test(i) for i in range(len(CELLS))) >= 30
    assert len({cell.name for cell in CELLS}) == len(CELLS)


def test_the_page_is_that_of_the_table():
    assert table._PAGE.read_text() == table.page()
