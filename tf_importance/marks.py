"""What a dataset of this package says of itself, found again behind what was applied to it since.

Keras trains on a dataset without asking where it comes from. The mark says who draws it, so that
each dataset trains as it was asked to, or is refused before the first step.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_NAME = "_tf_importance_mark"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a dataset is drawn, as far as it does not travel with the batches.

    Attributes:
        model: the ISModel whose scores it is drawn by; None where no model is asked.
        loss: that the model was compiled with.
        scored: `forward.structure` of the net and the loss's weights as the pipeline's scorer was
            traced, None where it scores nothing.
        sample_weighted: whether a user's sample weights are multiplied into the weights.
        switch: of `tfi.switches`, None for none.
        why_off: says why nothing was drawn, None where nothing can be.
        meter: what measures the gain that the switch or the learning rate go by, None for nothing.
        fresh: what draws from the groups that the steps get, None where they get none.
        unusable: variable, [k] number of the latest group whose pre-sample could not be drawn from
            by the step, in the place of that pre-sample in its group; None where steps get none.
        sampler: that draws by a memory, None for none.
        reservoirs: that strata of a stream are drawn from, None without strata.
        averages_statistics: whether batch normalization normalizes by an average over batches what
            is not by a pre-sample's statistics; a sampler says it itself.
        row_size: how many scores a step writes to the sampler's journal, where batches differ in
            size; None for one of each example.
        replicas: that each get a batch which a sampler has planned.
        plans: what may become of a group of examples, of a pipeline of groups.
        block: steps whose batches a sampler plans at once. seed: of its draws, None for its own.
    """

    model: Any = None
    loss: Any = None
    scored: tuple[list[Any], Any] | None = None
    sample_weighted: bool = False
    switch: Any = None
    why_off: Callable[[], str] | None = None
    meter: Any = None
    fresh: Any = None
    unusable: Any = None
    sampler: Any = None
    reservoirs: Any = None
    averages_statistics: bool = False
    row_size: int | None = None
    replicas: int = 1
    plans: tuple = ()
    block: int = 1
    seed: int | None = None


def put(dataset: tf.data.Dataset, drawing: Drawing) -> tf.data.Dataset:
    """The dataset, marked; what a function of another one captures of it, too."""
    object.__setattr__(dataset, _NAME, drawing)
    if isinstance(dataset._variant_tensor, tf.__internal__.EagerTensor):
        # Weakly: the garbage collector does not see what hangs on a tensor.
        setattr(dataset._variant_tensor, _NAME, weakref.ref(drawing))
    return dataset


def found(dataset: Any) -> Drawing | None:
    """The mark of a dataset or of one that it is made of; None if there is none."""
    path = since(dataset)
    return getattr(path[-1], _NAME) if path else None


def since(dataset: Any) -> list[tf.data.Dataset]:
    """What was applied to a marked dataset, the latest first, and itself; [] without a mark."""
    waiting = [[dataset]] if isinstance(dataset, tf.data.Dataset) else []
    while waiting:
        path = waiting.pop()
        if hasattr(path[-1], _NAME):
            return path
        captured = _captured(path[-1])
        if captured:
            put(path[-1], captured[0])
            return path
        waiting.extend([*path, one] for one in path[-1]._inputs())
    return []


def _captured(dataset: tf.data.Dataset) -> list[Drawing]:
    """The marks of datasets that functions of this one, as of flat_map, take elements from."""
    functions = (getattr(one, "function", None) for one in dataset._functions())
    captured = [part for one in functions for part in getattr(one, "captured_inputs", ())]
    found = [getattr(part, _NAME)() for part in captured if hasattr(part, _NAME)]
    return [drawing for drawing in found if drawing is not None]


def sources(dataset: Any) -> list[tf.data.Dataset]:
    """What a dataset is made of that is made of no other one."""
    if not isinstance(dataset, tf.data.Dataset):
        return []
    made_of = dataset._inputs()
    return [one for given in made_of for one in sources(given)] if made_of else [dataset]
