"""Optimizers by name: Keras's, and TensorFlow Addons' as tfa:<Name>."""

from __future__ import annotations

import inspect
from types import ModuleType

import keras
from absl import flags

from tf_importance.arguments import meant
from trainers import addons


def of(settings: flags.FlagValues, learning_rate=None):
    """The optimizer that the trainer's flags describe, with their learning rate or another.

    --clip_norm clips the norm of all variables' gradients together (K&F 2018, section 4.4:
    "the norm of all gradients"), importance weights and corrections included.

    Raises:
        ValueError: as `build`.
    """
    return build(
        settings.optimizer,
        settings.learning_rate if learning_rate is None else learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        global_clipnorm=settings.clip_norm,
    )


def build(name: str, learning_rate: float, **options: float):
    """An optimizer.

    Args:
        name: a class of `keras.optimizers`, in any case ("sgd", "Adam"); or
            "tfa:<Name>" for a class of `tensorflow_addons.optimizers`.
        learning_rate: the learning rate.
        **options: further arguments; one of 0 is left at the optimizer's default.
    Returns:
        A Keras optimizer.
    Raises:
        ValueError: unknown name, or an option that this optimizer does not have or needs.
        ImportError: tfa:<Name> without TensorFlow Addons.
    """
    if name.startswith(addons.PREFIX):
        module = addons.load(f"--optimizer={name}").optimizers
    else:
        module = keras.optimizers
    optimizer = _find(module, name.removeprefix(addons.PREFIX))
    given = {option: value for option, value in options.items() if value}
    parameters = inspect.signature(optimizer.__init__).parameters
    for option in given:
        if option not in parameters:
            raise ValueError(f"optimizer {name!r} has no {option}; got {option}={given[option]}.")
    for option in options:
        if option in parameters and parameters[option].default is inspect.Parameter.empty:
            if option not in given:
                raise ValueError(f"optimizer {name!r} needs a {option}; give --{option}.")
    return optimizer(learning_rate=learning_rate, **given)


def _find(module: ModuleType, name: str):
    found = {
        attribute.lower(): getattr(module, attribute)
        for attribute in dir(module)
        if inspect.isclass(getattr(module, attribute))
        and "learning_rate" in inspect.signature(getattr(module, attribute).__init__).parameters
    }
    if name.lower() not in found:
        known = ", ".join(sorted(optimizer.__name__ for optimizer in found.values()))
        close = meant(name.lower(), found)
        raise ValueError(f"unknown optimizer {name!r}; {module.__name__} has {known}.{close}")
    return found[name.lower()]
