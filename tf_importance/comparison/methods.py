"""What is compared: this library's samplers, and what else people do, each a function of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_importance import samplers, scorers, switches
from tf_importance.comparison.classes import Head
from tf_importance.samplers.base import passing

# A class is rare that has less than a third of an equal share.
_RARE = 1 / 3
_SHARES = (0.1, 0.25, 0.5)
_FOCAL_GAMMA = 2.0


class Task(NamedTuple):
    """What is to be learned.

    Attributes:
        x, y: training examples, nests of arrays. size: n. batch_size: b.
        head: the classes, or None. labels: [n] of them. prior: [K] their shares.
        costs: of a step of each method, as far as they are known.
    """

    x: Any
    y: Any
    size: int
    batch_size: int
    head: Head | None = None
    labels: Any = None
    prior: Any = None
    costs: Mapping[str, float] = {}

    @property
    def is_rare(self) -> bool:
        """Whether a class is rare."""
        if self.prior is None:
            return False
        there = self.prior[self.prior > 0]
        return bool(there.min() * len(there) < _RARE)


class Rival(NamedTuple):
    """How others train, by plain Keras.

    Attributes:
        numbers: of a seed the batches of indices; None for pass after pass over all.
        weights: [n] sample weights, or None. loss: in place of the compiled one, or None.
        shift: [K] what is added to log probabilities to predict. fitted: whether they are
            calibrated on held-out data.
    """

    numbers: Callable[[int], tf.data.Dataset] | None = None
    weights: np.ndarray | None = None
    loss: Any = None
    shift: np.ndarray | None = None
    fitted: bool = False


class Method(NamedTuple):
    """A way to train.

    Attributes:
        sampler: of a task a new sampler; None for uniform batches and for rivals.
        rival: of a task how it is trained by plain Keras.
        follows_gain: whether the learning rate is multiplied by the gain.
        scorer: of the model. costs: by plan of a switch, the method whose step it costs.
    """

    sampler: Callable[[Task], samplers.Sampler] | None = None
    rival: Callable[[Task], Rival] | None = None
    follows_gain: bool = False
    scorer: scorers.Scorer = scorers.upper_bound
    costs: tuple[str, ...] = ()


# Ours -----------------------------------------------------------------------------------------


def _scored(task: Task, over: samplers.Sampler | None = None) -> samplers.Sampler:
    return samplers.Fresh(4 * task.batch_size, over=over)


def _memory(task: Task) -> samplers.Sampler:
    return samplers.RAIS()


def _scored_memory(task: Task) -> samplers.Sampler:
    return samplers.Fresh(3 * task.batch_size, over=samplers.RAIS())


def _switched(task: Task) -> samplers.Sampler:
    """By the costs that are known, for 8 batches at once: a switch that measures reads a clock."""
    memory = samplers.RAIS()
    members = [samplers.Uniform(), memory, samplers.Fresh(3 * task.batch_size, over=memory)]
    scoring, remembering = (
        8 * max(task.costs.get(name, by_default) - 1, 0.0)
        for name, by_default in (("memory, scored", 2.0), ("memory", 1.1))
    )
    switch = switches.Gain(step_seconds=1.0, scoring_seconds=scoring, memory_seconds=remembering)
    return samplers.Switched(members, by=switch)


OURS: Mapping[str, Method] = {
    "strata": Method(lambda task: samplers.Stratified()),
    "strata, scored": Method(lambda task: _scored(task, samplers.Stratified())),
    "scored": Method(_scored, follows_gain=True),
    "memory": Method(_memory, follows_gain=True),
    "memory, scored": Method(_scored_memory, follows_gain=True),
    "switched": Method(_switched, follows_gain=True, costs=("uniform", "memory", "memory, scored")),
    "inclusion": Method(lambda task: samplers.Inclusion()),
    "InfoBatch": Method(lambda task: samplers.InfoBatch(), scorer=scorers.loss),
}


# Others' --------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tf_importance.comparison")
class Moved(keras.losses.Loss):
    """−(1 − q)^γ log q, q ∝ p e^shift of the label: what moves logits, and focal loss.

    Args:
        head: classes, from_logits, one_hot. shift: [K]. gamma: γ (Lin et al. 2017, eq. 4).
    """

    def __init__(self, head, shift=None, gamma: float = 0.0, name="moved", **options) -> None:
        super().__init__(name=name, **options)
        self.head, self.gamma = Head(*head), gamma
        self.shift = None if shift is None else [float(value) for value in shift]

    def call(self, y_true, y_pred):
        logs = self.head.log_probabilities(y_pred)
        if self.shift is not None:
            logs = tf.nn.log_softmax(logs + tf.constant(self.shift, logs.dtype))
        if self.head.one_hot:
            own = tf.reduce_sum(tf.cast(y_true, logs.dtype) * logs, axis=-1)
        else:
            labels = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
            own = tf.gather(logs, labels, batch_dims=1)
        return -((1 - tf.exp(own)) ** self.gamma) * own if self.gamma else -own

    def get_config(self):
        own = {"head": list(self.head), "shift": self.shift, "gamma": self.gamma}
        return {**super().get_config(), **own}


def _class_weights(task: Task) -> Rival:
    """Weights 1/(K π_k), as "balanced" of scikit-learn; logits are moved back by their log."""
    of_class = 1 / (np.count_nonzero(task.prior) * _positive(task.prior))
    return Rival(weights=of_class[task.labels].astype(np.float32), shift=-np.log(of_class))


def _focal(task: Task) -> Rival:
    return Rival(loss=Moved(task.head, gamma=_FOCAL_GAMMA), fitted=True)


def _logit_adjusted(task: Task) -> Rival:
    """Cross-entropy of z + log π, z for balanced classes  (Menon et al. 2021, eq. 10)."""
    shift = np.log(_positive(task.prior))
    return Rival(loss=Moved(task.head, shift), shift=shift)


def _down_sampled(share: float) -> Callable[[Task], Rival]:
    """Common examples are left out until the others have a share; odds are put right."""

    def rival(task: Task) -> Rival:
        rest = task.prior.copy()
        common = int(np.argmax(rest))
        rest[common] = 0.0
        wanted = share * rest / rest.sum()
        wanted[common] = 1 - share
        shift = np.log(_positive(task.prior) / _positive(wanted))
        return Rival(lambda seed: _with_shares(task, wanted, seed), shift=shift)

    return rival


def _random_half(task: Task) -> Rival:
    """Trained on a half of the examples, drawn once: what pruning without scores gives."""
    kept = np.random.default_rng(1).permutation(task.size)[: (task.size + 1) // 2]
    return Rival(lambda seed: passes(kept, task.batch_size, seed))


OTHERS: Mapping[str, Method] = {
    "class weights": Method(rival=_class_weights),
    **{f"down-sampled, {share:.0%}": Method(rival=_down_sampled(share)) for share in _SHARES},
    "focal loss": Method(rival=_focal),
    "logit adjustment": Method(rival=_logit_adjusted),
    "a random half": Method(rival=_random_half),
}
UNIFORM = Method(rival=lambda task: Rival())


def by_default(task: Task) -> list[str]:
    """Names of what makes sense for a task."""
    if task.is_rare:
        return ["strata", "strata, scored", *OTHERS]
    return ["scored", "memory", "switched", "inclusion", "InfoBatch", "a random half"]


def needs_classes(name: str) -> bool:
    """Whether a method asks for a cross-entropy of classes."""
    return name in OTHERS and name != "a random half"


def passes(numbers: np.ndarray, batch_size: int, seed: int) -> tf.data.Dataset:
    """Endless batches of indices, pass after pass, each in a new order.

    The very batches that a switched sampler's uniform steps have with this seed: while it draws
    nothing it is the same run, and a difference between two runs is one of methods.
    """
    numbers, size = tf.constant(numbers), len(numbers)
    seeds = tf.fill([2], tf.constant(seed, tf.int64))

    def batch(number: tf.Tensor) -> tf.Tensor:
        return tf.gather(numbers, passing(number * batch_size, batch_size, size, seeds).indices)

    return tf.data.Dataset.counter().map(batch)


def _with_shares(task: Task, wanted: np.ndarray, seed: int) -> tf.data.Dataset:
    """Batches in which class k has the share wanted[k], each class pass after pass."""
    there = [k for k in range(len(wanted)) if wanted[k] > 0]
    of_class = [
        tf.data.Dataset.from_tensor_slices(found).shuffle(len(found), seed=seed).repeat()
        for found in (np.flatnonzero(task.labels == k) for k in there)
    ]
    weights = [float(wanted[k]) for k in there]
    mixed = tf.data.Dataset.sample_from_datasets(of_class, weights, seed=seed)
    return mixed.batch(task.batch_size, drop_remainder=True)


def _positive(prior: np.ndarray) -> np.ndarray:
    """With 1 for classes that are not there."""
    return np.where(prior > 0, prior, 1.0)
