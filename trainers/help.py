"""What `--help` shows of a program: what it says of itself, and its flags in groups."""

from __future__ import annotations

from absl import flags

from trainers.flags import GROUPS


def text(values: flags.FlagValues, program: str, about: str) -> str:
    """All of it.

    Args:
        values: where the flags are defined. program: the file that they are key flags of.
        about: what it says of itself, with examples.
    """
    known = {flag.name: flag for flag in values.get_key_flags_for_module(program)}
    shared = {name for names in GROUPS.values() for name in names}
    own = [name for name in sorted(known) if name not in shared]
    grouped = {"Of this program": own, **GROUPS}
    parts = [about.strip(), ""]
    for title, names in grouped.items():
        shown = [_of_flag(known[name]) for name in names if name in known]
        if shown:
            parts += [f"{title}:", *shown, ""]
    parts += ["--flagfile=FILE reads flags from a file; --list_configs shows those that there are."]
    return "\n".join(parts)


def _of_flag(flag: flags.Flag) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = flag.default
    if isinstance(default, list):
        default = ",".join(map(str, default))
    described = f"{name}: {flag.help}"
    if default is not None and default is not False and default != "":
        described += f" Default: {default}."
    if flag.parser.syntactic_help:
        described += f" ({flag.parser.syntactic_help})"
    return flags.text_wrap(described, length=88, indent="      ", firstline_indent="  ")
