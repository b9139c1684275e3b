"""Nets, optimizers and augmentations by name."""

from __future__ import annotations

import importlib.util
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from trainers import augmentation, nets, optimizers

_ADDONS = importlib.util.find_spec("tensorflow_addons") is not None
needs_addons = pytest.mark.skipif(not _ADDONS, reason="needs TensorFlow Addons")
without_addons = pytest.mark.skipif(_ADDONS, reason="TensorFlow Addons is installed")


@pytest.mark.parametrize("name", nets.NETS)
def test_a_net_ends_in_logits(name):
    net = nets.build(name, (8, 8, 1), 7)
    logits = net(np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32))
    assert logits.shape == (3, 7)
    assert np.min(logits) < 0


@pytest.mark.parametrize("name", nets.NETS)
def test_batch_normalization_is_importance_weighted(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfi.ISModel(nets.build(name, (8, 8, 1), 7))


def test_the_wide_resnet_is_28_layers_deep_and_has_the_papers_size():
    net = nets.build("wide_resnet", (32, 32, 3), 10)
    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    weighted = [layer for layer in net.layers if isinstance(layer, kinds)]
    shortcuts = [layer for layer in weighted if getattr(layer, "kernel_size", None) == (1, 1)]
    assert len(weighted) - len(shortcuts) == 1 + 2 * 12 + 1
    # 1.5 million, table 2 of Zagoruyko & Komodakis 2016.
    assert 1.4e6 < net.count_params() < 1.6e6


def test_an_unknown_net_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'transformer'; known are linear, mlp, wide_mlp, cnn"):
        nets.build("transformer", (8, 8, 1), 10)


@pytest.mark.parametrize("name", ["sgd", "SGD", "Adam", "adamw"])
def test_keras_optimizers_by_name(name):
    optimizer = optimizers.build(name, 0.25, momentum=0.0)
    assert type(optimizer).__name__.lower() == name.lower()
    assert float(np.asarray(optimizer.learning_rate)) == 0.25


def test_options_reach_the_optimizer():
    assert optimizers.build("SGD", 0.1, momentum=0.9).momentum == 0.9


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("sdg", {}, "unknown optimizer 'sdg'.*SGD"),
        ("Optimizer", {}, "unknown optimizer"),
        ("Adam", {"momentum": 0.9}, "'Adam' has no momentum; got momentum=0.9"),
    ],
)
def test_what_keras_does_not_have_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        optimizers.build(name, 0.1, **options)


@without_addons
def test_an_absent_tensorflow_addons_names_the_extra():
    with pytest.raises(ImportError, match=r"--optimizer=tfa:LAMB .*tf-importance\[addons\]"):
        optimizers.build("tfa:LAMB", 0.1)


@without_addons
def test_an_augmentation_of_absent_tensorflow_addons_names_the_extra():
    with pytest.raises(ImportError, match=r"--augment=tfa:… .*tf-importance\[addons\]"):
        augmentation.augmented("tfa:rotate", seed=0)


@needs_addons
@pytest.mark.parametrize("name", ["tfa:LAMB", "tfa:RectifiedAdam", "tfa:AdamW"])
def test_optimizers_of_tensorflow_addons(name):
    optimizer = optimizers.build(name, 0.01, weight_decay=0.001)
    assert type(optimizer).__module__.startswith("tensorflow_addons")


@needs_addons
def test_a_missing_argument_of_an_addons_optimizer_is_named():
    with pytest.raises(ValueError, match="'tfa:AdamW' needs .*--weight_decay"):
        optimizers.build("tfa:AdamW", 0.01, weight_decay=0.0)


_AUGMENTATIONS = [
    pytest.param(name, marks=needs_addons if name.startswith("tfa:") else ())
    for name, augment in augmentation.BY_NAME.items()
    if augment is not None
]


@pytest.mark.parametrize("name", _AUGMENTATIONS)
def test_an_augmentation_changes_images_repeatably_and_keeps_labels(name):
    images = np.random.default_rng(0).uniform(0.5, 1, size=(6, 12, 10, 3)).astype(np.float32)
    examples = tf.data.Dataset.from_tensor_slices((images, np.arange(6)))

    def epoch():
        changed, labels = zip(*examples.apply(augmentation.augmented(name, 3)).as_numpy_iterator())
        np.testing.assert_array_equal(labels, np.arange(6))
        return np.stack(changed)

    changed = epoch()
    assert changed.shape == images.shape and changed.dtype == np.float32
    assert np.mean(np.any(changed != images, axis=(1, 2, 3))) > 0.5
    np.testing.assert_array_equal(changed, epoch())


def test_an_unknown_augmentation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'mixup'; known are none, flip_crop, turn, tfa:rotate"):
        augmentation.augmented("mixup", seed=0)
