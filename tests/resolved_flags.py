"""The flags of each config as its trainer parses them: a config may be rewritten if they stay.

    python -m tests.resolved_flags compare   # what is no longer as it was recorded
    python -m tests.resolved_flags record    # after a change that is meant: a config, a default

Run them from the root of the checkout, like the trainers. resolved_flags.json holds each trainer's
defaults, and of each config the flags that differ from them, on one line, so that a diff shows the
name of the config beside its flags.
"""

from __future__ import annotations

import copy
import json
import math
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from trainers import compare, issgd, rare_classes, variance_ablation
from trainers import flags as trainer_flags

RECORDED = pathlib.Path(__file__).with_suffix(".json")

# By trainer the defaults, {flag: value}, and the configs, {path: {flag: value}}.
Document = dict[str, dict[str, dict[str, Any]]]


def _define_of_compare(values: flags.FlagValues) -> None:
    # They are defined on absl's own, where a test before this one may have set them.
    for flag in flags.FLAGS.get_flags_for_module(compare):
        own = copy.deepcopy(flag)
        own.unparse()
        values[own.name] = own
    trainer_flags.define_of_programs(values)


_DEFINE = {
    "compare": _define_of_compare,
    "fine_tuning": trainer_flags.define,
    "image_classification": trainer_flags.define,
    "issgd": issgd.define,
    "rare_classes": rare_classes.define,
    "sequence_classification": trainer_flags.define,
    "variance_ablation": variance_ablation.define,
}


def trainer_of(config: pathlib.Path) -> str:
    """The trainer that the command in a config's header runs.

    Raises:
        ValueError: there is no such command, or no such trainer.
    """
    command = rf"^# python -m trainers\.(\w+) (?:\\\n# +)?--flagfile={re.escape(str(config))}\s"
    found = re.search(command, config.read_text("utf-8"), flags=re.MULTILINE)
    if not found or found[1] not in _DEFINE:
        raise ValueError(
            f"the header of {config} must show its command, python -m trainers.NAME "
            f"--flagfile={config}, with NAME one of {', '.join(_DEFINE)}; "
            f"got {found[0].strip() if found else 'none'}."
        )
    return found[1]


def parsed(trainer: str, *arguments: str) -> dict[str, Any]:
    """A trainer's own flags, none of absl's or TensorFlow's, after parsing a command line."""
    found = values(trainer, *arguments)
    return {name: _plain(found[name].value) for name in found}


def values(trainer: str, *arguments: str) -> flags.FlagValues:
    """The same, as trainers take them."""
    defined = flags.FlagValues()
    _DEFINE[trainer](defined)
    if arguments:
        defined([trainer, *arguments])
    return defined


def _plain(value: Any) -> Any:
    """JSON knows no infinity."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def resolved() -> Document:
    """The flags as they are now."""
    found: Document = {name: {"defaults": parsed(name), "configs": {}} for name in _DEFINE}
    for config in sorted(pathlib.Path("configs").rglob("*.cfg")):
        trainer = trainer_of(config)
        default = found[trainer]["defaults"]
        given = parsed(trainer, f"--flagfile={config}")
        changed = {name: value for name, value in given.items() if value != default[name]}
        found[trainer]["configs"][str(config)] = changed
    return found


def differences(before: Document, after: Document) -> list[str]:
    """A line for each flag that is another, each config that is not in both.

    All flags of a config are compared: a new default shows at every config that relies on it.
    """
    old, new = _whole(before), _whole(after)
    lines = [f"{name} is recorded, and is not there" for name in old if name not in new]
    lines += [f"{name} is there, and is not recorded" for name in new if name not in old]
    for name in old.keys() & new.keys():
        # As text, for which True is not 1.
        was, now = ({f: json.dumps(v) for f, v in side[name].items()} for side in (old, new))
        lines += [
            f"{name}: {flag} was {was.get(flag, 'not there')}, is {now.get(flag, 'not there')}"
            for flag in was.keys() | now.keys()
            if was.get(flag) != now.get(flag)
        ]
    return sorted(lines)


def _whole(document: Document) -> dict[str, dict[str, Any]]:
    """All flags of each trainer without a config and of each config."""
    found = {}
    for trainer, part in document.items():
        found[f"trainers.{trainer}"] = part["defaults"]
        for config, given in part["configs"].items():
            found[config] = {"trainer": trainer, **part["defaults"], **given}
    return found


def text(document: Mapping[str, Any], depth: int = 3, indent: str = "") -> str:
    """JSON, sorted, with what lies deeper than `depth` on one line."""
    if not depth:
        return json.dumps(document, sort_keys=True)
    lines = [
        f"{indent}  {json.dumps(name)}: {text(document[name], depth - 1, indent + '  ')}"
        for name in sorted(document)
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def recorded() -> Document:
    """The flags as they were recorded."""
    return json.loads(RECORDED.read_text("utf-8"))


def main(arguments: list[str]) -> None:
    match arguments:
        case ["record"]:
            RECORDED.write_text(f"{text(resolved())}\n", "utf-8")
        case ["compare"]:
            # sys.exit takes a text for a failure.
            sys.exit("\n".join(differences(recorded(), resolved())) or None)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
