"""What SVRG, SCSG and Katyusha share: a snapshot, its large-batch gradient, the correction.

At a snapshot x̃ of the parameters the mean gradient μ of many examples is computed once. Each
of the m steps that follow uses, on its batch I,

    ∇f_I(x) − ∇f_I(x̃) + μ   (Johnson & Zhang 2013, section 2)

whose expectation is the full gradient at x, and whose variance vanishes as x and x̃ near one
another. In the code it is the gradient of f_I(x) + ⟨c, x⟩ with the constant c = μ − ∇f_I(x̃),
so the step itself stays Keras's own, with its metrics, clipping and loss scaling.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tf_importance import compat, losses
from tf_importance.arguments import named


class VarianceReduced(keras.Model):
    """A net trained by `fit` on variance-reduced gradients. Use SVRG, SCSG or Katyusha.

    A snapshot is taken before the first step and whenever the steps of the last one are used
    up. Its gradient is computed by one streamed pass: what is held in memory is one batch and
    three copies of the parameters (of which one is the net). Both gradients of a step see the
    same examples, batch statistics of batch normalization and, under Keras 3, dropout masks;
    moving statistics follow the steps alone.

    Args:
        net: any keras.Model; an unbuilt one is built from the data's element_spec.
        data: dataset of batches `(x, y)` or `(x, y, sample_weight)` that snapshots are
            computed on. None only for a model that is not going to be fitted.
    Attributes:
        stage: variable, the number of snapshots taken.
        remaining: variable, the number of steps until the next one.
    Raises:
        TypeError: net is not a keras.Model, or data is no tf.data.Dataset.
        ValueError: the net is not built and there is no data to build it from.
    """

    def __init__(self, net: keras.Model, data: tf.data.Dataset | None, **kwargs) -> None:
        if not isinstance(net, keras.Model) or isinstance(net, VarianceReduced):
            raise TypeError(
                f"net must be a keras.Model and no variance-reduced one; got {named(net)}."
            )
        if data is not None and not isinstance(data, tf.data.Dataset):
            raise TypeError(f"data must be a tf.data.Dataset of batches; got {named(data)}.")
        kwargs.setdefault("name", f"{type(self).__name__.lower()}_{net.name}")
        super().__init__(**kwargs)
        self.net = net
        self.data: Any = data
        names = getattr(net, "output_names", None)
        if names:
            self.output_names = names
        _build(net, data)
        # Added as weights: a plain tf.Variable is not saved by Keras 3.
        self.stage = self._counter("stage")
        self.remaining = self._counter("remaining")
        self._snapshot = self._slots("snapshot")
        self._mean_gradient = self._slots("mean_gradient")
        self._correction: list[tf.Tensor] | None = None
        self.train_function: Any = None
        # The net is, and all of one's own variables are there.
        self.built = True

    def _counter(self, name: str):
        return self.add_weight(
            name=name, shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def _slots(self, name: str) -> list:
        """A variable of zeros like each of the net's trainable ones."""
        slots = []
        for index, variable in enumerate(self.net.trainable_variables):
            slot = self.add_weight(
                name=f"{name}_{index}",
                shape=variable.shape,
                dtype=variable.dtype,
                initializer="zeros",
                trainable=False,
            )
            # tf.train.Checkpoint finds attributes, and in Keras 3 nothing inside lists.
            setattr(self, f"_{name}_{index}", slot)
            slots.append(slot)
        return slots

    # Plain Keras --------------------------------------------------------------------------

    def call(self, inputs, training=None):
        """The net's outputs."""
        return self.net(inputs, training=training)

    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`.

        Raises:
            ValueError: a loss that is summed over the batch, whose full gradient is not the
                mean of those of batches; or weights were frozen after the model was made.
        """
        super().compile(*args, **kwargs)
        _refuse_sums(self.loss)
        self._accumulate = tf.function(self._accumulate_batch, reduce_retracing=True)
        if len(self.net.trainable_variables) != len(self._snapshot):
            raise ValueError(
                f"net {self.net.name!r} has {len(self.net.trainable_variables)} trainable "
                f"variables, and had {len(self._snapshot)} when {self.name!r} was made. Set "
                "`trainable` before that."
            )

    def compile_from_config(self, config) -> None:
        """Compile as a saved model was."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`, without class_weight.

        Raises:
            ValueError: class_weight, which the gradients at snapshots would not have.
        """
        if kwargs.get("class_weight") is not None:
            raise ValueError(
                "class_weight would weight the steps and not the gradients at snapshots; give the "
                "class weights as sample weights of both datasets: "
                "dataset.map(lambda x, y: (x, y, tf.gather(class_weights, y)))."
            )
        return super().fit(*args, **kwargs)

    def export(self, filepath, *args, **kwargs):
        """Write a SavedModel of the net alone: it loads without this package."""
        return self.net.export(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {"net": keras.saving.serialize_keras_object(self.net), "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The model without its data: set `data` before it is fitted further."""
        config = dict(config)
        net = keras.saving.deserialize_keras_object(config.pop("net"), custom_objects)
        return cls(net, None, **config)

    def build_from_config(self, config) -> None:
        """The net is built by its own config; there is nothing else to build."""

    # Snapshots ----------------------------------------------------------------------------

    def make_train_function(self, force=False):
        """Keras's train function, with a snapshot before it wherever one is due."""
        # Read anew at its next call: weights may be loaded in between.
        self._until_snapshot: int | None = None
        if self.train_function is not None and not force:
            return self.train_function
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                f"variance-reduced gradients work on one replica; got {replicas}. Make the model "
                "outside of the strategy's scope."
            )
        steps = self._checked_steps_per_execution()
        super().make_train_function(force)
        compat.make_train_function_direct(self)
        train = self.train_function

        def function(iterator):
            if self._until_snapshot is None:
                self._until_snapshot = int(compat.value(self.remaining))
            if self._until_snapshot < steps:
                self._until_snapshot = self.take_snapshot()
            self._until_snapshot -= steps
            return train(iterator)

        self.train_function = function
        return function

    def take_snapshot(self) -> int:
        """Take a snapshot of the parameters and compute its mean gradient by one pass.

        Returns:
            The number of steps until the next one.
        Raises:
            ValueError: there is no data, or it is empty.
        """
        if self.data is None:
            raise ValueError(
                f"model {self.name!r} has no data to compute gradients at snapshots on; set "
                "model.data to a dataset of batches."
            )
        assign(self._snapshot, self._next_snapshot())
        assign(self._mean_gradient, [tf.zeros_like(slot) for slot in self._mean_gradient])
        sizes = [self._accumulate(batch) for batch in self._stream()]
        if not sizes:
            raise ValueError(
                f"the data of model {self.name!r} has no batches; set model.data to a dataset that "
                "has some."
            )
        count = int(tf.add_n(sizes))
        for slot in self._mean_gradient:
            slot.assign(compat.value(slot) / count)
        self.stage.assign_add(1)
        steps = self._stage_steps()
        self.remaining.assign(steps)
        return steps

    def _checked_steps_per_execution(self) -> int:
        """The number of steps that are made without a look at whether a snapshot is due."""
        return compat.steps_per_execution(self)

    def _next_snapshot(self) -> list[tf.Tensor]:
        """Where the gradient is computed: at the parameters as they are."""
        return values(self.net.trainable_variables)

    def _stream(self) -> Iterable:
        """The batches that the mean gradient is computed on."""
        raise NotImplementedError

    def _stage_steps(self) -> int:
        """The number of steps that the snapshot just taken serves for."""
        raise NotImplementedError

    def _accumulate_batch(self, data) -> tf.Tensor:
        """Add a batch's gradients, times its size, to the sums; returns its size."""
        size = tf.shape(tf.nest.flatten(data)[0])[0]
        for slot, gradient in zip(self._mean_gradient, self._gradients_at_snapshot(data)):
            slot.assign_add(gradient * tf.cast(size, gradient.dtype))
        return size

    # The step -----------------------------------------------------------------------------

    def train_step(self, data):
        """A Keras training step on ∇f_I(x) − ∇f_I(x̃) + μ."""
        mean = values(self._mean_gradient)
        at_snapshot = self._gradients_at_snapshot(data)
        self._correction = [mu - gradient for mu, gradient in zip(mean, at_snapshot)]
        try:
            logs = super().train_step(data)
        finally:
            self._correction = None
        self.remaining.assign_sub(1)
        return logs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        kwargs = {"training": training} if compat.COMPUTE_LOSS_TAKES_TRAINING else {}
        loss = super().compute_loss(x, y, y_pred, sample_weight, **kwargs)
        if self._correction is None:
            return loss
        # The value of the loss stays, its gradient gets the correction.
        linear = _inner_product(self._correction, self.net.trainable_variables)
        return loss + tf.cast(linear - tf.stop_gradient(linear), loss.dtype)

    def _gradients_at_snapshot(self, data) -> list[tf.Tensor]:
        """∇f_I(x̃) of the compiled loss in training mode; all variables keep their values."""
        trainable = self.net.trainable_variables
        kept = [*trainable, *self.net.non_trainable_variables]
        before = values(kept)
        assign(trainable, values(self._snapshot))
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._uncounted_loss(x, y, y_pred, sample_weight)
        gradients = [
            _dense(gradient, variable)
            for gradient, variable in zip(tape.gradient(loss, trainable), trainable)
        ]
        with tf.control_dependencies(gradients):
            assign(kept, before)
        return gradients

    def _uncounted_loss(self, x, y, y_pred, sample_weight) -> tf.Tensor:
        """The compiled loss, without a trace in the losses that Keras averages for the logs."""
        counted = compat.loss_state(self, y, y_pred)
        before = values(counted)
        loss = self.compute_loss(x, y, y_pred, sample_weight)
        with tf.control_dependencies([loss]):
            assign(counted, before)
        return loss


