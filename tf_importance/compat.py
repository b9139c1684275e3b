"""The two lanes: Keras 3 on the newest TensorFlow, Keras 2.15 beside TensorFlow Addons.

Everything in the library that depends on the version of Keras stands here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops import resource_variable_ops

KERAS_3 = int(keras.__version__.split(".")[0]) >= 3

if KERAS_3 and keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_importance runs on Keras's TensorFlow backend; "
        f"got KERAS_BACKEND={keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
    )

MEAN_OVER_REPLICAS: Any = "mean" if KERAS_3 else tf.VariableAggregation.MEAN

# Keras 3 takes `training` in compute_loss, Keras 2 does not.
COMPUTE_LOSS_TAKES_TRAINING = KERAS_3


def value(variable) -> tf.Tensor:
    """The current value of a Keras 3 or TensorFlow variable, as a tensor."""
    return tf.convert_to_tensor(variable)


def definer(kind: type, name: str) -> type:
    """The class that a class has a method from."""
    return next(one for one in kind.__mro__ if name in vars(one))


def handle(variable) -> tf.Tensor | None:
    """The resource handle of a Keras 3 or TensorFlow variable, None for anything else."""
    inner = variable if isinstance(variable, tf.Variable) else getattr(variable, "value", None)
    return getattr(inner, "handle", None)


def track(model: keras.Model, name: str, module: tf.Module | None) -> None:
    """Make a module part of a model's checkpoints under a name, and not of its weights.

    Keras 2 would count the variables of an attribute as weights of the model, Keras 3 not.
    """
    object.__setattr__(model, name, module)
    if module is not None:
        model._track_trackable(module, name, overwrite=True)


def untracked(model: keras.Model, name: str, value: Any) -> None:
    """Set an attribute that is no part of a model's checkpoints."""
    object.__setattr__(model, name, value)


def added_losses(layer: keras.layers.Layer) -> list:
    """What `add_loss` has given a layer in its latest pass; penalties of weights are not in it."""
    names = ("_losses",) if KERAS_3 else ("_losses", "_eager_losses")
    return [loss for name in names for loss in getattr(layer, name, None) or []]


def clear_losses(model: keras.Model) -> None:
    """Forget what layers have added in a pass."""
    model._clear_losses()


def innermost(optimizer):
    """The optimizer inside those that only wrap one; itself where it wraps none."""
    inner = getattr(optimizer, "inner_optimizer", None) or getattr(optimizer, "_optimizer", None)
    return optimizer if inner is None or inner is optimizer else innermost(inner)


def loss_scale(optimizer, model: keras.Model) -> tf.Tensor | None:
    """What a model's optimizer multiplies losses by, which falls as it skips a step; or None."""
    if not isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        return None
    if not KERAS_3:
        return optimizer.loss_scale
    if not optimizer.built:
        with tf.init_scope():
            optimizer.build(model.trainable_variables)
    return value(optimizer.dynamic_scale)


def learning_rate(optimizer):
    """What an optimizer was given as its learning rate; legacy ones keep it elsewhere.

    That of the innermost one, where mixed precision or an average of weights has wrapped it.
    """
    optimizer = innermost(optimizer)
    name = "_learning_rate" if hasattr(optimizer, "_learning_rate") else "learning_rate"
    return getattr(optimizer, name, None)


def layers_named(*names: str) -> list[type]:
    """Keras's layers of these names, those that this version has."""
    return [getattr(keras.layers, name) for name in names if hasattr(keras.layers, name)]


def compiled_loss(model: keras.Model) -> tuple[Any, Any]:
    """The loss and loss weights that a model was compiled with; (None, None) without any."""
    if not KERAS_3:
        compiled = getattr(model, "compiled_loss", None)
        return getattr(model, "loss", None), getattr(compiled, "_user_loss_weights", None)
    if not getattr(model, "compiled", False):
        return None, None
    return model.loss, model._compile_loss and model._compile_loss._user_loss_weights


def tensorflow_variable(variable) -> tf.Variable:
    """The variable itself, for a tape to watch."""
    return variable.value if KERAS_3 and not isinstance(variable, tf.Variable) else variable


def tensorflow_variables(variable) -> list[tf.Variable]:
    """The variable itself, or its copies under a strategy."""
    inner = tensorflow_variable(variable)
    copies = getattr(inner, "values", None)
    return list(copies) if isinstance(copies, tuple) else [inner]


