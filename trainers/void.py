"""Flags that do nothing beside others are refused: who gives one expects something of it."""

from __future__ import annotations

from collections.abc import Collection

from absl import flags

import tf_importance as tfi

_FRESH = tuple(sorted(tfi.scorers.BY_NAME))
# For which values of --sampling a flag does something.
_OF_SAMPLING: dict[str, Collection[str]] = {
    "alpha": ("proportional",),
    "beta": ("proportional", "rank_based"),
    "selection_pressure": ("rank_based",),
    "recompute_every": ("rank_based",),
    "kept": ("inclusion", "info_batch"),
    "draws_per_presample": _FRESH,
    "tau_threshold": _FRESH,
}
_OF_REDUCTION = ("epochs_per_batch_gradient", "large_batch", "growth_rate")


def refuse(settings: flags.FlagValues) -> None:
    """Refuse what does nothing with this --sampling, --switch and --variance_reduction.

    Raises:
        ValueError: such a flag is given, and not its default.
    """
    for name, ways in _OF_SAMPLING.items():
        if _given(settings, name) and settings.sampling not in ways:
            raise ValueError(
                f"--{name} does nothing with --sampling={settings.sampling}; leave it out, or "
                f"give --sampling={' or '.join(ways)}."
            )
    if _given(settings, "tau_threshold") and settings.switch == "gain":
        raise ValueError(
            "--tau_threshold does nothing with --switch=gain, which measures what draws are worth; "
            "leave one of them out."
        )
    if _given(settings, "gain_ceiling") and not settings.follow_gain:
        raise ValueError("--gain_ceiling does nothing without --follow_gain; give both or neither.")
    for name in _OF_REDUCTION:
        if _given(settings, name) and settings.variance_reduction == "none":
            raise ValueError(
                f"--{name} does nothing without --variance_reduction; give one, or leave it out."
            )


def _given(settings: flags.FlagValues, name: str) -> bool:
    flag = settings[name]
    return flag.present > 0 and flag.value != flag.default
