"""The variance that each proposal leaves, along a training (K&F 2018, section 4.1, figures 1, 2).

    python -m trainers.variance_ablation --out=runs/ablation \\
        --flagfile=configs/variance_ablation/cifar10_small_uniform.cfg
    python -m reports.ablation runs/ablation/report runs/ablation

Trains a net as `trainers.image_classification` does. At every evaluation, 3,000 updates apart in
the paper (--steps and --evaluations), it draws --drawn of the same --images training images by
uniform, loss, upper bound and exact gradient norm, --draws times, and adds a line to
ablation.jsonl: the distances of the drawn batches' gradients from that of all, and the
probabilities.
"""

from __future__ import annotations

from absl import flags

from trainers import ablation, datasets, nets, program, recipe
from trainers import flags as trainer_flags


def define(values: flags.FlagValues) -> None:
    """The trainers' flags and those of the ablation.

    Args:
        values: where.
    """
    trainer_flags.define(values)
    for name, default, text in (
        ("images", 1024, "Images that the gradients are compared on."),
        ("drawn", 128, "Images drawn of them."),
        ("draws", 10, "How often each proposal draws."),
    ):
        trainer_flags.define_positive(values, name, default, text)


def train(settings: flags.FlagValues) -> recipe.Trained:
    """Data, net, fit, with a look at the proposals at every evaluation.

    Args:
        settings: parsed flags of `define`.
    Returns:
        The run's directory and the fitted model.
    """
    data = recipe.load(settings)
    net = nets.build(settings.net, data.image_shape, data.num_classes)
    chosen = datasets.shuffled(data, settings.seed).take(settings.images)
    images, labels = next(iter(chosen.batch(settings.images)))

    def measured(model):
        measure = ablation.Ablation(
            model, images, labels, settings.drawn, settings.draws, settings.seed
        )
        return lambda path, step: ablation.append(path, step, measure())

    return recipe.fit(settings, data, net, also=measured)


if __name__ == "__main__":
    define(flags.FLAGS)
    flags.adopt_module_key_flags(trainer_flags)
    program.run(recipe.command(train))