def values(variables) -> list[tf.Tensor]:
    """Copies of variables' values, which later assignments do not change."""
    return [tf.identity(compat.value(variable)) for variable in variables]


def assign(variables, values) -> None:
    """Give each variable its value."""
    for variable, value in zip(variables, values):
        variable.assign(value)


def _dense(gradient, variable) -> tf.Tensor:
    """A gradient that can be added to others: neither sparse nor None."""
    if gradient is None:
        return tf.zeros_like(compat.value(variable))
    return tf.convert_to_tensor(gradient)


def _inner_product(one, other) -> tf.Tensor:
    products = [tf.reduce_sum(a * compat.value(b)) for a, b in zip(one, other)]
    return tf.add_n([tf.cast(product, products[0].dtype) for product in products])


def _build(net: keras.Model, data: tf.data.Dataset | None) -> None:
    """Make the weights of an unbuilt net by a call on zeros."""
    if net.built:
        return
    if data is None:
        raise ValueError(f"net {net.name!r} is not built; call it on a batch first, or give data.")
    zeros = tf.nest.map_structure(
        lambda spec: tf.zeros([1 if size is None else size for size in spec.shape], spec.dtype),
        data.element_spec[0],
    )
    net(zeros, training=False)


def refuse_endless(data: tf.data.Dataset | None) -> None:
    """Raise where a pass over the data would never end."""
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "data must end, since its full gradient is computed; leave out .repeat(), or use SCSG, "
            f"which takes a large batch of it; got {named(data)}."
        )


def _refuse_sums(loss: Any) -> None:
    if loss is not None and losses.only_sums(losses.Objective(loss)):
        raise ValueError(
            f"loss {named(loss)} is summed over the batch, so the gradient of all data is not the "
            "mean of those of batches; use reduction='sum_over_batch_size'."
        )
