"""What may become of a group of examples."""

from __future__ import annotations

from typing import NamedTuple

from tf_importance import arguments, gain

# Pre-samples of so many b that "auto" chooses from; each divides the largest.
_AUTO = (12, 6, 4, 3, 2)


class Plan(NamedTuple):
    """One thing that may become of a group of examples.

    Attributes:
        batch_size: b, examples in each batch.
        draws: R, number of batches drawn from each pre-sample; 0 if the group leaves whole, as
            uniform batches.
        presample_size: B, which divides the group; 0 where nothing is drawn.
        remembered: whether a sampler's memory draws the pre-sample, or strata do, or first scores;
            without one, or one of b, the batch.
        per_batch: whether a group is so many batches, each with a pre-sample of its own.
        cascaded: whether one pre-sample is drawn from each group, by first scores.
    """

    batch_size: int
    draws: int = 0
    presample_size: int = 0
    remembered: bool = False
    per_batch: bool = False
    cascaded: bool = False

    @property
    def rate(self) -> float:
        """ρ = R b/B."""
        return self.draws * self.batch_size / self.presample_size

    @property
    def rescored(self) -> bool:
        """Whether fresh scores choose the batch."""
        return self.draws > 0 and (self.presample_size > self.batch_size or not self.remembered)

    @property
    def is_compared(self) -> bool:
        """Whether its batches are compared with uniform ones: not those by a stream's strata."""
        return self.draws > 0 and (self.per_batch or self.cascaded or not self.remembered)

    def batches(self, group_size: int) -> int:
        """Number of batches that a group becomes."""
        if self.draws and not self.per_batch:
            return self.draws * self.presamples(group_size)
        return group_size // self.batch_size

    def presamples(self, group_size: int) -> int:
        """Number of pre-samples that are drawn from a group, or that it consists of."""
        return 1 if self.cascaded else group_size // (self.presample_size or group_size)


class Menu(NamedTuple):
    """All that may become of the groups of a pipeline.

    Attributes:
        group_size: examples that are decided on at once.
        plans: the first is uniform batches of b; of strata, where there are any.
    """

    group_size: int
    plans: tuple[Plan, ...]

    def sampling(self, smoothing: float) -> gain.Sampling:
        """What a step must know to measure the moments of the gain: ρ of the plans that score, and
        of a single batch b/B."""
        drawn = [plan for plan in self.plans if plan.rescored]
        rates = {plan.rate for plan in drawn} | {p.batch_size / p.presample_size for p in drawn}
        return gain.Sampling(tuple(sorted(rates)), smoothing)


def menu(
    batch_size: int,
    presample_size: int | str | None = None,
    draws: int = 1,
    measured: bool = True,
    stratified: bool = False,
    first_size: int | None = None,
) -> Menu:
    """The plans that the arguments of `importance_sample` allow.

    Args:
        batch_size: b. presample_size: B, 4b by default, or "auto". draws: R.
        measured: whether there is a switch that can choose between more than two plans.
        stratified: whether groups are drawn by strata.
        first_size: F, of which pre-samples are drawn by a first score; None for no such score.
    Raises:
        ValueError: they do not fit together.
    """
    batch_size = arguments.positive_integer("batch_size", batch_size)
    draws = arguments.positive_integer("draws_per_presample", draws)
    if measured:
        _check_pairs(batch_size)
    if presample_size == "auto":
        if not measured:
            raise ValueError(
                "presample_size='auto' is chosen by measured gain and cost; give "
                "switch=tfi.switches.Gain()."
            )
        if draws != 1:
            raise ValueError(
                "presample_size='auto' draws one batch from each; got "
                f"draws_per_presample={draws}. Leave it out."
            )
        presamples = [factor * batch_size for factor in _AUTO]
    else:
        presamples = [_presample_size(presample_size, batch_size, draws)]
    cascaded = first_size is not None
    by_other = stratified or cascaded
    drawn = [
        Plan(batch_size, draws, presample, by_other, cascaded=cascaded) for presample in presamples
    ]
    group_size = presamples[0] if first_size is None else first_size
    if first_size is not None:
        _check_first_size(first_size, batch_size, presamples)
    return Menu(group_size, (Plan(batch_size, remembered=stratified), *drawn))


def remembered(batch_size: int, presample_size: int | None, batches: int) -> Menu:
    """What may become of the batches that a sampler with memory draws.

    Args:
        batch_size: b. presample_size: B, None for no fresh scores.
        batches: that are decided on at once.
    Raises:
        ValueError: batches are of one example.
    """
    _check_pairs(batch_size)
    drawn = [Plan(batch_size, 1, batch_size, remembered=True, per_batch=True)]
    if presample_size is not None:
        drawn.append(drawn[0]._replace(presample_size=presample_size))
    return Menu(batches * batch_size, (Plan(batch_size), *drawn))


def _check_first_size(first_size: int, batch_size: int, presample_sizes: list[int]) -> None:
    arguments.positive_integer("first_size", first_size)
    if first_size % batch_size or first_size <= max(presample_sizes):
        raise ValueError(
            "first_size must be a multiple of batch_size, and larger than presample_size, which is "
            f"drawn of it; got {first_size}, {batch_size} and {max(presample_sizes)}."
        )
    if min(presample_sizes) <= batch_size:
        raise ValueError(
            "presample_size must be larger than batch_size where it is drawn by a first score, or "
            f"the second one has nothing to choose; got {min(presample_sizes)} and {batch_size}."
        )


def _check_pairs(batch_size: int) -> None:
    if batch_size < 2:
        raise ValueError(
            "a Gain switch tells noise from the mean gradient by pairs of examples, and needs "
            f"batches of 2 at least; got {batch_size}. "
            "Give a larger batch_size, or another switch."
        )


def _presample_size(value: int | str | None, batch_size: int, draws: int) -> int:
    size = 4 * batch_size if value is None else value
    size = arguments.positive_integer("presample_size", size)
    if size < batch_size or size % batch_size:
        raise ValueError(
            "presample_size must be a multiple of batch_size, so that a pre-sample which is "
            f"not drawn from leaves as whole batches; got {size} and {batch_size}. "
            f"Give {max(1, round(size / batch_size)) * batch_size}."
        )
    if draws * batch_size > size:
        raise ValueError(
            "draws_per_presample · batch_size must be at most presample_size, since more would "
            f"be drawn than there is; got {draws} · {batch_size} and {size}."
        )
    return size
