"""The TFDS builders, under TFDS's own test case, on fixtures made here."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags

from trainers import datasets
from trainers.datasets import augmented, digits, mit67, preparation


@pytest.fixture(autouse=True, scope="module")
def _parsed_flags():
    # TFDS's test case asks absl for its temporary directory. Not by parsing: other modules'
    # flags may be required.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _scenes(directory: pathlib.Path, train: int = 3, test: int = 2) -> pathlib.Path:
    """Two categories of tiny images in the layout of MIT67, one of them a GIF by content."""
    rng = np.random.default_rng(0)
    listed = {name: [] for name in mit67.LISTS.values()}
    for category in ("airport_inside", "bakery"):
        (directory / mit67.IMAGES / category).mkdir(parents=True)
        for number in range(train + test):
            pixels = tf.constant(rng.integers(256, size=(9, 7, 3)), tf.uint8)
            name = f"{category}/{number}.jpg"
            encode = tf.io.encode_png if number == 1 else tf.io.encode_jpeg
            (directory / mit67.IMAGES / name).write_bytes(encode(pixels).numpy())
            part = "train" if number < train else "test"
            listed[mit67.LISTS[part]].append(name)
    for name, names in listed.items():
        (directory / name).write_text("\n".join(names) + "\n")
    return directory


class Mit67Test(tfds.testing.DatasetBuilderTestCase):
    """Prepared, read and checked by TFDS."""

    DATASET_CLASS = mit67.Mit67
    SPLITS = {"train": 6, "test": 4}
    SKIP_CHECKSUMS = True

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = _scenes(pathlib.Path(tempfile.mkdtemp()))
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.EXAMPLE_DIR)


class DigitsAugmented(augmented.Augmented):
    """Augmented, on the digits: two copies of each."""

    VERSION = augmented.Augmented.VERSION
    COPIES = 2

    def _source(self):
        return digits.Digits(data_dir=self._data_dir_root)


@pytest.mark.slow
class AugmentedTest(tfds.testing.DatasetBuilderTestCase):
    """The digits have nothing to download: the source is the real one."""

    DATASET_CLASS = DigitsAugmented
    SPLITS = {"train": 2 * 1437, "test": 360}
    SKIP_CHECKSUMS = True

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = pathlib.Path(tempfile.mkdtemp())
        super().setUpClass()


def _arrays(builder, split):
    images, labels = zip(*tfds.as_numpy(builder.as_dataset(split=split, as_supervised=True)))
    return np.stack(images), np.array(labels)


@pytest.mark.slow
def test_augmented_copies_differ_have_their_labels_and_are_the_same_each_time(data_dir, tmp_path):
    datasets.load("digits", data_dir)
    one, other = DigitsAugmented(data_dir=data_dir), DigitsAugmented(data_dir=str(tmp_path))
    for builder in (one, other):
        builder.download_and_prepare()
    images, labels = _arrays(one, "train")
    source, source_labels = _arrays(digits.Digits(data_dir=data_dir), "train")
    np.testing.assert_array_equal(np.bincount(labels), 2 * np.bincount(source_labels))
    distinct = {image.tobytes() for image in images}
    assert len(distinct) > 1.5 * len(source)
    assert len(distinct & {image.tobytes() for image in source}) < 0.2 * len(source)
    for mine, theirs in zip(_arrays(other, "train"), (images, labels)):
        np.testing.assert_array_equal(mine, theirs)
    # In an order of their own, since TFDS orders by key.
    tests = [_arrays(builder, "test")[0] for builder in (one, digits.Digits(data_dir=data_dir))]
    assert sorted(map(bytes, tests[0])) == sorted(map(bytes, tests[1]))


def test_what_another_process_prepared_meanwhile_is_as_good(tmp_path, monkeypatch):
    mine, theirs = (digits.Digits(data_dir=str(tmp_path)) for _ in range(2))

    def too_late():
        theirs.download_and_prepare()
        raise FileExistsError("Destination already exists.")

    monkeypatch.setattr(mine, "download_and_prepare", too_late)
    preparation.prepare(mine)
    assert mine.info.splits["train"].num_examples > 1000
    assert len(_arrays(mine, "test")[0]) == mine.info.splits["test"].num_examples


@pytest.mark.parametrize("builder", [augmented.Cifar10Augmented, augmented.Cifar100Augmented])
def test_cifar_is_enlarged_to_one_and_a_half_million(builder):
    assert 50_000 * builder.COPIES == 1_500_000
    assert builder.SOURCE in builder.__name__.lower()


def _prepare_scenes(data_dir: pathlib.Path):
    return datasets.load("mit67", str(data_dir))


@pytest.fixture
def manual(tmp_path):
    return _scenes(tmp_path / "downloads" / "manual")


def test_scenes_come_at_the_size_of_resnet(manual, tmp_path):
    data = _prepare_scenes(tmp_path)
    assert data.image_shape == (224, 224, 3) and data.num_train == 6 and data.num_classes == 67
    images, labels = zip(*datasets.shuffled(data, 0).take(12).as_numpy_iterator())
    assert images[0].shape == (224, 224, 3) and set(labels) == {0, 1}
    assert 0 <= np.min(images) < np.max(images) <= 1


def test_without_any_file_the_instructions_are_shown(tmp_path):
    with pytest.raises(RuntimeError, match="(?s)mit67.*indoorCVPR_09.tar.*TrainImages.txt"):
        _prepare_scenes(tmp_path)


@pytest.mark.parametrize(
    "missing, message",
    [
        ("TestImages.txt", "TestImages.txt is missing: the official list"),
        ("Images/bakery/2.jpg", "1 of 10 listed images are missing.*first is bakery/2.jpg"),
    ],
)
def test_a_missing_file_is_named(manual, tmp_path, missing, message):
    (manual / missing).unlink()
    with pytest.raises(RuntimeError, match=message):
        _prepare_scenes(tmp_path)


def test_a_corrupt_image_is_named(manual, tmp_path):
    (manual / "Images/bakery/2.jpg").write_bytes(b"\xff\xd8\xffnot")
    with pytest.raises(ValueError, match=r"bakery/2.jpg is no readable image \(6 bytes\)"):
        _prepare_scenes(tmp_path)


def test_a_wrong_list_is_refused(manual, tmp_path):
    (manual / "TrainImages.txt").write_text("airport_inside/0.jpg\nairport_inside/0.jpg\n")
    with pytest.raises(ValueError, match="each once; got 2 lines, 1 different"):
        _prepare_scenes(tmp_path)
