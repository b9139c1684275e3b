"""Workers score, a store holds the scores, a master trains by them (Alain et al. 2015).

In one process, in one command:

    python -m trainers.issgd --flagfile=configs/issgd/digits.cfg --workers=3 --out=runs/issgd

In several, on as many machines as there are (configs/issgd/ has this as a script and for compose):

    redis-server --port 6379
    python -m trainers.issgd --flagfile=… --store=redis://127.0.0.1:6379 --role=worker  # 3 times
    python -m trainers.issgd --flagfile=… --store=redis://127.0.0.1:6379 --out=runs/issgd

Without a master, trainers in step that share what they see (section 6), each with its --rank:

    python -m trainers.issgd --role=peer --peers=host1:5000,host2:5000 --rank=0 --store=… --out=…

All roles take the same flagfile. --out of a master or peer holds what
`trainers.image_classification` says, and issgd.jsonl: √Tr Σ, staleness, scores per second.
--sampling=uniform is the same training by regular SGD, without a store. --dry_run and --short
are of one process with one worker, whatever the role: they ask for no store.
"""

from __future__ import annotations

import functools

from absl import flags

from trainers import datasets, delegated, nets, program, recipe, void
from trainers import flags as trainer_flags


def define(values: flags.FlagValues) -> None:
    """Define this trainer's flags.

    Args:
        values: where.
    """
    trainer_flags.define(values)
    delegated.define(values)
    values.set_default("sampling", delegated.NAME)


def train(settings: flags.FlagValues) -> recipe.Trained:
    """Data, net, fit.

    Args:
        settings: parsed flags of `define`.
    Returns:
        The run's directory and the fitted model.
    Raises:
        ValueError: flags do not go together.
    """
    if settings.dry_run or settings.short:
        delegated.gather(settings)
    delegated.checked(settings)
    strategy = delegated.strategy(settings)
    void.refuse_weights(settings)
    data = recipe.load(settings)
    with strategy.scope():
        net = nets.build(settings.net, data.image_shape, data.num_classes)
    if settings.sampling != delegated.NAME:
        return recipe.fit(settings, data, net)
    delegated.own_store(settings)
    with delegated.workers_in_threads(settings, data):
        return recipe.fit(
            settings,
            data,
            net,
            also=lambda model: delegated.recorder(settings, model),
            prepare=functools.partial(delegated.prepared, strategy),
        )


def main(arguments) -> None:
    """Train, or work."""
    settings = flags.FLAGS
    if settings.role == "peer" and settings.out is None:
        settings.out = f"{program.default_out()}/{settings.rank}"
    if settings.role != "worker" or settings.dry_run or settings.short:
        recipe.command(train)(arguments)
        return
    trainer_flags.log_warnings_only()
    delegated.checked(settings)
    delegated.work(settings, datasets.load(settings.dataset, settings.data_dir))


if __name__ == "__main__":
    define(flags.FLAGS)
    flags.adopt_module_key_flags(trainer_flags)
    flags.adopt_module_key_flags(delegated)
    program.run(main)
