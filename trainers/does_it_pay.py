"""Does importance sampling pay for a net and data of the trainers? `tfi.compare` as a command.

    python -m trainers.does_it_pay --dataset=digits --net=mlp --optimizer=SGD --learning_rate=0.3
    python -m trainers.does_it_pay --dataset=mnist --net=cnn --methods=memory,inclusion --by=train

Uniform sampling, this library's samplers and what others do, at equal cost and each at its own best
learning rate, sought around --learning_rate. --steps is the budget of a run in uniform steps, 10
passes by default. --out then holds each run, comparison.json, .txt and .png; the same command goes
on where it was interrupted. docs/compare.md explains the table. With --dry_run it says what would
be compared, and quits.
"""

from __future__ import annotations

import math
import pathlib
import shutil

import keras
from absl import flags

import tf_importance as tfi
from trainers import augmentation, nets, optimizers, program, recipe, short
from trainers import flags as trainer_flags

_METHODS = [*tfi.comparison.OURS, *tfi.comparison.OTHERS]


def define(values: flags.FlagValues) -> None:
    """Define the flags.

    Args:
        values: where.
    """
    trainer_flags.define(values)
    flags.DEFINE_list(
        "methods",
        None,
        f"What to compare, in quotes where a name has a comma: {'; '.join(_METHODS)}. By default "
        "what makes sense for the data.",
        flag_values=values,
    )
    flags.DEFINE_integer("seeds", 3, "Runs of each.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum(
        "by", "held_out", ["held_out", "train"], "The loss that counts.", flag_values=values
    )


def train(settings: flags.FlagValues) -> tfi.comparison.Comparison:
    """Compare as the flags say.

    Args:
        settings: parsed flags.
    """
    data = recipe.load(settings)

    def build() -> keras.Model:
        net = nets.build(settings.net, data.image_shape, data.num_classes)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        net.compile(optimizers.of(settings), loss)
        return net

    options = {"budget": settings.steps, "seeds": settings.seeds}
    if settings.short:
        options |= {"budget": 2, "seeds": 1, "rates": [1.0]}
    return tfi.compare(
        build,
        data.train,
        settings.methods,
        batch_size=settings.batch_size,
        validation_data=data.test,
        by=settings.by,
        out=settings.out,
        **options,
    )


def main(_) -> None:
    trainer_flags.log_warnings_only()
    settings = flags.FLAGS
    if augmentation.by_name(settings.augment) is not None:
        raise ValueError("--augment changes single images; compare takes them as they are.")
    if settings.out is None:
        settings.out = program.default_out()
    if settings.short:
        short.shrink(settings)
        settings.out = short.directory(settings.out)
        if pathlib.Path(settings.out, "settings.json").exists():
            shutil.rmtree(settings.out)  # What an earlier one left, and nothing else.
    if settings.dry_run:
        data = recipe.load(settings)
        steps = settings.steps or 10 * math.ceil(data.num_train / settings.batch_size)
        print(f"{settings.net} on {settings.dataset}, {data.num_train:,} examples;")
        print(f"runs of {steps:,} uniform steps of {settings.batch_size}, {settings.seeds} seeds;")
        print(f"methods: {', '.join(settings.methods or ['by the data'])}.")
        return
    print(f"Results go to {settings.out}.", flush=True)
    print(f"\n{train(settings)}")


if __name__ == "__main__":
    define(flags.FLAGS)
    flags.adopt_module_key_flags(trainer_flags)
    program.run(main)
