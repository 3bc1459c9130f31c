"""The source of code that runs: whether it has one way through, and where its calls are."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch

__all__ = [
    "call_at",
    "chain",
    "codes",
    "compiled",
    "definition_of",
    "file_of",
    "is_definition",
    "is_torchs",
    "register",
    "value_of",
    "why_several",
]


# ------------------------------------------------------------------------------ code to its source

_files: dict[str, tuple[str, ast.Module, list[types.CodeType]]] = {}
# By the identity of code objects, which are equal where their sources are not; and so kept.
_definitions: dict[int, tuple[types.CodeType, ast.FunctionDef | ValueError]] = {}


def file_of(code: types.CodeType) -> str:
    """The text of the file. Raises ValueError."""
    try:
        return "".join(inspect.findsource(code)[0])
    except (OSError, TypeError, IndexError):
        raise ValueError("its source is not known") from None


def definition_of(code: types.CodeType) -> ast.FunctionDef:
    """The syntax tree of a function, checked to be that of the code that runs.

    Raises:
        ValueError: that is not known for sure.
    """
    if id(code) not in _definitions:
        try:
            found: ast.FunctionDef | ValueError = _definition(code)
        except ValueError as error:
            found = error
        _definitions[id(code)] = code, found
    found = _definitions[id(code)][1]
    if isinstance(found, ValueError):
        raise found
    return found


def register(code: types.CodeType, definition: ast.FunctionDef) -> None:
    """Says what is the tree of code that was compiled from no file."""
    _definitions[id(code)] = code, definition


def _definition(code: types.CodeType) -> ast.FunctionDef:
    text = file_of(code)
    if _files.get(code.co_filename, ("",))[0] != text:
        try:
            # The whole file, as the compiler looks at the imports too.
            tree = ast.parse(text)
            module = compile(tree, code.co_filename, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            raise ValueError("its source is not known") from None
        _files[code.co_filename] = text, tree, list(codes(module))
    _, tree, compiled_codes = _files[code.co_filename]
    found = [node for node in ast.walk(tree) if is_definition(node, code)]
    same = [c for c in compiled_codes if _is_at(c, code)]
    if len(found) != 1 or len(same) != 1 or _facts(same[0]) != _facts(code):
        raise ValueError("its source is not what runs")
    assert isinstance(found[0], ast.FunctionDef)
    return found[0]


def compiled(tree: ast.Module, code: types.CodeType) -> types.CodeType:
    """The function's code in a changed tree of its file."""
    module = compile(tree, code.co_filename, "exec", dont_inherit=True)
    return next(c for c in codes(module) if _is_at(c, code))


def _is_at(this: types.CodeType, code: types.CodeType) -> bool:
    return (this.co_name, this.co_firstlineno) == (code.co_name, code.co_firstlineno)


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def is_definition(node: ast.AST, code: types.CodeType) -> bool:
    if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
        return False
    lines = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
    return min(lines) == code.co_firstlineno


def _facts(code: types.CodeType) -> tuple[Any, ...]:
    """What two compilations of one source have in common."""
    constants = [repr(c) for c in code.co_consts if not isinstance(c, types.CodeType)]
    names = code.co_names, code.co_varnames, code.co_freevars
    return code.co_code, list(code.co_lines()), *names, constants


