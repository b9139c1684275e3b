"""Indoor scenes in 67 categories (Quattoni & Torralba 2009), as in K&F 2018, section 4.3."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

IMAGES = "Images"
SIDE = 224
LISTS = {"train": "TrainImages.txt", "test": "TestImages.txt"}
_HOMEPAGE = "https://web.mit.edu/torralba/www/indoor.html"


class Mit67(tfds.core.GeneratorBasedBuilder):
    """67 categories of indoor scenes, officially 80 images of each to train and 20 to test.

    The labels are the 67 directories of the official lists, in alphabetical order.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The official split of 5,360 and 1,340 images."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    From {_HOMEPAGE} put into the manual directory (--manual_dir of `tfds build`, by default
    DATA_DIR/downloads/manual):
      Images/             the directory in indoorCVPR_09.tar, with a directory for each category
      TrainImages.txt     the official list of training images, CATEGORY/FILE.jpg in each line
      TestImages.txt      the official list of test images
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Recognizing indoor scenes (Quattoni & Torralba 2009).",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=67),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=_HOMEPAGE,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        manual = pathlib.Path(dl_manager.manual_dir)
        listed = {split: read_list(manual, name) for split, name in LISTS.items()}
        categories = sorted({name.split("/")[0] for names in listed.values() for name in names})
        if len(categories) > 67:
            raise ValueError(
                f"{manual / LISTS['train']} and {LISTS['test']} list {len(categories)} "
                "categories; the official lists have 67."
            )
        _refuse_missing(manual, [name for names in listed.values() for name in names])
        return {
            split: self._generate_examples(manual / IMAGES, names, categories)
            for split, names in listed.items()
        }

    def _generate_examples(
        self, images: pathlib.Path, names: list[str], categories: list[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in names:
            image = decoded(images / name)
            yield name, {"image": image, "label": categories.index(name.split("/")[0])}


def resized(image: tf.Tensor) -> tf.Tensor:
    """An image at ResNet-50's size, [224, 224, 3], its proportions not kept."""
    return tf.image.resize(image, [SIDE, SIDE])


def read_list(manual: pathlib.Path, name: str) -> list[str]:
    """The images of an official list, CATEGORY/FILE.jpg each.

    Raises:
        FileNotFoundError: the list is not in the manual directory.
        ValueError: a line is none of CATEGORY/FILE, or comes twice.
    """
    path = manual / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the official list of {_HOMEPAGE}. The manual directory also "
            f"needs {', '.join([IMAGES + '/', *(set(LISTS.values()) - {name})])}."
        )
    names = path.read_text().split()
    wrong = [line for line in names if line.count("/") != 1]
    if wrong or not names or len(set(names)) != len(names):
        raise ValueError(
            f"{path} must have one CATEGORY/FILE.jpg in each line, each once; got {len(names)} "
            f"lines, {len(set(names))} different, not of this form: {wrong[:3]}."
        )
    return names


def decoded(path: pathlib.Path):
    """The pixels of an image file: [height, width, 3] uint8.

    Raises:
        ValueError: the file is no image.
    """
    # Some of the official .jpg files are GIFs.
    try:
        image = tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"{path} is no readable image ({path.stat().st_size} bytes): {error.message[:200]} "
            "Extract it again from indoorCVPR_09.tar."
        ) from error
    return image.numpy()


def _refuse_missing(manual: pathlib.Path, names: list[str]) -> None:
    missing = [name for name in names if not (manual / IMAGES / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} listed images are missing in {manual / IMAGES}, the "
            f"first is {missing[0]}. Extract indoorCVPR_09.tar of {_HOMEPAGE} there, so that "
            f"{manual / IMAGES} holds a directory for each category."
        )
