"""The roles of a delegated run by their flags: master, workers, peers, and what they record."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import pathlib
import threading
import time
import uuid
from collections.abc import Callable

import keras
import tensorflow as tf
from absl import flags

import tf_importance as tfi
from trainers import datasets, nets, optimizers, remembered, runner
from trainers import flags as trainer_flags
from trainers.sampling import Sampled

NAME = "issgd"
ROLES = ("master", "worker", "peer")


def define(values: flags.FlagValues) -> None:
    """Define the flags of a delegated run beside those of all trainers.

    Args:
        values: where.
    """
    own = functools.partial(trainer_flags.define_own, values)
    number, integer, text = flags.DEFINE_float, flags.DEFINE_integer, flags.DEFINE_string
    own(text, "scorer", "gradient_norm", f"Of workers: {', '.join(sorted(tfi.scorers.BY_NAME))}.")
    own(number, "smoothing", 0.0, "Constant that is added to all scores (section B.3).")
    own(number, "smooth_to_entropy", None, "In place of it: share of the largest entropy to reach.")
    own(number, "other_smoothing", 0.0, "A second constant to report √Tr Σ for, as figure 4 does.")
    own(number, "staleness_seconds", None, "Scores older than this do not count (section B.1).")
    own(integer, "staleness_versions", None, "Scores by parameters older than this do not count.")
    unscored = "Examples without a score that counts: leave_out (of a master), or mean (of peers)."
    own(text, "unscored", None, unscored)
    own(integer, "publish_every", 50, "Steps from one publication of the parameters to the next.")
    own(integer, "push_every", 10, "Steps from one push of a peer's scores to the next.")
    own(number, "pull_seconds", 1.0, "From one pull of scores to the next.")
    own(number, "fallback_seconds", 10.0, "Silence of the store after which draws are uniform.")
    own(flags.DEFINE_boolean, "exact", False, "Wait for all scores before each step.")
    own(integer, "workers", 0, "Threads of the master that score, with --store=memory:// only.")
    own(integer, "shard_size", 0, "Examples scored under one lease; 0 for a size that fits.")
    _define_place(values)


def _define_place(values: flags.FlagValues) -> None:
    """The flags that say where a process stands, and do not make a run another one."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    text("role", "master", f"Of this process: {', '.join(ROLES)}.")
    text("store", "memory://", "Where all roles meet: memory://, redis://, rediss:// or unix://.")
    text("run_name", "default", "What the run is called in the store.")
    text("worker_name", None, "What a worker is called in reports.")
    integer("scored_at_once", 512, "Examples in a worker's forward pass.")
    number("lease_seconds", 30.0, "How long a shard is one worker's own.")
    number("quit_when_idle", 0.0, "Seconds without work after which a worker ends; 0: never.")
    flags.DEFINE_list("peers", [], "host:port of every peer, the same for all.", flag_values=values)
    integer("rank", 0, "Which of --peers this is.")


def checked(settings: flags.FlagValues) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: flags that do not go together.
    """
    if settings.role not in ROLES:
        raise ValueError(f"--role must be one of {', '.join(ROLES)}; got {settings.role!r}.")
    if settings.scorer not in tfi.scorers.BY_NAME:
        known = ", ".join(sorted(tfi.scorers.BY_NAME))
        raise ValueError(f"--scorer must be one of {known}; got {settings.scorer!r}.")
    in_memory = settings.store.startswith("memory://")
    if in_memory and settings.role != "master":
        raise ValueError(
            f"--role={settings.role} needs a store that other processes can reach, such as "
            f"--store=redis://host:6379; got {settings.store!r}. In one process: --workers=3."
        )
    if in_memory and settings.sampling == NAME and settings.workers < 1:
        raise ValueError(
            "with --store=memory:// nobody scores but --workers, threads of the master; got "
            f"--workers={settings.workers}."
        )
    if settings.exact and not settings.repeatable:
        raise ValueError("--exact draws nothing ahead: give --repeatable and --steps too.")
    if settings.role == "peer" and (settings.time_budget is not None or settings.steps is None):
        raise ValueError("peers stop at the same step: give --steps, and no --time_budget.")
    if settings.role == "peer" and not 0 <= settings.rank < len(settings.peers):
        raise ValueError(
            f"--rank must be one of the {len(settings.peers)} --peers; got {settings.rank}."
        )


def gather(settings: flags.FlagValues) -> None:
    """Make one process, with a worker in a thread, of a run of several: it needs no store."""
    if settings.role in ROLES:
        settings.role = "master"
    settings.store = "memory://"
    settings.workers = max(1, settings.workers)


def open_store(settings: flags.FlagValues, role: str) -> tfi.stores.Store:
    """The store that --store and --run_name name."""
    return tfi.stores.open_store(settings.store, settings.run_name, role)


def own_store(settings: flags.FlagValues) -> None:
    """Give a run whose store is this process's memory one that no other run has."""
    if settings.store == "memory://":
        settings.store = f"memory://{uuid.uuid4().hex}"


