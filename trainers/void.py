"""Flags that do nothing beside others are refused: who gives one expects something of it."""

from __future__ import annotations

from collections.abc import Collection

from absl import flags

import tf_importance as tfi
from trainers import delegated, remembered

_FRESH = tuple(sorted(tfi.scorers.BY_NAME))
_MEMORY = tuple(remembered.BY_NAME)
# For which values of --sampling a flag does something.
_OF_SAMPLING: dict[str, Collection[str]] = {
    "alpha": ("proportional",),
    "beta": ("proportional", "rank_based"),
    "selection_pressure": ("rank_based",),
    "recompute_every": ("rank_based",),
    "kept": ("inclusion", "info_batch"),
    "draws_per_presample": _FRESH,
    "tau_threshold": _FRESH,
    "resampling": _FRESH,
    "presample_size": (*_FRESH, *_MEMORY),
    "switch": (*_FRESH, *_MEMORY),
    "follow_gain": (*_FRESH, *_MEMORY),
}
# For which values of --variance_reduction.
_OF_REDUCTION: dict[str, Collection[str]] = {
    "epochs_per_batch_gradient": ("svrg", "katyusha", "scsg"),
    "large_batch": ("scsg",),
    "growth_rate": ("scsg",),
}


def refuse(settings: flags.FlagValues) -> None:
    """Refuse what does nothing with this --sampling, --switch and --variance_reduction.

    Raises:
        ValueError: such a flag is given, and not its default.
    """
    for name, ways in _OF_SAMPLING.items():
        if given(settings, name) and settings.sampling not in ways:
            raise ValueError(
                f"--{name} does nothing with --sampling={settings.sampling}; leave it out, or "
                f"give --sampling={' or '.join(ways)}."
            )
    if given(settings, "tau_threshold") and settings.switch == "gain":
        raise ValueError(
            "--tau_threshold does nothing with --switch=gain, which measures what draws are worth; "
            "leave one of them out."
        )
    if given(settings, "gain_ceiling") and not settings.follow_gain:
        raise ValueError("--gain_ceiling does nothing without --follow_gain; give both or neither.")
    for name, ways in _OF_REDUCTION.items():
        if given(settings, name) and settings.variance_reduction not in ways:
            raise ValueError(
                f"--{name} is for --variance_reduction={' or '.join(ways)}; got "
                f"--variance_reduction={settings.variance_reduction}. Leave one of them out."
            )
    _refuse_schedules(settings)


def _refuse_schedules(settings: flags.FlagValues) -> None:
    """Raises: ValueError: of two flags for the learning rate one does nothing."""
    by_steps = settings.step_schedule not in ("none", "budget")
    if by_steps and given(settings, "schedule"):
        raise ValueError(
            f"--schedule={settings.schedule} does nothing with --step_schedule="
            f"{settings.step_schedule}, which sets the learning rate; leave one of them out."
        )
    by_schedule = settings.variance_reduction != "none" or settings.sampling == delegated.NAME
    if by_schedule and settings.step_schedule != "none":
        raise ValueError(
            f"--step_schedule={settings.step_schedule} does nothing with --variance_reduction or "
            f"--sampling={delegated.NAME}; leave it out, and give --schedule."
        )


def refuse_weights(settings: flags.FlagValues) -> None:
    """Refuse pretrained weights where a net begins at random.

    Raises:
        ValueError: --weights is given.
    """
    if given(settings, "weights"):
        raise ValueError(
            f"--weights={settings.weights} is for trainers.fine_tuning; this trains from scratch. "
            "Leave it out."
        )


def given(settings: flags.FlagValues, name: str) -> bool:
    """Whether a flag was set, to another value than its default."""
    flag = settings[name]
    return flag.present > 0 and flag.value != flag.default
