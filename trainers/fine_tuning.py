"""Fine-tuning of a pretrained net by importance sampling (K&F 2018, section 4.3).

    python -m trainers.fine_tuning --out=runs/mit67 --data_dir=DATA_DIR \\
        --flagfile=configs/fine_tuning/mit67_upper_bound.cfg

The net keeps its weights, but for a new last layer, and is trained as a whole. --weights names
what it was pretrained to: imagenet (downloaded), a file of keras.applications, or the net.keras
that a trainer left. --out holds what `trainers.image_classification` says.
"""

from __future__ import annotations

from absl import flags

from trainers import flags as trainer_flags
from trainers import program, recipe
from trainers.nets import pretrained


def train(settings: flags.FlagValues) -> recipe.Trained:
    """Data, pretrained net with a new head, fit.

    Args:
        settings: parsed flags of `trainers.flags`.
    Returns:
        The run's directory and the fitted model.
    """
    data = recipe.load(settings)
    net = pretrained.build(settings.net, settings.weights, data.image_shape, data.num_classes)
    return recipe.fit(settings, data, net)


if __name__ == "__main__":
    trainer_flags.define(flags.FLAGS)
    flags.adopt_module_key_flags(trainer_flags)
    program.run(recipe.command(train))
