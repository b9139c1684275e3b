"""--short: two steps on made-up examples, which show in seconds that a command works."""

from __future__ import annotations

from absl import flags

_FLAGS = {
    "steps": 2,
    "time_budget": None,
    "evaluations": 2,
    "batch_size": 4,
    "large_batch": 8,
    # So that something is drawn.
    "tau_threshold": "always",
    "weights": "none",
    # Of trainers.variance_ablation.
    "images": 8,
    "drawn": 4,
    "draws": 2,
}
_PRESAMPLE_SIZE = "8"


def shrink(settings: flags.FlagValues) -> None:
    """Set a trainer's flags to the smallest that still do everything.

    Args:
        settings: parsed flags of a trainer.
    """
    for name, value in _FLAGS.items():
        if name in settings:
            settings[name].value = value
    if settings.presample_size not in (None, "auto"):
        settings["presample_size"].value = _PRESAMPLE_SIZE


def directory(out: str) -> str:
    """Where results go instead of --out: where no real run is."""
    return f"{out}-short"