@contextlib.contextmanager
def unmirrored() -> Iterator[None]:
    """Variables that are made within are one for all replicas, also in a strategy's scope."""

    def create(next_creator, **kwargs):
        del next_creator
        kwargs.pop("use_resource", None)
        return resource_variable_ops.ResourceVariable(**kwargs)

    with tf.variable_creator_scope(create):
        yield


def take_restored_epoch(model: keras.Model) -> int:
    """The epoch that a callback (BackupAndRestore) told `fit` to start from, once; 0 if none.

    Keras 3 keeps it on the model and would start each later `fit` there; Keras 2 asks its
    checkpoint, which moves on with the training.
    """
    restored = getattr(model, "_initial_epoch", None) or 0
    if restored:
        model._initial_epoch = None
    return restored


def device(model: keras.Model) -> str:
    """The device of the model's first weight, `""` where TensorFlow does not say."""
    weights = numeric(model.weights)
    if not weights:
        return ""
    return tf.convert_to_tensor(weights[0]).device if tf.executing_eagerly() else ""


def numeric(variables: Iterable) -> list:
    """Variables, but for what Keras 2 has among them of layers that look up strings."""
    return [one for one in variables if hasattr(one, "dtype")]


@contextlib.contextmanager
def kept(net: keras.Model) -> Iterator[None]:
    """Behind the context a net's variables, states of random numbers too, are what they were."""
    variables = list(map(tensorflow_variable, numeric(net.variables)))
    before = [tf.identity(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before):
            variable.assign(value)


def matched(labels, predictions, dtype: str):
    """Labels and predictions as this version of Keras hands them to a loss."""
    if KERAS_3:
        convert = keras.ops.convert_to_tensor
        return convert(labels, dtype=dtype), convert(predictions, dtype=dtype)
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 1 and predictions.shape.rank == 2:
        labels = labels[:, tf.newaxis]
    if labels.dtype.is_floating and predictions.dtype.is_floating:
        labels = tf.cast(labels, predictions.dtype)
    return labels, predictions


def for_inner_axes(weights: tf.Tensor, rank: int) -> tf.Tensor:
    """Weights [b, …] as [b, …, 1, …], to be multiplied into values of a rank."""
    missing = rank - weights.shape.rank
    if missing <= 0:
        return weights
    shape = tf.concat([tf.shape(weights), tf.ones([missing], tf.int32)], axis=0)
    return tf.reshape(weights, shape)


def data_options(ahead: bool) -> tf.data.Options:
    """Of a pipeline that reads and writes variables of a model or a sampler.

    Args:
        ahead: whether it may run ahead of the training step.
    """
    chosen = tf.data.Options()
    # Checkpoints of the model hold those variables already.
    chosen.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    if not ahead:
        # tf.data would read ahead by itself, also for a map behind this that it makes parallel, and
        # what the variables are when they are read is a race.
        chosen.experimental_optimization.inject_prefetch = False
        chosen.experimental_optimization.map_parallelization = False
    return chosen


def fetches_ahead(model: keras.Model) -> bool:
    """Whether `fit` may fetch a batch before the step on the last one is done."""
    return KERAS_3 and model.steps_per_execution > 1


def make_train_function_direct(model: keras.Model) -> None:
    """Spare a model's train function what it spends between steps, where a step is the same.

    Keras 3 hands the logs of every step over as an Optional that Python then asks and opens:
    0.1 to 0.2 ms a step. Where a step is one batch of an iterator, in one process, the compiled
    step can return them directly; that pays for the logs that an ISModel adds. Of several
    replicas, whose logs Keras averages one by one, they are averaged all at once.

    Args:
        model: a compiled model with the train function that Keras made.
    """
    strategy = model.distribute_strategy
    if not KERAS_3 or model.run_eagerly or model.steps_per_execution > 1:
        return
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return
    replicas = strategy.num_replicas_in_sync
    kind = tf.data.Iterator if replicas == 1 else tf.distribute.DistributedIterator
    generic = model.train_function
    on_data = tf.function(
        model.train_step if replicas == 1 else _on_replicas(model.train_step, strategy),
        autograph=False,
        reduce_retracing=True,
        jit_compile=model.jit_compile,
    )
    step_on_data = model._autoconvert_optionals(on_data)

    @tf.function(autograph=False, reduce_retracing=True)
    def step(iterator):
        return step_on_data(iterator.get_next())

    def function(iterator):
        return (step if isinstance(iterator, kind) else generic)(iterator)

    model.train_function = function


def _on_replicas(step: Callable, strategy: tf.distribute.Strategy) -> Callable:
    """A step on the batches of all replicas; its logs are means over them, as Keras has them."""

    def joined(data):
        logs: list[dict] = []

        def on_one(data):
            logs.append(step(data))
            return _by_kind(tf.nest.flatten(logs[-1]))

        means = tf.nest.map_structure(
            lambda part: tf.reduce_mean(strategy.experimental_local_results(part), axis=0),
            strategy.run(on_one, args=(data,)),
        )
        return tf.nest.pack_sequence_as(logs[-1], _apart(tf.nest.flatten(logs[-1]), *means))

    return joined


def _by_kind(values: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The float32 scalars among values as one vector, and the others."""
    scalars = [value for value in values if _is_scalar(value)]
    others = [value for value in values if not _is_scalar(value)]
    return tf.stack(scalars) if scalars else tf.zeros([0]), others


def _apart(like: list[tf.Tensor], scalars: tf.Tensor, others: list[tf.Tensor]) -> list[tf.Tensor]:
    """The values that `_by_kind` has put together, in the order of others of their kinds."""
    count = sum(map(_is_scalar, like))
    left, right = iter(tf.unstack(scalars, num=count)), iter(others)
    return [next(left if _is_scalar(value) else right) for value in like]


def _is_scalar(value: Any) -> bool:
    return tf.is_tensor(value) and value.shape.rank == 0 and value.dtype == tf.float32


def steps_per_execution(model: keras.Model) -> int:
    """How many steps a call of the model's train function makes."""
    if KERAS_3:
        return model.steps_per_execution
    return int(model._steps_per_execution.numpy())


def loss_state(model: keras.Model, y, y_pred) -> list:
    """The variables that Keras averages losses in while it computes them.

    Args:
        model: a compiled model.
        y: labels. y_pred: outputs.
    """
    compiled = model._compile_loss if KERAS_3 else model.compiled_loss
    if compiled is None:
        return []
    if not compiled.built:
        compiled.build(*((y, y_pred) if KERAS_3 else (y_pred,)))
    return [variable for metric in compiled.metrics for variable in metric.variables]


def logs_of_a_replica(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Logs that Keras reports as they are: Keras 2 adds up those of all replicas."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if KERAS_3 or replicas == 1:
        return logs
    return {name: value / replicas for name, value in logs.items()}


def _compiled_metrics(model: keras.Model):
    return getattr(model, "_compile_metrics" if KERAS_3 else "compiled_metrics", None)


def has_metrics(model: keras.Model) -> bool:
    """Whether a model was compiled with `metrics`, beside `weighted_metrics`."""
    compiled = _compiled_metrics(model)
    return compiled is not None and bool(compiled._user_metrics)


def metrics_by_output(model: keras.Model, y, y_pred, weights) -> list[tuple]:
    """What each output's metrics get, as this version of Keras pairs them.

    Args:
        model: a compiled model. y: labels. y_pred: outputs.
        weights: of `weighted_metrics`, [b], or a nest like the outputs of [b, …].
    Returns:
        Of each output its labels, itself, its weights, its `metrics`, its `weighted_metrics`.
    """
    compiled = _compiled_metrics(model)
    if compiled is None:
        return []
    if KERAS_3:
        if not compiled.built:
            compiled.build(y, y_pred)
        labels, outputs = compiled._flatten_y(y), compiled._flatten_y(y_pred)
        lists = [compiled._flat_metrics, compiled._flat_weighted_metrics]
        lists = [[part.metrics if part else () for part in parts] for parts in lists]
    else:
        labels = compiled._conform_to_outputs(y_pred, y)
        if not compiled.built:
            compiled.build(y_pred, labels)
        labels, outputs = tf.nest.flatten(labels), tf.nest.flatten(y_pred)
        lists = [compiled._metrics, compiled._weighted_metrics]
        lists = [[part or () for part in parts] for parts in lists]
    if isinstance(weights, tf.Tensor):
        weights = [weights] * len(outputs)
    else:
        weights = compiled._flatten_y(weights) if KERAS_3 else tf.nest.flatten(weights)
    return list(zip(labels, outputs, weights, *lists))
