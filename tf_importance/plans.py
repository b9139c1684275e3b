"""What may become of a pre-sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tf_importance import arguments

# Pre-samples of so many b that "auto" chooses from; each divides the largest.
_AUTO = (12, 6, 4, 3, 2)


class Plan(NamedTuple):
    """One thing that may become of a group of examples.

    Attributes:
        batch_size: examples in each batch.
        draws: R, number of batches drawn from each pre-sample; 0 if the group leaves whole, as
            uniform batches.
        presample_size: B, which divides the group; 0 where nothing is drawn.
        remembered: whether a sampler's memory draws the pre-sample; of B = b it is the batch.
    """

    batch_size: int
    draws: int = 0
    presample_size: int = 0
    remembered: bool = False

    @property
    def rate(self) -> float:
        """ρ = R b/B."""
        return self.draws * self.batch_size / self.presample_size

    @property
    def rescored(self) -> bool:
        """Whether fresh scores choose the batch."""
        return self.presample_size > self.batch_size or (self.draws > 0 and not self.remembered)

    def batches(self, group_size: int) -> int:
        """Number of batches that a group becomes."""
        if self.draws and not self.remembered:
            return self.draws * (group_size // self.presample_size)
        return group_size // self.batch_size


class Menu(NamedTuple):
    """All that may become of the groups of a pipeline.

    Attributes:
        group_size: examples that are decided on at once.
        plans: the first is uniform batches of b.
    """

    group_size: int
    plans: tuple[Plan, ...]


def menu(
    batch_size: int,
    presample_size: int | str | None = None,
    draws: int = 1,
    min_batch_size: int | None = None,
    measured: bool = True,
) -> Menu:
    """The plans that the arguments of `importance_sample` allow.

    Args:
        batch_size: b. presample_size: B, 4b by default, or "auto". draws: R.
        min_batch_size: the smallest batch size, which halving b leads to.
        measured: whether there is a switch that can choose between more than two plans.
    Raises:
        ValueError: they do not fit together.
    """
    batch_size = arguments.positive_integer("batch_size", batch_size)
    draws = arguments.positive_integer("draws_per_presample", draws)
    auto = presample_size == "auto"
    if (auto or min_batch_size is not None) and not measured:
        raise ValueError(
            "presample_size='auto' and min_batch_size are chosen by measured gain and cost; give "
            f"switch=tfi.switches.Gain(). Got {presample_size!r} and {min_batch_size!r}."
        )
    sizes = _batch_sizes(batch_size, min_batch_size)
    if auto:
        if draws != 1:
            raise ValueError(f"presample_size='auto' draws one batch from each; got {draws}.")
        presamples = [factor * batch_size for factor in _AUTO]
    else:
        presamples = [_presample_size(presample_size, batch_size, draws)]
    uniform = [Plan(smaller) for smaller in sizes]
    # Smaller batches are drawn at the same rates from smaller pre-samples.
    drawn = [
        Plan(smaller, draws, presample * smaller // batch_size)
        for smaller in sizes
        for presample in presamples
    ]
    return Menu(presamples[0], (*uniform, *drawn))


def remembered(batch_size: int, presample_size: int | None, batches: int) -> Menu:
    """What may become of the batches that a sampler with memory draws.

    Args:
        batch_size: b. presample_size: B, None for no fresh scores.
        batches: that are decided on at once.
    """
    drawn = [Plan(batch_size, 1, batch_size, remembered=True)]
    if presample_size is not None:
        drawn.append(Plan(batch_size, 1, presample_size, remembered=True))
    return Menu(batches * batch_size, (Plan(batch_size), *drawn))


def _presample_size(value: int | str | None, batch_size: int, draws: int) -> int:
    size = 4 * batch_size if value is None else value
    size = arguments.positive_integer("presample_size", size)
    if size < batch_size or size % batch_size:
        raise ValueError(
            "presample_size must be a multiple of batch_size, so that a pre-sample which is "
            f"not drawn from leaves as whole batches; got {size} and {batch_size}."
        )
    if draws * batch_size > size:
        raise ValueError(
            "draws_per_presample · batch_size must be at most presample_size, since more would "
            f"be drawn than there is; got {draws} · {batch_size} and {size}."
        )
    return size


def _batch_sizes(batch_size: int, smallest: int | None) -> Sequence[int]:
    """b, b/2, b/4, … down to the smallest."""
    if smallest is None:
        return [batch_size]
    smallest = arguments.positive_integer("min_batch_size", smallest)
    halvings = batch_size // smallest
    if smallest * halvings != batch_size or halvings & (halvings - 1):
        raise ValueError(
            "min_batch_size must be batch_size halved a number of times; got "
            f"{smallest} and {batch_size}."
        )
    return [batch_size >> k for k in range(halvings.bit_length())]