def strategy(settings: flags.FlagValues) -> tf.distribute.Strategy:
    """The strategy of the trainers: of all --peers, or of this process alone.

    Before anything else runs in TensorFlow, as it says itself.
    """
    if settings.role != "peer":
        return tf.distribute.get_strategy()
    task = {"type": "worker", "index": settings.rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": settings.peers}, "task": task})
    return tf.distribute.MultiWorkerMirroredStrategy()


def _compiled(settings: flags.FlagValues, net: keras.Model, **options) -> tfi.ISModel:
    """A model as all roles need it: those that score compile it like the one that trains."""
    model = tfi.ISModel(net, **options)
    compile_model(settings, model)
    return model


def compile_model(settings, model: tfi.ISModel, sampler=None) -> None:
    """Compile a classifier as the flags say."""
    model.compile(
        optimizer=optimizers.of(settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=settings.jit,
        sampler=sampler,
    )


# Those who train ------------------------------------------------------------------------------


def prepared(
    strategy: tf.distribute.Strategy,
    settings: flags.FlagValues,
    net: keras.Model,
    data: datasets.Data,
    _,
) -> Sampled:
    """A model with a `Master` or `Peer`, and its batches; with a strategy, as `recipe.fit` wants.

    The model is the strategy's, and the sampler this process's own.
    """
    peer = settings.role == "peer"
    scorer = tfi.scorers.BY_NAME[settings.scorer]
    with strategy.scope():
        model = _compiled(settings, net, **({"scorer": scorer} if peer else {}))
    make = _peer if peer else _master
    sampler = make(settings, data, model, scorer)
    with strategy.scope():
        compile_model(settings, model, sampler)
    seed = settings.seed * 1000 + settings.rank if settings.repeatable or peer else None
    if settings.exact:
        seed = settings.seed
    batches = tfi.history_sample(
        remembered.in_memory(data), sampler, settings.batch_size, seed=seed
    ).repeat()
    return Sampled(model, batches, data.num_train / settings.batch_size)


def _common(settings: flags.FlagValues) -> dict:
    entropy = settings.smooth_to_entropy
    limits = {"seconds": settings.staleness_seconds, "versions": settings.staleness_versions}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return {
        "staleness": tfi.distributed.Staleness(**given),
        "smoothing": settings.smoothing
        if entropy is None
        else tfi.distributed.TargetEntropy(entropy),
        "unscored": settings.unscored,
        "pull_seconds": settings.pull_seconds,
        "fallback_seconds": settings.fallback_seconds,
        "shard_size": settings.shard_size,
    }


def _master(settings, data: datasets.Data, model: tfi.ISModel, scorer) -> tfi.samplers.Sampler:
    return tfi.distributed.Master(
        data.num_train,
        model,
        open_store(settings, "master"),
        scorer=scorer,
        publish_every=settings.publish_every,
        exact=settings.exact,
        **_common(settings),
    )


def _peer(settings, data: datasets.Data, model: tfi.ISModel, scorer) -> tfi.samplers.Sampler:
    return tfi.distributed.Peer(
        data.num_train,
        model,
        open_store(settings, f"peer {settings.rank}"),
        push_every=settings.push_every,
        largest_batch=settings.batch_size,
        **_common(settings),
    )


def recorder(settings: flags.FlagValues, model: tfi.ISModel) -> runner.Also:
    """What writes the monitor's numbers to issgd.jsonl and TensorBoard at every evaluation."""
    # ‖g_TRUE‖ takes gradients of this process alone, which a strategy of several does not give.
    batches = 0 if settings.role == "peer" else 4
    monitor = tfi.distributed.Monitor(
        model.sampler, other_constant=settings.other_smoothing, batches=batches
    )
    monitor.set_model(model)

    def record(path: pathlib.Path, step: int) -> None:
        numbers = monitor.numbers()
        with (path / "issgd.jsonl").open("a") as file:
            finite = {name: _or_none(value) for name, value in numbers.items()}
            file.write(json.dumps({"step": step, **finite}) + "\n")
        writer = tf.summary.create_file_writer(str(path / "tensorboard"))
        with writer.as_default(step=step):
            for name, value in numbers.items():
                tf.summary.scalar(f"issgd/{name}", value)
        writer.close()

    return record


def _or_none(value: float) -> float | None:
    """A number as JSON has it."""
    return value if math.isfinite(value) else None


# Those who score ------------------------------------------------------------------------------


def worker(
    settings: flags.FlagValues,
    data: datasets.Data,
    name: str | None,
    progress: Callable[[int], None] | None = None,
) -> tfi.distributed.Worker:
    """A worker with a model of its own."""
    net = nets.build(settings.net, data.image_shape, data.num_classes)
    return tfi.distributed.Worker(
        _compiled(settings, net),
        remembered.in_memory(data),
        open_store(settings, name or "worker"),
        name=name,
        scorer=tfi.scorers.BY_NAME[settings.scorer],
        scored_at_once=settings.scored_at_once,
        lease_seconds=settings.lease_seconds,
        shard_size=settings.shard_size,
        progress=progress,
    )


def workers_in_threads(
    settings: flags.FlagValues, data: datasets.Data
) -> contextlib.AbstractContextManager[None]:
    """--workers of them, for a block, if the store is this process's memory."""
    count = settings.workers if settings.store.startswith("memory://") else 0
    made = [worker(settings, data, f"worker {number}") for number in range(count)]
    return tfi.distributed.working(*made)


def work(settings: flags.FlagValues, data: datasets.Data) -> None:
    """Be a worker, until interrupted or --quit_when_idle."""
    bar = keras.utils.Progbar(None, interval=0.5, unit_name="example")
    stop, last = threading.Event(), [time.monotonic()]

    def progress(scored: int) -> None:
        last[0] = time.monotonic()
        bar.update(scored)

    one = worker(settings, data, settings.worker_name, progress)
    if settings.quit_when_idle:
        threading.Thread(
            target=_stop_when_idle, args=(stop, last, settings.quit_when_idle), daemon=True
        ).start()
    with contextlib.suppress(KeyboardInterrupt):
        one.run(stop)
    print(f"\n{one.name} scored {one.scored:,} examples.")


def _stop_when_idle(stop: threading.Event, last: list[float], seconds: float) -> None:
    while time.monotonic() - last[0] < seconds:
        time.sleep(0.1)
    stop.set()
