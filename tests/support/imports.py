"""What a Python file names of other modules, read from its text."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Full name of each module or attribute that is imported, and what it is called in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((f"{module}.{a.name}", a.asname or a.name) for a in node.names)


def chains(tree: ast.Module) -> list[str]:
    """Every ``a.b.c`` in the file, as a text."""
    return [
        chain
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        if (chain := dotted(node))
    ]


def dotted(node: ast.expr) -> str:
    """``a.b.c`` as a text; "" for what is no chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if isinstance(node, ast.Attribute) and before else ""


def is_private(name: str) -> bool:
    """Has a part of a dotted name one underscore before it?"""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
