"""Image classification by importance sampling (Katharopoulos & Fleuret 2018, section 4.2).

    python -m trainers.image_classification --out=runs/digits --time_budget=10
    python -m trainers.image_classification --out=runs/mnist \\
        --flagfile=configs/image_classification/mnist_upper_bound.cfg

--out then holds metrics.jsonl (a line for each evaluation), run.json (flags, versions, commit),
curves.png, saved_model/ and net.keras (the net alone), tensorboard/ and checkpoints/; with RAIS
priorities.npz, the examples drawn most and least often. The same
command continues a run that was killed, from its last evaluation. With --dry_run it prints its
flags and how long a step takes, and quits.
"""

from __future__ import annotations

from absl import flags

from trainers import flags as trainer_flags
from trainers import nets, program, recipe, void


def train(settings: flags.FlagValues) -> recipe.Trained:
    """Data, net, fit.

    Args:
        settings: parsed flags of `trainers.flags`.
    Returns:
        The run's directory and the fitted model.
    """
    void.refuse_weights(settings)
    data = recipe.load(settings)
    net = nets.build(settings.net, data.image_shape, data.num_classes)
    return recipe.fit(settings, data, net)


if __name__ == "__main__":
    trainer_flags.define(flags.FLAGS)
    flags.adopt_module_key_flags(trainer_flags)
    program.run(recipe.command(train))
