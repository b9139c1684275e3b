"""When a memory learns, when it is tried out, when it rests: pure updates of a state.

Memory is fresh where it is needed only while it draws: what uniform batches tell it of an example
is a pass old, and one that has learned of such has little to gain. So it is tried out. Once a
memory that knew all scores of the moment would nearly pay, uniform batches are remembered for a
term, what a sampler needs to learn all it can. Then memory draws for two stretches of an eighth of
a term, whatever is predicted, and for four more at most while its gain rises; and the switch
decides by what that has shown. Where memory has not paid, or no longer does, one term goes by
before it learns again, then 2, 4, …, until it has paid.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# A stretch is an eighth of a term, and so many steps at least.
_STRETCH_STEPS = 150
_LEAST_STRETCHES, _MOST_STRETCHES = 2, 6
# What a trial may cost, of the steps that are left.
_SHARE = 0.1
# What the gain has to rise by in a stretch for the next one.
_RISING = 1.05


class Trial(NamedTuple):
    """Where a memory is between resting, learning and being tried out.

    Attributes:
        learning: whether it is told of uniform batches. since: position at which that began.
        pause: terms to go by when it is given up next. until: position before which it does not
            learn again.
        stretches: of the trial, 0 when there is none. reached: the gain before the last of them.
    """

    learning: tf.Tensor
    since: tf.Tensor
    pause: tf.Tensor
    until: tf.Tensor
    stretches: tf.Tensor
    reached: tf.Tensor


def resting() -> Trial:
    """The state at first."""
    zero = tf.constant(0, tf.int64)
    return Trial(
        learning=tf.constant(False),
        since=zero,
        pause=zero + 1,
        until=zero,
        stretches=tf.constant(0),
        reached=tf.constant(1.0),
    )


def stretch(term: int, batch_size: int, group_size: int) -> int:
    """Decisions in a stretch, each on a group of examples."""
    return -(-max(term // 8, _STRETCH_STEPS * batch_size) // group_size)


def is_affordable(
    extra_cost: tf.Tensor, left: tf.Tensor, term: int, batch_size: int, group_size: int
) -> tf.Tensor:
    """Whether a trial costs no more than a tenth of the steps in which it may pay.

    Args:
        extra_cost: of a step that memory draws beyond a uniform one, in uniform ones.
        left: steps until the training ends.
    """
    steps = _LEAST_STRETCHES * stretch(term, batch_size, group_size) * group_size / batch_size
    return extra_cost * steps <= _SHARE * tf.cast(left, tf.float32)


def on_uniform(
    trial: Trial,
    position: tf.Tensor,
    term: int,
    promising: tf.Tensor,
    informed: tf.Tensor,
    at_once: tf.Tensor | bool = False,
) -> tuple[Trial, tf.Tensor]:
    """While batches are uniform: let memory learn, and then try it out.

    Args:
        position: uniform examples until now. term: visits that memory needs.
        promising: whether a perfect memory would nearly pay, and a trial costs little.
        informed: whether memory has something to draw by.
        at_once: whether it is to be tried out now, without having learned.
    Returns:
        The state, and for how many stretches memory is to draw now.
    """
    learned = position - trial.since
    tries = (promising & informed) | at_once
    # What has learned nothing in two terms has nothing to learn.
    ends = trial.learning & (learned >= term) & (tries | (learned >= 2 * term)) | at_once
    begins = promising & ~trial.learning & (position >= trial.until)
    begun = trial._replace(
        since=tf.where(begins, position, trial.since),
        learning=tf.where(trial.learning, ~ends, begins),
    )
    tried = begun._replace(stretches=tf.constant(_LEAST_STRETCHES), reached=tf.constant(1.0))
    rested = given_up(begun, position, term)
    after = where(ends, where(tries, tried, rested), begun)
    return after, tf.where(ends & tries, _LEAST_STRETCHES, 0)


def on_drawn(trial: Trial, gain: tf.Tensor, over: tf.Tensor) -> tuple[Trial, tf.Tensor]:
    """While memory draws: see whether its trial goes on, or has long been passed.

    Args:
        gain: r that memory has reached. over: whether the stretches are over that were granted.
    Returns:
        The state, and for how many stretches memory is to go on, whatever is predicted.
    """
    in_trial = trial.stretches > 0
    ends = in_trial & over
    rises = ends & (gain > _RISING * trial.reached) & (trial.stretches < _MOST_STRETCHES)
    after = trial._replace(
        pause=tf.where(in_trial, trial.pause, tf.ones_like(trial.pause)),
        stretches=tf.where(ends, tf.where(rises, trial.stretches + 1, 0), trial.stretches),
        reached=tf.where(ends, gain, trial.reached),
    )
    return after, tf.cast(rises, tf.int32)


def given_up(trial: Trial, position: tf.Tensor, term: int) -> Trial:
    """Memory does not pay: it rests."""
    return trial._replace(
        learning=tf.constant(False),
        until=position + trial.pause * term,
        pause=2 * trial.pause,
    )


def where(condition: tf.Tensor, one: Trial, other: Trial) -> Trial:
    """One state where a scalar condition holds, else the other."""
    return Trial(*(tf.where(condition, *pair) for pair in zip(one, other)))