def call_at(code: types.CodeType, instruction: int, line: int, name: str) -> ast.Call:
    """The call in the source, of a function so named, that an instruction makes.

    Raises:
        ValueError: there is no one such call.
    """
    calls = [node for node in ast.walk(definition_of(code)) if isinstance(node, ast.Call)]
    # Python 3.10 knows the line alone, as do later ones when told to (-X no_debug_ranges).
    place: Any = (line, None, None, None)
    if hasattr(code, "co_positions"):
        place = list(code.co_positions())[instruction // 2]
    if None in place:
        found = [c for c in calls if c.lineno == line and chain(c.func)[-1:] == [name]]
    else:
        found = [
            c
            for c in calls
            if (c.lineno, c.end_lineno, c.col_offset, c.end_col_offset) == place
        ]  # fmt: skip
    if len(found) != 1:
        raise ValueError("the call is not found in its source")
    return found[0]


# --------------------------------------------------------------------------------- one way through

# A program of these alone does the same in every run: it does not choose.
_STATEMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr, ast.Pass)
_EXPRESSIONS = (
    *(ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.keyword, ast.Tuple, ast.List),
    *(ast.BinOp, ast.operator, ast.UnaryOp, ast.USub, ast.UAdd, ast.expr_context, ast.Subscript),
)
_INDICES = (ast.Constant, ast.Slice, ast.Tuple, ast.UnaryOp, ast.USub, ast.expr_context)
_TENSORS = frozenset(dir(torch.Tensor))


def chain(node: ast.AST) -> list[str]:
    """["self", "a", "b"] of ``self.a.b``, with constant subscripts left out; [] of all else.

    What comes before an attribute need not be a name: ``f(x).a`` is ["", "a"].
    """
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*(chain(node.value) or [""]), node.attr]
    return chain(node.value) if isinstance(node, ast.Subscript) else []


def is_torchs(value: Any) -> bool:
    """A function, class or Python module of torch's."""
    name = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return isinstance(name, str) and name.partition(".")[0] == "torch"


def why_several(code: types.CodeType, names: dict[str, Any]) -> str | None:
    """What may lead another run of the code, with these global names, another way; or None."""
    try:
        definition = definition_of(code)
    except ValueError as error:
        return f"may have several ways through: {error}"
    nodes: list[ast.AST] = [*definition.body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.stmt):
            if not isinstance(node, _STATEMENTS):
                return f"has {_article(node)} (line {node.lineno})"
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
                targets = [node.target]
            if not all(
                isinstance(n, (ast.Name, ast.Tuple, ast.expr_context))
                for target in targets
                for n in ast.walk(target)
            ):
                return f"assigns to more than names (line {node.lineno})"
        elif not isinstance(node, _EXPRESSIONS):
            return f"has {_article(node)}"
        elif isinstance(node, ast.Call) and not _is_certain(node.func, code, names):
            return f"calls {ast.unparse(node.func)}, which may be one thing or another"
        elif isinstance(node, ast.Subscript):
            if not all(isinstance(n, _INDICES) for n in ast.walk(node.slice)):
                return f"picks by an index that may change: {ast.unparse(node)}"
            if not chain(node.value) or "" in chain(node.value):
                return f"picks from what it made: {ast.unparse(node)}"
            nodes.append(node.value)
            continue
        # An annotation is no part of what runs.
        nodes += [n for n in ast.iter_child_nodes(node) if n is not getattr(node, "annotation", 0)]
    return None


def _article(node: ast.AST) -> str:
    name = type(node).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def value_of(links: list[str], code: types.CodeType, names: dict[str, Any]) -> Any:
    """What a chain stands for that begins with a global name; None of others."""
    if not links or links[0] in (*code.co_varnames, *code.co_cellvars, *code.co_freevars):
        return None
    value = names.get(links[0])
    for name in links[1:]:
        value = getattr(value, name, None)
    return value


def _is_certain(function: ast.expr, code: types.CodeType, names: dict[str, Any]) -> bool:
    """Is what is called the same in every run, with all that leads to it?"""
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "super()":
        return not function.attr.startswith("__")
    links = chain(function)
    if not links:
        return isinstance(function, ast.Name)
    root, *rest = links
    if any(name.startswith("__") and name.endswith("__") for name in rest):
        return False
    if root in code.co_varnames[:1] and code.co_argcount and rest:
        return True  # a method's self; what it has is looked at by the code that then runs
    if root == "" or root in (*code.co_varnames, *code.co_cellvars, *code.co_freevars):
        return bool(rest) and all(name in _TENSORS for name in rest)
    if root == "super" and not rest and "super" not in names:
        return True
    value = value_of(links, code, names)
    return is_torchs(value) or isinstance(value, types.FunctionType)
