"""What a training used is let go: data sets of gigabytes must not pile up in a search of rates."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import graphs

N, b = 128, 8
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
Y = (np.arange(N) % 8 == 0).astype(np.int32)


class Rows:
    """Random access in Python."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return X[index], Y[index]


def model_of(sampler=None) -> tfi.ISModel:
    model = tfi.ISModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(tfi.schedules.GainAdapted(0.1)), loss, sampler=sampler)
    return model


def by_sampler(sampler, source=(X, Y)):
    model = model_of(sampler)
    return model, tfi.history_sample(source, sampler, b, model=model), sampler


def memory() -> tfi.samplers.RAIS:
    """Which begins no training in its thread: that would hold it until it is done."""
    return tfi.samplers.RAIS(training_set_size=512)


def by_rows():
    source = Rows()
    return *by_sampler(tfi.samplers.Proportional(), source)[:2], source


def by_gain(**how):
    model, switch = model_of(), tfi.switches.Gain()
    examples = tf.data.Dataset.from_tensor_slices((X, Y)).repeat()
    return model, examples.apply(tfi.importance_sample(model, b, 32, switch=switch, **how)), switch


def by_switch():
    rais = memory()
    members = [tfi.samplers.Uniform(), rais, tfi.samplers.Fresh(32, over=rais)]
    return by_sampler(tfi.samplers.Switched(members, by=tfi.switches.Gain()))


KINDS = {
    "memory": lambda: by_sampler(memory()),
    "strata": lambda: by_sampler(tfi.samplers.Stratified()),
    "rows": by_rows,
    "gain": by_gain,
    "gain, strata": lambda: by_gain(strata=lambda x, y: y),
    "switched": by_switch,
}


@pytest.mark.parametrize("kind", quick(KINDS, "memory", "gain, strata"))
def test_nothing_of_a_training_is_kept(kind):
    def trained():
        model, batches, own = KINDS[kind]()
        model.fit(batches.repeat(), steps_per_epoch=24, verbose=0, shuffle=False)
        return [weakref.ref(one) for one in (model, batches, own)]

    kept = trained()
    keras.backend.clear_session()
    gc.collect()
    assert [one() for one in kept] == [None] * 3


@pytest.mark.parametrize("kind", quick(KINDS, "memory", "gain, strata"))
def test_an_iterator_goes_on_without_its_datasets(kind):
    """Nor is anything let go too early."""
    model, batches, _ = KINDS[kind]()
    batches = batches.repeat().map(lambda *batch: batch).prefetch(1)
    iterator = iter(batches)
    del batches, _
    gc.collect()
    for _number in range(20):
        assert next(iterator)[0].shape[0] >= b
    del model


def test_a_function_is_held_by_others():
    class Counter:
        count = 0

        def add(self, number):
            self.count += int(number)
            return self.count

    counter = Counter()
    called = graphs.weakly(counter.add)
    assert called(2) == 2 and called(3) == 5
    seen = weakref.ref(counter)
    del counter
    gc.collect()
    assert seen() is None
    with pytest.raises(AssertionError, match="holds the dataset"):
        called(1)
