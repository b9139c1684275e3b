"""The papers' experiments: absl flags and one screen of recipe each."""

from trainers import startup

startup.import_tensorflow()
