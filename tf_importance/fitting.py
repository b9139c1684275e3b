"""`ISModel.fit`: whose the data are, what of it Keras gets, and how its epochs are counted.

* Under a sampler with memory arrays and random access become a dataset that the sampler draws.
* A dataset that is drawn for another model, by another sampler, or by a loss that is no longer the
  model's is refused before the first step.
* An epoch of a dataset whose length varies is one pass over it.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_importance import (
    callbacks,
    compat,
    coupling,
    draws,
    element_specs,
    epochs,
    gathering,
    losses,
    marks,
    processes,
    random_access,
    samplers,
    source,
)
from tf_importance.arguments import named
from tf_importance.scorers import forward

_SOURCES = (
    "give fit arrays, model.fit(x, y, batch_size=32), or what has random access, or a dataset of "
    "tfi.history_sample(source, sampler, batch_size); for a stream use tfi.importance_sample and "
    "no sampler"
)


def fit(model, keras_fit: Callable, given: dict[str, Any]):
    """As `keras.Model.fit`.

    Args:
        model: an ISModel. keras_fit: Keras's own, of this model. given: its arguments by name.
    """
    sampler = model.sampler
    try:
        _refuse_applied(given["x"])
        _refuse_served(model, given["x"])
        if sampler is not None:
            given = by_sampler(sampler, given)
        drawing = _drawing(model, given["x"])
        if sampler is not None and drawing is not None:
            _refuse_other_replicas(model, drawing)
            sampler.rewind()
            _tell_length(sampler, given)
            if sampler.follows_training:
                given["callbacks"] = samplers.with_maintenance(given["callbacks"], sampler)
        _refuse_class_weight(given)
        if drawing is not None:
            # The draw has its own order; Keras warns of its default, True, for every dataset.
            given["shuffle"] = False
            _refuse_coupled(model, given["x"], drawing)
        else:
            # The share of what was drawn before is none of these.
            model.counts.assign(tf.zeros([4]))
        if model.schedule is not None:
            given["callbacks"] = callbacks.settable(given["callbacks"], model.schedule)
            if model.schedule.steps is not None:
                last = callbacks.UntilTheEnd(model.schedule)
                given["callbacks"] = callbacks.joined(given["callbacks"], last)
        if drawing is not None:
            last = callbacks.Outcome(_why_off(drawing))
            given["callbacks"] = callbacks.joined(given["callbacks"], last)
        with model.datasets.fitting(drawing, given["class_weight"] is not None):
            if processes.are_several(model.distribute_strategy):
                return _in_several_processes(model, given, drawing)
            return _in_epochs(model, keras_fit, given, drawing is not None)
    except BaseException:
        if sampler is not None:
            # What ended the training is said, and not what this may find as well.
            with contextlib.suppress(Exception):
                sampler.end()
        raise


def _refuse_other_replicas(model, drawing: marks.Drawing) -> None:
    """Raises: ValueError: batches are planned for another number of replicas."""
    if drawing.sampler is None:
        return
    here = processes.replicas_here(model.distribute_strategy)
    of_all = model.distribute_strategy.num_replicas_in_sync
    wanted = of_all if drawing.sampler.spans_processes else here
    if drawing.replicas != wanted:
        raise ValueError(
            f"the dataset is drawn for {drawing.replicas} replicas, and model {model.name!r} "
            f"trains on {wanted}: compile the model with the sampler first, in strategy.scope(), "
            "and then make the dataset, or give fit the source itself."
        )


def _tell_length(sampler: samplers.Sampler, given: dict[str, Any]) -> None:
    """Tell the sampler how many batches there will be, where the data have an end."""
    steps = given["steps_per_epoch"]
    if steps is None and isinstance(given["x"], tf.data.Dataset):
        steps = max(int(given["x"].cardinality()), 0)
    epochs_left = given["epochs"] - given["initial_epoch"]
    if steps and epochs_left > 0:
        # A dataset may draw by a sampler around this one.
        for one in (sampler, *sampler.datasets):
            one.expect(steps * epochs_left * sampler.replicas)


def _why_off(drawing: marks.Drawing) -> Callable[[], str] | None:
    """What says why nothing was drawn; None where nothing can be."""
    if drawing.why_off is not None or isinstance(drawing.sampler, (type(None), samplers.Uniform)):
        return drawing.why_off
    return drawing.sampler.why_off


def _drawing(model, x: Any) -> marks.Drawing | None:
    """How the data are drawn; None if they are plain.

    Raises:
        ValueError: they are drawn for another model, loss or learning rate.
    """
    if not isinstance(x, tf.data.Dataset):
        # A strategy's own dataset does not say what it is made of.
        return model.datasets.expected[0] if hasattr(x, "element_spec") else None
    drawing = marks.found(x)
    if drawing is None or drawing.model is None:
        return drawing
    again = "apply importance_sample to the dataset again."
    if drawing.sampler is not None:
        again = "make the dataset again, or give fit the source itself."
    if drawing.model is not model:
        raise ValueError(
            f"the dataset is scored by model {drawing.model.name!r}, and fit on model "
            f"{model.name!r}; {again}"
        )
    if not losses.are_same(drawing.loss, model.objective.loss):
        raise ValueError(
            f"model {model.name!r} was compiled with another loss since the dataset was made, "
            f"which is scored by that one; {again}"
        )
    if drawing.scored is not None and not _is_scored_as_it_is(model, *drawing.scored):
        raise ValueError(
            f"the net of model {model.name!r} was changed since the dataset was made, which is "
            "scored by the net as it was: a layer, an activation, weights or loss_weights are "
            f"others; {again}"
        )
    if model.follows_gain and drawing.meter is None and drawing.sampler is None:
        raise ValueError(
            f"model {model.name!r} was compiled with a learning rate that follows the gain since "
            f"the dataset was made, whose batches do not tell their gain; {again}"
        )
    return drawing


def _refuse_applied(x: Any) -> None:
    """Raises: ValueError: something was applied to a drawn dataset that undoes what it is."""
    *applied, drawn = marks.since(x) or [None]
    if drawn is None:
        return
    kinds = " ".join(type(one).__name__ for one in applied)
    if "Cache" in kinds or "Snapshot" in kinds:
        raise ValueError(
            "the dataset is cached behind the draw, so that the draws of the first pass, by the "
            "net as it was then, would come for ever; cache the examples before: "
            "dataset.cache().apply(importance_sample(model))."
        )
    spec, wanted = x.element_spec, drawn.element_spec
    parts = spec if isinstance(spec, tuple) else (spec,)
    told = draws.split(spec)[1] is not None
    if len(parts) != 3 or told != (draws.split(wanted)[1] is not None):
        raise ValueError(
            "a map behind the draw has dropped the weights, or what comes with them, without which "
            f"drawn batches train on another loss. The draw has {wanted}, and fit got {spec}. "
            "Leave the third part as it is: lambda x, y, drawn: (change(x), y, drawn)."
        )
    drawing = marks.found(drawn)
    in_groups = draws.is_drawn(wanted) or (drawing is not None and drawing.fresh is not None)
    if in_groups and any(kind in kinds for kind in ("Unbatch", "Rebatch")):
        raise ValueError(
            "batches that a memory draws are learned from by their numbers, and of those that the "
            "step scores it makes its own, so that they cannot be taken apart; leave out unbatch "
            "and rebatch, and give the batch_size that is wanted to importance_sample or "
            "history_sample."
        )


def _refuse_served(model, x: Any) -> None:
    """Raises: ValueError: batches that seem to be drawn come from tf.data service."""
    if marks.found(x) is not None or not model.datasets.drawn:
        return
    if inspect.isgenerator(x):
        warnings.warn(
            "batches that a generator yields do not say how they were drawn: if they were, give "
            "fit the dataset itself, or metrics ignore the weights and nothing is learned of them.",
            stacklevel=4,
        )
    # What these hand over does not say what it was made of.
    kinds = " ".join(type(one).__name__ for one in marks.sources(x))
    served = "DataService" in kinds or "Load" in kinds
    if served and isinstance(x.element_spec, tuple) and len(x.element_spec) == 3:
        raise ValueError(
            f"weighted batches come from tf.data service or from files, and a dataset was drawn "
            f"for model {model.name!r}. Behind the draw they would be drawn by weights of the net "
            "that never change; apply the service, or save and load, before the draw: "
            "dataset.apply(distribute(…)).apply(importance_sample(model)). For sample weights of "
            "your own that come from there, make another ISModel."
        )


def _is_scored_as_it_is(model, structure: list[Any], loss_weights: Any) -> bool:
    now = forward.structure(model.net)
    same = len(now) == len(structure) and all(
        one is other or (inspect.isroutine(one) and one == other)
        for one, other in zip(now, structure)
    )
    return same and model.objective.loss_weights == loss_weights


def _refuse_coupled(model, batches: Any, drawing: marks.Drawing) -> None:
    """Raises: ValueError: the net, or what it is trained by, couples the examples of a batch."""
    # A strategy's own dataset has none of these shapes, and its pipeline has asked already.
    if not isinstance(batches, tf.data.Dataset):
        return
    if not model.objective.loss:  # Keras 2 makes {} of None.
        raise ValueError(
            f"model {model.name!r} is compiled without a loss, which scores and weights are for; "
            "give compile one."
        )
    inputs, labels = (
        tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), part)
        for part in batches.element_spec[:2]
    )
    element_specs.refuse_strings(labels)
    if not model.net.built:
        if not all(leaf.shape.is_fully_defined() for leaf in tf.nest.flatten(inputs)):
            return  # The first step builds it.
        element_specs.build(model, (inputs,), lambda: None)
    coupling.refuse(model, inputs)
    if not isinstance(drawing.sampler, (type(None), samplers.Uniform)):
        coupling.refuse_loss(model, inputs, labels)


def _refuse_class_weight(given: dict[str, Any]) -> None:
    spec = getattr(given["x"], "element_spec", None)
    weighted = isinstance(spec, tuple) and len(spec) == 3
    multiplies = not compat.KERAS_3 and not isinstance(spec and spec[-1], dict)
    if given["class_weight"] is not None and weighted and not multiplies:
        raise ValueError(
            "Keras takes no class_weight beside the weights of a dataset, and "
            "importance_sample's have them. Give the class weights as sample weights "
            "before it: dataset.map(lambda x, y: (x, y, tf.gather(class_weights, y)))"
            ".apply(importance_sample(model)); they then count in the scores as well."
        )


def _in_epochs(model, keras_fit: Callable, given: dict[str, Any], drawn: bool):
    """Keras's own fit; one for each epoch of drawn data whose length only a pass tells."""
    last, epoch = given["epochs"], given["initial_epoch"]
    varies = epochs.length_varies(given["x"], given["steps_per_epoch"])
    if not (varies and drawn and epoch < last):
        return keras_fit(**given)
    if getattr(model.optimizer, "use_ema", False):
        raise ValueError(
            "an optimizer with use_ema=True overwrites the weights at the end of each "
            "epoch of a dataset whose length is unknown; give dataset.repeat() and "
            "steps_per_epoch."
        )
    given = dict(given)
    del given["epochs"], given["initial_epoch"]
    training = epochs.OneTraining(given.pop("callbacks"), model, given["verbose"], last)
    stopped = False
    while epoch < last and not stopped:
        with warnings.catch_warnings():
            # Keras 3 warns at the end of every pass whose length it did not know.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            keras_fit(epochs=epoch + 1, initial_epoch=epoch, callbacks=training, **given)
        stopped = model.stop_training
        epoch = max(epoch + 1, compat.take_restored_epoch(model))
    training.finish()
    return model.history


