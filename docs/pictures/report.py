"""Draw the screenshots of docs/report.md anew: make screenshots.

Trains a net on the digits by uniform sampling and by importance sampling, three seeds, writes the
report, and lets Chromium look at it: light and dark, 1,400 and 400 pixels wide.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile

import keras
from PIL import Image
from sklearn.datasets import load_digits

import tf_importance as tfi

_HERE = pathlib.Path(__file__).parent
_HEIGHTS = {1400: 2_500, 400: 3_200}
# Chromium has no narrower windows; what is beyond is cut off.
_NARROWEST = 500
_TRAIN, _EPOCHS = 1_400, 12


def _net() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([layers.Flatten(), layers.Dense(128, "relu"), layers.Dense(10)])


def _trained(folder: pathlib.Path, seed: int, sampler: tfi.samplers.Sampler | None) -> None:
    digits = load_digits()
    x, y = (digits.images / 16).astype("float32"), digits.target
    keras.utils.set_random_seed(seed)
    rate = tfi.schedules.GainAdapted(keras.optimizers.schedules.CosineDecay(0.3, 44 * _EPOCHS))
    model = _net() if sampler is None else tfi.ISModel(_net())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    given = {} if sampler is None else {"sampler": sampler}
    optimizer = keras.optimizers.SGD(rate.given if sampler is None else rate)
    model.compile(optimizer, loss, metrics=["accuracy"], **given)
    kept = tfi.Recorder(folder / str(seed), (x[:_TRAIN], y[:_TRAIN]))
    held_out = (x[_TRAIN:], y[_TRAIN:])
    model.fit(
        x[:_TRAIN],
        y[:_TRAIN],
        epochs=_EPOCHS,
        validation_data=held_out,
        verbose=0,
        callbacks=[kept],
    )


def _looked_at(page: pathlib.Path, width: int, dark: bool, image: pathlib.Path) -> None:
    """A screenshot of the page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("needs Chromium: apt-get install chromium")
    height = _HEIGHTS[width]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    shown = page
    if width < _NARROWEST:
        shown = page.with_name("narrow.html")
        frame = f'<iframe src="{page.name}" width="{width}" height="{height}" style="border:0">'
        shown.write_text(f'<body style="margin:0">{frame}</iframe></body>')
    command += [f"--window-size={max(width, _NARROWEST)},{height}", f"--screenshot={image}"]
    subprocess.run([*command, shown.as_uri()], check=True, capture_output=True)
    with Image.open(image) as whole:
        part = whole.crop((0, 0, width, height)).convert("P", palette=Image.Palette.ADAPTIVE)
    part.save(image, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        top = pathlib.Path(made)
        for seed in range(3):
            _trained(top / "uniform", seed, None)
            _trained(top / "importance", seed, tfi.samplers.RAIS())
        page = tfi.report(top, title="The digits")
        for width in _HEIGHTS:
            for dark in (False, True):
                name = f"report-{width}-{'dark' if dark else 'light'}.png"
                _looked_at(page, width, dark, _HERE / name)


if __name__ == "__main__":
    main()
