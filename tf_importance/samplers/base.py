"""What a sampler with memory is."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_importance import compat, graphs, proposals
from tf_importance.arguments import (
    Written,
    named,
    one_of,
    positive_integer,
    public_kinds,
    to_be_made,
)
from tf_importance.draws import Draws, Seen
from tf_importance.journal import Journal
from tf_importance.marks import Drawing
from tf_importance.samplers.gain import GainEstimator

# Rows of a source by their indices [b]: (x, y), nests of [b, …].
Gather = Callable[[tf.Tensor], tuple[Any, Any]]
# The kind of a batch that is uniform, to be compared with what a memory draws: one in so many, and
# the first of them.
COMPARED = -1
_COMPARED_EVERY, _COMPARED_FIRST = 32, 16
# What a memory draws by is mixed with so much of 1/n: all examples stay within reach, whatever is
# remembered of them, and no weight is above 100.
UNIFORM_SHARE = 0.01
# By default a block is no larger than this share of the data, and of so many batches at most.
_OF_THE_DATA = 1 / 8
_LARGEST_BLOCK = 32
# Numbers of batches, and their size.
_PART = (tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int64))


class Draw(NamedTuple):
    """Examples drawn from a sampler.

    Attributes:
        indices: [b] int64, with replacement.
        weights: [b] float32 importance weights, 1/(n p_i) unless the sampler says otherwise.
    """

    indices: tf.Tensor
    weights: tf.Tensor


class BiasedDraw(NamedTuple):
    """The same with weights that are not 1/(n p_i); `memory` is, [b] float32."""

    indices: tf.Tensor
    weights: tf.Tensor
    memory: tf.Tensor


class Turn(NamedTuple):
    """Which examples are to be drawn.

    Attributes:
        batches, size: K and b.
        number: scalar int64, how many batches were drawn before.
        position: scalar int64, how many examples were drawn before.
        seed: [2] int64, the same for all batches of a dataset.
    """

    batches: int
    size: int
    number: tf.Tensor
    position: tf.Tensor
    seed: tf.Tensor

    @property
    def examples(self) -> int:
        """K b."""
        return self.batches * self.size

    @property
    def own_seed(self) -> tf.Tensor:
        """[2] int64, of these batches alone."""
        return tf.stack([self.seed[0] + self.number, self.seed[1] - 7_919 * self.number])


class Proposal(NamedTuple):
    """By what a memory draws: p_i ∝ ⟨leaf_i, mixing⟩.

    Attributes:
        tree: a `SumTree` of n leaves. mixing: [columns] float64.
        total: scalar float64, the sum over all; not finite or 0 where there is nothing to draw by.
    """

    tree: Any
    mixing: tf.Tensor
    total: tf.Tensor

    @property
    def usable(self) -> tf.Tensor:
        """Whether there is something to draw by."""
        return tf.math.is_finite(self.total) & (self.total > 0)


class Visit(NamedTuple):
    """What training saw of examples.

    Attributes:
        indices: [b] int64.
        weights: [b] float32, as they were drawn with.
        scores: [b] float32, of the step's own forward pass; may be NaN, infinite or negative.
    """

    indices: tf.Tensor
    weights: tf.Tensor
    scores: tf.Tensor


class _Unmirrored(type(tf.Module)):  # type: ignore[misc]
    """Makes one memory for all replicas, also in the scope of their strategy."""

    def __call__(cls, *args, **kwargs):
        with compat.unmirrored():
            return super().__call__(*args, **kwargs)


class Sampler(Written, tf.Module, metaclass=_Unmirrored):
    """Chooses examples by what earlier visits to them saw.

    A pipeline plans a block of K batches at once (`plan`); the training steps on them write what
    they see to the journal; before a block is planned, the sampler takes up what the steps on the
    blocks before the last one have seen (`learn`). A sampler of one's own defines `_draw` and
    `update`.

    All state is in variables: a `tf.train.Checkpoint` of a model compiled with the sampler
    holds it, and a restored sampler goes on as the first one would have, bit for bit. All of it are
    TensorFlow operations.

    Args:
        num_examples: n; by default that of the data it comes to draw from.
        gain_smoothing: α in (0, 1], the share of the newest batch in the averages of the gain
            ratio.
    Attributes:
        num_examples: n; 0 as long as it is not known.
        journal: what was planned, and what steps saw.
        draws: variable, number of batches planned.
        steps: variable, number of batches trained on.
        position: variable, number of examples planned.
        gain: a `GainEstimator`.
        may_draw_ahead: whether a batch may be drawn before the step on the last one is done.
        has_limits: whether `limits` are any.
        knows_at_start: whether it has something to draw by before it has learned anything.
        averages_statistics: whether batch normalization normalizes what it draws by an average over
            batches; else by a pre-sample's or the batch's own weighted statistics.
        moves_logits: whether losses have no weights, and logits are moved by `logit_shift`.
        is_biased: whether its weights are others than 1/(n p_i), and it gives `BiasedDraw`s.
        is_normalized: whether they have a common factor that depends on the batch.
        is_compared: whether uniform batches are drawn among its own where the learning rate follows
            the gain, which they are compared with.
        follows_training: whether it learns in `maintain`, after each step, and `begin` and `end`
            must be called; else it learns between blocks.
        serves_replicas: whether several replicas may train on what it draws.
        spans_processes: whether all processes of a strategy have one memory; else each has its own.
        replicas: how many train on what it draws, of all processes that it spans.
    Raises:
        ValueError: num_examples is not a positive integer, or gain_smoothing out of range.
    """

    may_draw_ahead = True
    has_limits = False
    knows_at_start = False
    averages_statistics = True
    moves_logits = False
    is_biased = False
    is_normalized = False
    is_compared = True
    follows_training = False
    serves_replicas = True
    spans_processes = True
    replicas = 1

    def __reduce__(self):
        values = [variable.numpy() for variable in self.variables]
        args, kwargs = self._made_of()
        return _made_again, (type(self), args, kwargs, self.num_examples, values)

    def __init__(self, num_examples: int | None = None, gain_smoothing: float = 0.01) -> None:
        super().__init__(name=type(self).__name__)
        self.num_examples = 0
        self.gain = GainEstimator(gain_smoothing, self.is_normalized)
        self.journal = Journal()
        # Of draws without a seed: kept, so that a later training goes on with the same pass.
        own = np.random.randint(2**31)
        self.seed = tf.Variable(own, dtype=tf.int64, trainable=False, name="seed")
        self.position = tf.Variable(0, dtype=tf.int64, trainable=False, name="position")
        self._gather: Gather | None = None
        self._restore: Callable[[], None] | None = None
        self._model: Callable[[], Any] = lambda: None
        # Objects with `rewind()` and `expect()`, that read what is planned.
        self.datasets: weakref.WeakSet = weakref.WeakSet()
        # Of a function: what a tf.Module holds as a dict becomes part of checkpoints.
        self._compiled = {
            # A part of a block has any length.
            "planned": graphs.traced_once(self._planned, _PART),
            "put_plan": graphs.traced_once(self._put_plan),
            "take_up": graphs.traced_once(self._take_up_finished),
        }.__getitem__
        if num_examples is not None:
            self.build(num_examples)

    # For each sampler to define ---------------------------------------------------------

    def _build(self) -> None:
        """Make the variables, for `num_examples`; called once."""

    def _draw(self, turn: Turn) -> Draw | BiasedDraw:
        """Draw the examples of the next batches: [K b], those of the first batch first."""
        raise NotImplementedError

    def update(self, visit: Visit) -> tf.Tensor:
        """Remember visits.

        Returns:
            [b] factors for the losses of these visits, 1 for most samplers; see `limits`.
        """
        return tf.ones_like(visit.scores)

    def limits(self, indices: tf.Tensor) -> tf.Tensor:
        """Scores from which on the losses of these examples are scaled down: [b] float32."""
        return tf.fill(tf.shape(indices), float("inf"))

    def tend(self) -> None:
        """What may be due between two blocks, beside learning; in Python."""

    @property
    def term(self) -> int:
        """Visits by which it has learned all that it can; for `weights_of`."""
        raise NotImplementedError

    def why_off(self) -> str:
        """Why all batches of a training were uniform."""
        return f"{type(self).__name__} had nothing to draw by yet"

    def informed(self) -> tf.Tensor:
        """Whether there is something to draw by, scalar bool; for `weights_of`."""
        raise NotImplementedError

    def weights_of(self, indices: tf.Tensor) -> tf.Tensor:
        """1/(n p_i) of any examples, were they drawn now: [b] float32.

        Of a sampler that a switch can weigh against uniform batches; others have none.
        """
        raise NotImplementedError

    @property
    def tells_weights(self) -> bool:
        """Whether it has `weights_of`."""
        return type(self).weights_of is not Sampler.weights_of

    def proposal(self) -> Proposal:
        """By what it draws now; of a memory that can draw within strata, others have none."""
        raise NotImplementedError

    def logit_shift(self, loss: Any, outputs: Any) -> tf.Tensor:
        """What is added to the logits in the loss, where `moves_logits`: [C].

        Args:
            loss: as compiled. outputs: the net's.
        """
        raise NotImplementedError

    def maintain(self, updates: int, model) -> None:
        """What is to be done between steps, outside of the graph. Cheap when nothing is due.

        Args:
            updates: `steps`, known without a look at the variable.
            model: the ISModel in training.
        """

    def expect(self, batches: int) -> None:
        """Told by `fit` how many batches it will train on, where that is known."""

    def begin(self) -> None:
        """Called before the first step of a training, restored or not."""

    def end(self) -> None:
        """Called after the last step."""

    def logs(self) -> dict[str, tf.Tensor]:
        """Numbers for the training logs."""
        return {"late": tf.cast(self.journal.late, tf.float32)}

    def check_batch_size(self, batch_size: int) -> None:
        """Raise a ValueError for a batch size that the sampler cannot work with."""

    def row_size(self, batch_size: int) -> int:
        """How many examples are planned for a batch of b, at most: b."""
        return batch_size

    def sizes(self, batch_size: int) -> list[int]:
        """How many are planned for a batch of each kind: [b] where there is one kind."""
        return [batch_size]

    def drawing(self, batch_size: int) -> Drawing:
        """What the step must know of batches of b that it draws."""
        del batch_size
        return Drawing(sampler=self)

    def default_block(self, batch_size: int) -> int:
        """K where nobody asks for another: of an eighth of the data, and 32 batches at most."""
        of_data = int(_OF_THE_DATA * self.num_examples) // self.row_size(batch_size)
        return max(1, min(of_data, _LARGEST_BLOCK, self.largest_block(batch_size)))

    def largest_block(self, batch_size: int) -> int:
        """K at most: two blocks have room in the journal."""
        return max(1, self.journal.batches(batch_size) // 2)

    # For all samplers ---------------------------------------------------------------------

    @property
    def draws(self) -> tf.Variable:
        """Number of batches planned."""
        return self.journal.planned

    @property
    def steps(self) -> tf.Variable:
        """Number of batches trained on."""
        return self.journal.trained

    def build(self, num_examples: int) -> None:
        """Make it one for n examples.

        Raises:
            ValueError: it is one for another number already.
        """
        num_examples = positive_integer("num_examples", num_examples)
        if not self.num_examples:
            self.num_examples = num_examples
            with compat.unmirrored():
                self._build()
        elif self.num_examples != num_examples:
            raise ValueError(
                f"sampler was made for num_examples={self.num_examples}, and the source has "
                f"{num_examples}; make a new {type(self).__name__}."
            )
        if self._restore is not None:
            self._restore()
            self._restore = None

    def restore_by(self, restore: Callable[[], None]) -> None:
        """Call this once it is known for how many examples the sampler is."""
        self._restore = restore

    def draw(self, size: int, seed=None) -> Draw:
        """Draw the next batch.

        Args:
            size: b.
            seed: an integer or [2] integers, the sampler's own by default; batches differ by their
                number even so.
        """
        drawn = self._draw(self._turn(1, size, seed))
        self.draws.assign_add(1)
        self.position.assign_add(size)
        return Draw(*drawn[:2])

    def plan(self, batches: int, size: int, seed=None) -> Draws:
        """Plan a block, by what is known now.

        Args:
            batches: K. size: b. seed: as in `draw`.
        """
        drawn = self._draw(self._turn(batches, size, seed))
        self.position.assign_add(batches * size)
        gains = tf.fill([batches * size], tf.identity(self.gain.ratio))
        memory = drawn.memory if isinstance(drawn, BiasedDraw) else drawn.weights
        parts = (*drawn[:2], self.limits(drawn.indices), gains, memory)
        examples = (tf.reshape(part, [batches, size]) for part in parts)
        return Draws._make([*examples, tf.zeros([batches], tf.int32)])

    def learn(self, draws: Draws, seen: Seen) -> None:
        """Take up what steps on planned batches saw, in the order of their numbers."""
        self.remember(draws, seen)
        uniform = tf.equal(draws.kinds, COMPARED) if self.compares else None
        self.gain.learn(seen.moments, uniform)

    def remember(self, draws: Draws, seen: Seen) -> None:
        """The same for the memory alone; batches of one size."""
        parts = (draws.indices, draws.weights, seen.scores)
        self.update(Visit(*(tf.reshape(part, [-1]) for part in parts)))

    @property
    def compares(self) -> bool:
        """Whether some of its batches are uniform, since the learning rate follows the gain."""
        model = self._model()
        return self.is_compared and model is not None and model.follows_gain

    # Compiled once, called by the datasets that draw by it --------------------------------

    def planned(self, first: int, end: int, batch_size: int) -> tuple[Draws, tf.Tensor]:
        """What is planned of batches first … end − 1, and their numbers: [M, b] each."""
        size = tf.constant(batch_size, tf.int64)
        return self._compiled("planned")(tf.range(first, end, dtype=tf.int64), size)

    def put_plan(
        self, batches: int, size: int, seed: int | None, compares: bool
    ) -> tuple[Draws, tf.Tensor]:
        """Plan a block, and write it to the journal; what it is, as `planned` has it."""
        seed = tf.identity(self.seed) if seed is None else tf.constant(seed, tf.int64)
        return self._compiled("put_plan")(batches, size, seed, compares)

    def take_up(self, end: int, batch_size: int) -> None:
        """Learn what the steps on batches before `end` saw."""
        self._compiled("take_up")(tf.constant(end, tf.int64), batch_size, self.compares)

    def _planned(self, numbers: tf.Tensor, batch_size: tf.Tensor) -> tuple[Draws, tf.Tensor]:
        rows = tf.repeat(numbers[:, tf.newaxis], batch_size, axis=1)
        return self.journal.plans(numbers, batch_size), rows

    def _put_plan(
        self, batches: int, size: int, seed: tf.Tensor, compares: bool
    ) -> tuple[Draws, tf.Tensor]:
        first = tf.identity(self.draws)
        draws = self.plan(batches, size, seed)
        if compares:
            draws = self._with_uniform(draws, first, seed)
        self._count(draws)
        numbers = self.journal.put(draws)
        return draws, tf.repeat(numbers[:, tf.newaxis], draws.indices.shape[1], axis=1)

    def _with_uniform(self, draws: Draws, first: tf.Tensor, seed: tf.Tensor) -> Draws:
        """With uniform batches in the place of one in 32."""
        numbers = first + tf.range(draws.kinds.shape[0], dtype=tf.int64)
        numbers //= self.replicas
        there = tf.equal(numbers % _COMPARED_EVERY, _COMPARED_FIRST) & self._are_drawn(draws)
        # By other random numbers than the draws.
        seeds = tf.stack([seed, -1 - first])
        uniform = tf.random.stateless_uniform(
            draws.indices.shape, seeds, maxval=self.num_examples, dtype=tf.int64
        )
        ones = tf.ones_like(draws.weights)
        others = (uniform, ones, float("inf") * ones, ones, ones)
        chosen = (
            tf.where(there[:, tf.newaxis], other, part)
            for other, part in zip(others, draws.of_examples)
        )
        return Draws._make([*chosen, tf.where(there, COMPARED, draws.kinds)])

    def _count(self, draws: Draws) -> None:
        """Tell the model how many batches are drawn, for the log `importance`."""
        model = self._model()
        if model is not None:
            drawn = tf.reduce_sum(tf.cast(self._are_drawn(draws), tf.float32))
            model.count(drawn=drawn, uniform=draws.kinds.shape[0] - drawn)

    def _are_drawn(self, draws: Draws) -> tf.Tensor:
        """[K] which batches are no uniform ones, as those of a first pass are."""
        return tf.reduce_any(tf.not_equal(draws.memory, 1.0), axis=1)

    def _take_up_finished(self, end: tf.Tensor, batch_size: int, compares: bool) -> None:
        # `learn` asks for it too; an argument has this traced anew where it changes.
        del compares
        draws, seen = self.journal.finished(end, batch_size)

        def learned() -> None:
            self.learn(draws, seen)

        tf.cond(tf.shape(draws.indices)[0] > 0, learned, lambda: None)

    def _turn(self, batches: int, size: int, seed) -> Turn:
        seed = tf.cast(self.seed if seed is None else seed, tf.int64)
        seed = tf.stack([seed, seed]) if seed.shape.rank == 0 else seed
        number, position = tf.identity(self.draws), tf.identity(self.position)
        return Turn(batches, size, number, position, seed)

    def rewind(self) -> None:
        """A training begins: its dataset goes on behind the last batch that was trained on."""
        for dataset in self.datasets:
            dataset.rewind()

    def bind(self, model) -> None:
        """Belong to a model; called when it is compiled with this sampler.

        Raises:
            ValueError: it belongs to another one.
        """
        other = self._model()
        if other is not None and other is not model:
            raise ValueError(
                f"this {type(self).__name__} belongs to model {other.name!r}, and model "
                f"{model.name!r} would mix its scores with that one's; make a sampler for each."
            )
        self._model = weakref.ref(model)

    @property
    def trained_model(self):
        """The model that was compiled with it, None for none yet."""
        return self._model()

    @property
    def model(self):
        """The model that was compiled with it.

        Raises:
            ValueError: there is none.
        """
        model = self._model()
        if model is None:
            raise ValueError(
                f"{type(self).__name__} scores examples by the model, and belongs to none; give "
                "model.compile(…, sampler=sampler)."
            )
        return model

    def attach(self, gather: Gather) -> None:
        """Tell the sampler how to get examples, should it want to score some itself."""
        self._gather = gather

    @property
    def gather(self) -> Gather:
        """How to get examples, for a sampler that scores some itself.

        Raises:
            ValueError: nobody has told.
        """
        if self._gather is None:
            raise ValueError(
                f"{type(self).__name__} scores examples itself, and needs to know them: draw by a "
                "dataset of tfi.history_sample(source, sampler, …)."
            )
        return self._gather


def _made_again(kind: type[Sampler], args, kwargs, num_examples: int, values) -> Sampler:
    """A sampler that was pickled or is copied."""
    sampler = kind(*args, **kwargs)
    if num_examples:
        sampler.build(num_examples)
    for variable, value in zip(sampler.variables, values):
        variable.assign(value)
    return sampler


def passing(position: tf.Tensor, size: int, num_examples: int, seed: tf.Tensor) -> Draw:
    """The examples at positions of endless passes over the data, each in an order of its own.

    Without replacement within a pass, as uniform SGD usually has it, and all weights 1. Takes
    O(b): no permutation is ever written down.

    Args:
        position: scalar int64, of the first one. size: b. num_examples: n. seed: [2] int64.
    """
    positions = position + tf.range(size, dtype=tf.int64)
    passes = positions // num_examples
    seeds = tf.stack([tf.fill([size], seed[0]), tf.fill([size], seed[1]), passes], axis=1)
    within = positions % num_examples
    if num_examples > 1:
        # tf.random.experimental.index_shuffle pads the seeds, and refuses one for each index.
        within = tf.raw_ops.RandomIndexShuffle(
            index=within, seed=seeds, max_index=tf.constant(num_examples - 1, tf.int64), rounds=4
        )
    return Draw(tf.ensure_shape(within, [size]), tf.ones([size]))


def uniform_points(turn: Turn) -> tf.Tensor:
    """[K b] float64 in [0, 1), of the batches from `number` on."""
    return tf.random.stateless_uniform([turn.examples], turn.own_seed, dtype=tf.float64)


def systematic_points(turn: Turn) -> tf.Tensor:
    """The same, for each batch one in each b-th part of [0, 1), all at one offset."""
    offsets = tf.random.stateless_uniform([turn.batches, 1], turn.own_seed, dtype=tf.float64)
    parts = tf.range(turn.size, dtype=tf.float64)
    return tf.reshape((parts + offsets) / turn.size, [-1])


# By the name of the argument `resampling`.
_POINTS = {"multinomial": uniform_points, "systematic": systematic_points}


def points_of(resampling: str) -> Callable[[Turn], tf.Tensor]:
    """Where batches are drawn: independently, or spread out evenly.

    Raises:
        ValueError: the name is unknown.
    """
    return _POINTS[one_of("resampling", resampling, _POINTS)]


def from_all(scores: tf.Tensor, turn: Turn) -> Draw:
    """Draw by p_i ∝ the scores [n] of all examples, uniformly where they are unusable: O(n)."""
    proposal = proposals.normalize(tf.cast(scores, tf.float64))
    ends = tf.cumsum(proposal)
    points = uniform_points(turn) * ends[-1]
    indices = tf.searchsorted(ends, tf.minimum(points, ends[-1] * (1 - 2.0**-50)), side="right")
    weights = tf.gather(proposals.importance_weights(proposal), indices)
    return Draw(tf.cast(indices, tf.int64), tf.cast(weights, tf.float32))


def refuse_other(sampler: Any, wanted: str = "one of tfi.samplers", name: str = "sampler") -> None:
    """Refuse what is no sampler.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(sampler, Sampler):
        remedy = to_be_made(sampler, "tfi.samplers", public_kinds(Sampler))
        raise TypeError(f"{name} must be {wanted}; got {named(sampler)}.{remedy}")


def check(sampler: Any, replicas_here: int, replicas: int) -> None:
    """Refuse what a model cannot be compiled with.

    Args:
        replicas_here, replicas: of this process, and of all.
    Raises:
        TypeError: not None and not a sampler.
        ValueError: a sampler for several replicas.
    """
    if sampler is None:
        return
    refuse_other(sampler, "one of tfi.samplers, or None")
    count = replicas if sampler.spans_processes else replicas_here
    if count > 1 and not sampler.serves_replicas:
        raise ValueError(
            f"a {type(sampler).__name__} works on one replica of a process; got a strategy of "
            f"{count}. Give RAIS, Proportional, RankBased, Stratified, Inclusion or Fresh, which "
            "work on several, or use importance_sample."
        )