def _in_several_processes(model, given: dict[str, Any], drawing: marks.Drawing | None):
    if given["validation_data"] is not None or given["validation_split"]:
        raise ValueError(
            "fit in several processes takes no validation data; evaluate by a callback."
        )
    taken = ("steps_per_epoch", "epochs", "initial_epoch", "callbacks")
    together, sampler = None, None if drawing is None else drawing.sampler
    if drawing is not None and sampler is not None and sampler.spans_processes:
        together = gathering.Gathering(model.distribute_strategy, drawing)
    options = {name: given[name] for name in taken}
    return processes.fit(model, given["x"], **options, gathering=together)


def by_sampler(sampler: samplers.Sampler, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit` with a dataset that the sampler draws in the place of its data.

    Args:
        sampler: the one that the model is compiled with.
        given: the arguments of `fit` by name.
    Raises:
        TypeError: the data have no random access. ValueError: an argument means nothing here.
    """
    x = given["x"]
    validation = marks.found(given["validation_data"])
    if validation is not None and _remember_together(validation.sampler, sampler):
        raise ValueError(
            f"validation_data is drawn by the {type(sampler).__name__} that the training draws by, "
            "and would take its examples; validate on the data as they are, validation_data=(x, y)."
        )
    if isinstance(x, tf.data.Dataset):
        if draws.is_drawn(x.element_spec):
            mark = marks.found(x)
            _refuse_other(sampler, None if mark is None else mark.sampler)
            return given
        raise TypeError(
            f"the model is compiled with a {type(sampler).__name__}, which needs to know the "
            f"examples by number; got a tf.data.Dataset of {x.element_spec}: {_SOURCES}."
        )
    if not given.get("shuffle", True):
        raise ValueError(
            "shuffle=False asks for the order of the data, and a sampler chooses its own; leave it "
            "out, or compile without a sampler."
        )
    given = dict(given)
    examples = _source(sampler, given)
    batch_size = 32 if given["batch_size"] is None else given["batch_size"]
    batches = source.history_sample(examples, sampler, batch_size)
    if given["steps_per_epoch"] is not None:
        batches = batches.repeat()
    if given["validation_batch_size"] is None:
        given["validation_batch_size"] = batch_size
    return {**given, "x": batches, "y": None, "batch_size": None, "sample_weight": None}


def _refuse_other(sampler: samplers.Sampler, drawing: samplers.Sampler | None) -> None:
    if drawing is not None and not _remember_together(drawing, sampler):
        raise ValueError(
            f"the dataset is drawn by one {type(drawing).__name__}, and the model is compiled with "
            f"another sampler, a {type(sampler).__name__}: the one that draws would never learn. "
            "Give history_sample and compile the same."
        )


def _remember_together(one: samplers.Sampler | None, other: samplers.Sampler) -> bool:
    """Whether two samplers are one, or one draws by the other: they share a journal."""
    return one is not None and one.journal is other.journal


def _source(sampler: samplers.Sampler, given: dict[str, Any]) -> Any:
    """Arrays (x, y) or (x, y, sample_weight), or an object with random access."""
    x, y = given["x"], given["y"]
    if y is None:
        if not (isinstance(x, tuple) or random_access.is_numbered(x)):
            raise TypeError(
                f"the model is compiled with a {type(sampler).__name__}, which needs to know the "
                f"examples by number, and got x of type {type(x).__name__} and no y: "
                f"{random_access.conversion(x) or _SOURCES}."
            )
        for name in ("validation_split", "sample_weight", "class_weight"):
            _refuse(given, name)
        return x
    parts = [_arrays(x), _arrays(y)]
    weights = _weights(given, parts[1])
    if weights is not None:
        parts.append(weights)
    given["class_weight"] = None
    if given["validation_split"]:
        parts, held_out = _split(parts, given["validation_split"])
        given["validation_split"] = 0.0
        if given["validation_data"] is None:
            given["validation_data"] = held_out
    return tuple(parts)


def _refuse(given: dict[str, Any], name: str) -> None:
    if given[name] is not None and not (np.isscalar(given[name]) and not given[name]):
        raise ValueError(
            f"{name} goes with arrays x and y only; got {named(given[name])}. Leave it out."
        )


def _arrays(nest: Any) -> Any:
    """A nest of arrays, those of pandas as NumPy has them."""
    return tf.nest.map_structure(random_access.array, nest)


def _weights(given: dict[str, Any], labels: Any) -> np.ndarray | None:
    """[n] weights of the examples by sample_weight and class_weight, multiplied as Keras does."""
    weights, by_class = given["sample_weight"], given["class_weight"]
    if weights is not None:
        nested = tf.nest.is_nested(weights) and not np.isscalar(tf.nest.flatten(weights)[0])
        weights = None if nested else np.asarray(weights, np.float32)
        if weights is not None and weights.ndim == 2 and weights.shape[1] == 1:
            weights = weights[:, 0]
        if weights is None or weights.ndim != 1:
            raise ValueError(
                "a sampler draws examples, so sample_weight must have one number for each, shape "
                f"[n]; got {'a nest' if weights is None else f'shape {weights.shape}'}. Weights of "
                "outputs, steps or pixels go with a stream: tfi.importance_sample."
            )
    if by_class is None:
        return weights
    if tf.nest.is_nested(labels):
        raise ValueError("class_weight goes with labels of one output; give sample_weight.")
    classes = np.asarray(labels)
    if classes.ndim > 1:
        classes = classes.argmax(axis=-1) if classes.shape[-1] > 1 else classes[..., 0]
    if classes.ndim != 1 or classes.dtype.kind not in "biuf":
        raise ValueError(
            "class_weight goes with one label for each example, a number or one-hot; got labels of "
            f"shape {np.shape(labels)} and dtype {np.asarray(labels).dtype}. Give sample_weight."
        )
    there, places = np.unique(np.round(classes).astype(np.int32), return_inverse=True)
    factors = np.array([by_class.get(int(label), 1.0) for label in there], np.float32)
    return factors[places] * (1.0 if weights is None else weights)


def _split(parts: list, share: float) -> tuple[list, tuple]:
    """The first examples, and the last ones that are held out, as Keras splits arrays."""
    size = len(tf.nest.flatten(parts)[0])
    kept = int(size * (1 - share))
    if not 0 < kept < size:
        raise ValueError(
            f"validation_split must leave examples on both sides; got {share} of {size} examples."
        )
    first, last = (
        tf.nest.map_structure(lambda part, cut=cut: part[cut], parts)
        for cut in (slice(kept), slice(kept, None))
    )
    return first, tuple(last)
