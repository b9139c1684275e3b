"""Data sets: the embedded digits, and what is said where data cannot be had."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import requests
import sklearn.datasets
import tensorflow_datasets as tfds

from trainers import datasets
from trainers.datasets import made_up

_SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"


def _arrays(dataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*dataset.as_numpy_iterator())
    return np.stack(images), np.array(labels)


def test_digits_are_all_of_scikit_learns_digits_each_in_one_split(data_dir):
    data = datasets.load("digits", data_dir)
    images = np.concatenate([_arrays(data.train)[0], _arrays(data.test)[0]])
    expected = sklearn.datasets.load_digits().images / 16
    assert images.dtype == np.float32 and data.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(
        np.sort(images.reshape(-1, 64), axis=0), np.sort(expected.reshape(-1, 64), axis=0)
    )


@pytest.mark.parametrize("name", datasets.SOURCES)
def test_made_up_examples_have_the_shape_and_the_classes_of_the_real_ones(name):
    source, data = datasets.SOURCES[name], made_up.load(name)
    features = datasets.builder(source, None).info.features
    real = tuple(features["image"].shape)
    sequence = name.startswith("permuted")
    assert len(data.image_shape) == (2 if sequence else len(real))
    assert data.image_shape[-1] == real[-1], "channels"
    classes = features["label"].num_classes
    assert data.num_classes == (classes if source.half is None else classes // 2)
    images, labels = _arrays(data.train)
    assert images.shape == (data.num_train, *data.image_shape) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1 and labels.max() < data.num_classes


def test_unknown_data_cannot_be_made_up():
    with pytest.raises(ValueError, match="known are digits"):
        made_up.load("imagenet")


def test_splits_are_stratified(data_dir):
    data = datasets.load("digits", data_dir)
    train, test = (np.bincount(_arrays(part)[1], minlength=10) for part in (data.train, data.test))
    assert data.num_train == train.sum() == 1437 and data.num_classes == 10
    assert np.all(np.abs(test - (train + test) / 5) < 1)


def test_preparing_again_gives_the_same_examples_in_the_same_order(data_dir, tmp_path):
    first, second = datasets.load("digits", data_dir), datasets.load("digits", str(tmp_path))
    for one, other in zip(_arrays(first.train), _arrays(second.train)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size, number", [(5000, 1437), (1437, 1437), (500, 479), (1, 1)])
def test_the_fixed_subset_is_no_larger_than_asked_and_always_the_same(data_dir, size, number):
    data = datasets.load("digits", data_dir)
    images, _ = _arrays(datasets.fixed_subset(data, size))
    assert len(images) == number
    np.testing.assert_array_equal(images, _arrays(datasets.fixed_subset(data, size))[0])


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'imagenet'.*digits, mnist, fashion_mnist, cifar10"):
        datasets.load("imagenet")


def test_a_failing_download_names_the_offline_route_and_the_embedded_default(tmp_path, monkeypatch):
    def no_network(self, *args, **kwargs):
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(RuntimeError, match="no route(.|\n)*TFDS_DATA_DIR(.|\n)*--dataset=digits"):
        datasets.load("mnist", str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not _SHARED.exists(), reason=f"needs the original archives in {_SHARED}")
def test_mnist_prepared_offline_is_read(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(_SHARED))
    import tfds_offline

    tfds_offline.prepare("mnist", _SHARED, tmp_path)
    data = datasets.load("mnist", str(tmp_path))
    image, label = next(data.test.as_numpy_iterator())
    assert data.num_train == 60_000 and data.image_shape == image.shape == (28, 28, 1)
    assert 0 <= image.min() < image.max() <= 1 and label.dtype == np.int32
