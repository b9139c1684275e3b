"""What the project's files import, read from their syntax trees without running them."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("tf_importance", "trainers", "reports", "benchmarks", "tests")


def files(root: Path = ROOT) -> dict[str, Path]:
    """Every Python file of the project in root by the name of its module."""
    paths = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {module_name(path.relative_to(root)): path for path in paths}


def module_name(path: Path) -> str:
    """a/b.py → a.b, and a/__init__.py → a."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(
    source: str, module: str, known: Collection[str], is_package: bool = False
) -> set[str]:
    """Full names of the modules that source imports, anywhere in it, also inside functions.

    Args:
        source: Python text.
        module: its name, from which relative imports start.
        known: the project's modules: `from a import b` imports a.b where that is a module,
            and a where b is a name inside it.
        is_package: source is an `__init__.py`.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, is_package)
            full = [f"{base}.{alias.name}" for alias in node.names]
            names |= {name if name in known else base for name in full}
    return names


def imports_of(module: str, known: dict[str, Path]) -> set[str]:
    """The same for one of the project's own files."""
    path = known[module]
    return imported(path.read_text("utf-8"), module, known, path.name == "__init__.py")


def _base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The package or module after `from`, its leading dots resolved."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts[: len(parts) - node.level + is_package]
    return ".".join([*above, node.module] if node.module else above)
