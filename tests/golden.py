"""Seeded runs of every way to train, to compare two commits to the last digit on one machine.

    python -m tests.golden record runs/golden.json   # at the commit before
    python -m tests.golden compare runs/golden.json     # after a change of no number

Numbers differ between machines and versions of TensorFlow, so nothing recorded is committed.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import tf_importance as tfi

_N, _B, _PRESAMPLE, _STEPS = 256, 16, 64, 60
_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(_N, 8)) * rng.gamma(0.5, 2.0, size=(_N, 1))
    return x.astype(np.float32), (x @ rng.normal(size=(8, 4))).argmax(axis=1).astype(np.int32)


def _net(*middle) -> keras.Sequential:
    hidden = keras.layers.Dense(16, activation="relu")
    return keras.Sequential([keras.Input((8,)), hidden, *middle, keras.layers.Dense(4)])


def _model(sampler=None, rate=0.1, net=None) -> tfi.ISModel:
    model = tfi.ISModel(net or _net())
    model.compile(keras.optimizers.SGD(rate), _LOSS, metrics=["accuracy"], sampler=sampler)
    return model


def _switch() -> tfi.switches.Gain:
    return tfi.switches.Gain(step_seconds=3.0, scoring_seconds=0.1)


def _fresh(rate=0.1, net=None, weighted=False, **options):
    def run():
        x, y = _data()
        parts = (x, y, np.linspace(0.5, 1.5, _N, dtype=np.float32)) if weighted else (x, y)
        given = {key: value() if callable(value) else value for key, value in options.items()}
        model = _model(rate=rate() if callable(rate) else rate, net=net and net())
        draw = tfi.importance_sample(model, _B, seed=3, **{"presample_size": _PRESAMPLE, **given})
        batches = tf.data.Dataset.from_tensor_slices(parts).shuffle(_N, seed=1).repeat().apply(draw)
        return model, batches

    return run


def _remembered(make, rate=0.1, **options):
    def run():
        given = {key: value() if callable(value) else value for key, value in options.items()}
        model = _model(rate=rate() if callable(rate) else rate)
        sampler = make(model)
        model.compile(model.optimizer, _LOSS, metrics=["accuracy"], sampler=sampler)
        if given:
            given["model"] = model
        return model, tfi.history_sample(_data(), sampler, _B, seed=3, **given).repeat()

    return run


def _followed():
    return tfi.schedules.GainAdapted(0.1)


def _rais(_):
    return tfi.samplers.RAIS(_N, training_set_size=128)


def _plain():
    model = _model()
    return model, tf.data.Dataset.from_tensor_slices(_data()).shuffle(_N, seed=1).repeat().batch(_B)


RUNS = {
    "plain": _plain,
    "never": _fresh(tau_threshold="never"),
    "tau": _fresh(),
    "multinomial": _fresh(tau_threshold="always"),
    "systematic": _fresh(tau_threshold="always", resampling="systematic", smoothing=0.2),
    "loss": _fresh(tau_threshold="always", scorer=lambda: tfi.scorers.loss),
    "sample weights": _fresh(tau_threshold="always", weighted=True),
    "two draws": _fresh(tau_threshold="always", draws_per_presample=2),
    "batch norm": _fresh(
        tau_threshold="always", net=lambda: _net(tfi.layers.BatchNormalization())
    ),
    "gain": _fresh(_followed, switch=_switch),
    "gain in the pipeline": _fresh(_followed, switch=_switch, score_in="pipeline"),
    "gain, auto": _fresh(_followed, switch=_switch, presample_size="auto"),
    "uniform": _remembered(lambda _: tfi.samplers.Uniform(_N)),
    "proportional": _remembered(lambda _: tfi.samplers.Proportional(_N)),
    "rank-based": _remembered(lambda _: tfi.samplers.RankBased(_N)),
    "rais": _remembered(_rais),
    "rais, gain-adapted": _remembered(_rais, _followed),
    "rais and fresh": _remembered(_rais, _followed, presample_size=48),
    "rais under a switch": _remembered(_rais, _followed, switch=_switch),
    "rais and fresh under a switch": _remembered(
        _rais, _followed, switch=_switch, presample_size=48
    ),
    "oracle": _remembered(lambda model: tfi.samplers.Oracle(_N, model)),
}


def result(name: str) -> dict:
    """Logs of three epochs and the weights at their end, by their bits."""
    keras.utils.set_random_seed(0)
    model, batches = RUNS[name]()
    history = model.fit(batches, steps_per_epoch=_STEPS, epochs=3, verbose=0, shuffle=False)
    weights = b"".join(np.asarray(w).tobytes() for w in model.net.get_weights())
    logs = {key: [float(np.float32(v)).hex() for v in vs] for key, vs in history.history.items()}
    return {"logs": logs, "weights": hashlib.sha256(weights).hexdigest()}


def main(what: str, path: str, *names: str) -> int:
    found = {}
    for name in names or RUNS:
        found[name] = result(name)
        keras.backend.clear_session()
    file = pathlib.Path(path)
    if what == "record":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1))
        return 0
    recorded, changed = json.loads(file.read_text()), 0
    for name, run in found.items():
        logs = {key for key in run["logs"] if run["logs"][key] != recorded[name]["logs"].get(key)}
        if run != recorded[name]:
            changed += 1
            weights = "weights, " if run["weights"] != recorded[name]["weights"] else ""
            print(f"{name}: {weights}{', '.join(sorted(logs)) or 'the names of logs'} differ")
    print(f"{len(found) - changed} of {len(found)} runs are the same to the last digit")
    return int(changed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
