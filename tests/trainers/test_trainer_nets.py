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
from trainers.nets import pretrained, wide_resnet

_ADDONS = importlib.util.find_spec("tensorflow_addons") is not None
needs_addons = pytest.mark.skipif(not _ADDONS, reason="needs TensorFlow Addons")
without_addons = pytest.mark.skipif(_ADDONS, reason="TensorFlow Addons is installed")


def _shape(name: str) -> tuple[int, ...]:
    return {"resnet50": (32, 32, 3), "flights_mlp": (17,)}.get(name, (8, 8, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", nets.NETS)
def test_a_net_ends_in_logits(name):
    net = nets.build(name, _shape(name), 7)
    logits = net(np.random.default_rng(0).uniform(size=(3, *_shape(name))).astype(np.float32))
    assert logits.shape == (3, 7)
    assert np.min(logits) < 0


def test_the_flights_net_refuses_what_is_no_flight():
    with pytest.raises(
        ValueError, match=r"is for flights, inputs of shape \(17,\); got \(8, 8, 1\)"
    ):
        nets.build("flights_mlp", (8, 8, 1), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", nets.NETS)
def test_batch_normalization_is_importance_weighted(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfi.ISModel(nets.build(name, _shape(name), 7))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, convolutions, millions",
    # Millions of parameters: table 2 of Zagoruyko & Komodakis 2016 for 28-2 and 28-10.
    [("wide_resnet", 25, 1.5), ("wide_resnet_28_10", 25, 36.5), ("wide_resnet_10_1", 7, 0.08)],
)
def test_wide_resnets_have_the_papers_depth_and_size(name, convolutions, millions):
    net = nets.build(name, (32, 32, 3), 10)
    kernels = [layer for layer in net.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len([layer for layer in kernels if layer.kernel_size != (1, 1)]) == convolutions
    assert net.count_params() / 1e6 == pytest.approx(millions, rel=0.03)


def test_a_depth_that_no_wide_resnet_has_is_refused():
    with pytest.raises(ValueError, match="6n [+] 4.*got 12"):
        wide_resnet.wide_resnet((8, 8, 1), 10, depth=12)


def test_the_lstm_is_the_papers():
    net = nets.build("lstm", (784, 1), 10)
    (layer,) = [layer for layer in net.layers if isinstance(layer, keras.layers.LSTM)]
    assert layer.units == 128 and layer.activation is keras.activations.tanh
    assert layer.recurrent_activation is keras.activations.sigmoid
    assert net.count_params() == 4 * 128 * (1 + 128 + 1) + 129 * 10


def test_resnet50_gets_images_as_its_weights_expect_them():
    image = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype(np.float32)
    net = nets.build("resnet50", (32, 32, 3), 5)
    first = next(layer for layer in net.layers if layer.name == "conv1_pad")
    centered = keras.Model(net.inputs, first.input)(image)
    expected = keras.applications.resnet.preprocess_input(255 * image.copy())
    np.testing.assert_allclose(centered, expected, atol=1e-3)


@pytest.mark.slow
def test_weights_from_a_file_reach_resnet50(tmp_path):
    body = keras.applications.ResNet50(False, None, input_shape=(32, 32, 3), pooling="avg")
    file = str(tmp_path / "resnet50_notop.weights.h5")
    body.save_weights(file)
    net = pretrained.build("resnet50", file, (32, 32, 3), 67)
    for name in ("conv1_conv", "conv5_block3_3_bn"):
        for one, other in zip(
            net.get_layer(name).get_weights(), body.get_layer(name).get_weights()
        ):
            np.testing.assert_array_equal(one, other)
    assert net.output_shape == (None, 67)


def test_without_a_network_the_file_of_imagenet_weights_is_named(monkeypatch):
    def no_network(**kwargs):
        raise Exception("URL fetch failure: no route to host")

    monkeypatch.setattr(keras.applications, "ResNet50", no_network)
    with pytest.raises(RuntimeError, match="(?s)no route.*tf_kernels_notop.h5.*--weights=FILE"):
        pretrained.build("resnet50", "imagenet", (32, 32, 3), 67)


def test_a_trained_net_gets_a_new_head_and_keeps_the_rest(tmp_path):
    net = nets.build("cnn", (8, 8, 1), 5)
    net.save(tmp_path / "net.keras")
    tuned = pretrained.build("", str(tmp_path / "net.keras"), (8, 8, 1), 5)
    for one, other in zip(tuned.layers[:-1], net.layers[:-1]):
        for mine, theirs in zip(one.get_weights(), other.get_weights()):
            np.testing.assert_array_equal(mine, theirs)
    assert np.any(tuned.layers[-1].get_weights()[0] != net.layers[-1].get_weights()[0])
    with pytest.raises(
        ValueError, match=r"inputs of shape \(8, 8, 1\); the data have \(28, 28, 1\)"
    ):
        pretrained.build("", str(tmp_path / "net.keras"), (28, 28, 1), 5)


@pytest.mark.parametrize(
    "name, weights, message",
    [
        ("cnn", "missing.keras", "is no file; a trainer leaves net.keras"),
        ("resnet50", "missing.h5", "is no file"),
        ("cnn", "imagenet", "is for --net=resnet50; --net=cnn takes"),
    ],
)
def test_weights_that_cannot_be_had_are_refused(name, weights, message):
    with pytest.raises(ValueError, match=message):
        pretrained.build(name, weights, (32, 32, 3), 5)


def test_resnet50_refuses_what_is_no_image_for_it():
    with pytest.raises(ValueError, match=r"at least 32x32x3; got \(8, 8, 1\)"):
        nets.build("resnet50", (8, 8, 1), 10)


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
    with pytest.raises(ImportError, match=r"--optimizer=tfa:LAMB .*pip install '\.\[addons\]'"):
        optimizers.build("tfa:LAMB", 0.1)


@without_addons
def test_an_augmentation_of_absent_tensorflow_addons_names_the_extra():
    with pytest.raises(ImportError, match=r"--augment=tfa:… .*pip install '\.\[addons\]'"):
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
