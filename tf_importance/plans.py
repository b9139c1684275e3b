"""What may become of a pre-sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tf_importance import arguments

# Of a pre-sample of 12 b, sampled at these rates ρ = R b/B.
_AUTO_FACTOR = 12
_AUTO_DRAWS = (1, 2, 3, 4, 6)


class Plan(NamedTuple):
    """One thing that may become of a pre-sample.

    Attributes:
        batch_size: examples in each batch.
        draws: R, number of batches drawn from it; 0 if it leaves whole, as uniform batches.
    """

    batch_size: int
    draws: int


class Menu(NamedTuple):
    """All that may become of the pre-samples of a pipeline.

    Attributes:
        presample_size: B.
        plans: the first is uniform batches of b.
    """

    presample_size: int
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
    each: tuple[int, ...]
    if auto:
        if draws != 1:
            raise ValueError(
                f"presample_size='auto' chooses draws_per_presample itself; got {draws}."
            )
        size, each = _AUTO_FACTOR * batch_size, _AUTO_DRAWS
    else:
        size, each = _presample_size(presample_size, batch_size, draws), (draws,)
    uniform = [Plan(smaller, 0) for smaller in sizes]
    # The same examples in smaller batches.
    drawn = [Plan(smaller, batch_size // smaller * d) for smaller in sizes for d in each]
    return Menu(size, (*uniform, *drawn))


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
