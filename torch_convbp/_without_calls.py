"""A method without some of its calls: f(g(x)) becomes f(x), the rest of the code as it was.

The source is read, checked to be that of the method that runs, and compiled again: so the method
still follows every flag and attribute it looks at, and its lines are where they were in tracebacks.
"""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

__all__ = ["Call", "calls", "class_before", "class_without", "removed_from"]


class Call(NamedTuple):
    """The ``number``-th call, in order of evaluation, of a function named as activations are."""

    method: str
    number: int
    name: str
    text: str

    @property
    def function(self) -> str:
        """What is called, as the source names it."""
        node = ast.parse(self.text, mode="eval").body
        return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def _source(function: types.FunctionType) -> tuple[ast.Module, ast.FunctionDef]:
    """The syntax tree of the method's file, and the method in it, which is what runs.

    Raises:
        ValueError: that is not known for sure.
    """
    try:
        # The whole file, as the compiler looks at the imports too.
        tree = ast.parse("".join(inspect.findsource(function)[0]))
    except (OSError, TypeError, SyntaxError):
        raise ValueError("its source is not known") from None
    found = [node for node in ast.walk(tree) if _is_defined_by(node, function.__code__)]
    if len(found) != 1 or _facts(_compiled(function, tree)) != _facts(function.__code__):
        raise ValueError("its source is not what runs")
    assert isinstance(found[0], ast.FunctionDef)
    return tree, found[0]


def _is_defined_by(node: ast.AST, code: types.CodeType) -> bool:
    if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
        return False
    lines = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
    return min(lines) == code.co_firstlineno


def _compiled(function: types.FunctionType, tree: ast.Module) -> types.CodeType:
    """The method's code in its compiled file."""
    code = function.__code__
    todo = [compile(tree, code.co_filename, "exec", dont_inherit=True)]
    while todo:
        at = todo.pop()
        if (at.co_name, at.co_firstlineno) == (code.co_name, code.co_firstlineno):
            return at
        todo += [c for c in at.co_consts if isinstance(c, types.CodeType)]
    raise ValueError("its source is not what runs")


def _facts(code: types.CodeType) -> tuple[Any, ...]:
    """What two compilations of one source have in common."""
    constants = [repr(c) for c in code.co_consts if not isinstance(c, types.CodeType)]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


def _in_order(node: ast.AST) -> Iterator[ast.Call]:
    """The calls in a node, in the order in which they are made."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Assign):
        children = [node.value, *node.targets]
    for child in children:
        yield from _in_order(child)
    if isinstance(node, ast.Call):
        yield node


def _named(definition: ast.FunctionDef, names: frozenset[str]) -> list[tuple[str, ast.Call]]:
    found = []
    for statement in definition.body:
        for call in _in_order(statement):
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            if name in names:
                found.append((name, call))
    return found


def calls(function: types.FunctionType, names: frozenset[str]) -> list[Call]:
    """The method's calls of functions or methods with these names. Raises ValueError."""
    found = _named(_source(function)[1], names)
    return [Call(function.__name__, i, n, ast.unparse(c)) for i, (n, c) in enumerate(found)]


def _argument(call: ast.Call) -> ast.expr:
    """What an activation is called with, all else being constants. Raises ValueError."""
    keywords = {k.arg: k.value for k in call.keywords}
    rest = call.args
    if "input" in keywords:
        argument = keywords.pop("input")
    elif rest:  # relu(x), F.relu(x)
        argument, *rest = rest
    elif isinstance(call.func, ast.Attribute):  # x.relu()
        argument = call.func.value
    if isinstance(argument, ast.Starred) or None in keywords:
        raise ValueError(f"the arguments of {ast.unparse(call)} are not known")
    for value in (*rest, *keywords.values()):
        try:
            ast.literal_eval(value)
        except ValueError:
            raise ValueError(f"{ast.unparse(value)} may change") from None
    return argument


def _without(
    function: types.FunctionType, names: frozenset[str], removed: Iterable[Call]
) -> types.FunctionType:
    tree, definition = _source(function)
    found = _named(definition, names)
    argument: dict[ast.AST, ast.expr] = {}
    for call in removed:
        if call.number >= len(found) or ast.unparse(found[call.number][1]) != call.text:
            raise ValueError(f"it has no call {call.text} any more")
    for call in removed:
        node = found[call.number][1]
        argument[node] = _argument(node)

    class Remove(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            return self.visit(argument[node]) if node in argument else node

    definition.body = [Remove().visit(statement) for statement in definition.body]
    code = _compiled(function, tree)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    new = types.FunctionType(
        code,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells[name] for name in code.co_freevars),
    )
    functools.update_wrapper(new, function)
    del new.__wrapped__  # type: ignore[attr-defined]  # inspect would show the old one
    new.__kwdefaults__ = function.__kwdefaults__
    return new


def _rebuild(cls: Any, names: frozenset[str], removed: tuple[Call, ...]) -> nn.Module:
    try:
        changed = class_without(cls, names, removed)
    except ValueError as error:
        raise RuntimeError(
            f"{cls.__name__} was saved with activations fused into convolutions and its code has "
            f"changed since: {error}. Save models reverted, or their state_dict."
        ) from error
    return changed.__new__(changed)


def _rebuild_by(
    names: frozenset[str], removed: tuple[Call, ...], make: Callable[..., Any], *args: Any
) -> Any:
    module = make(*args)
    cls: Any = type(module)
    module.__class__ = class_without(cls, names, removed)
    return module


@functools.cache
def class_without(cls: Any, names: frozenset[str], removed: tuple[Call, ...]) -> type[nn.Module]:
    """A class as ``cls`` whose methods lack these of their ``calls``. Raises ValueError."""

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # Pickle and deepcopy look classes up by name; this one is made here.
        if (cls.__reduce__, cls.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
            rule: Any = cls.__reduce_ex__(self, protocol)
            make, args, *rest = rule
            return _rebuild_by, (names, removed, make, *args), *rest
        getstate = getattr(self, "__getstate__", vars(self).copy)
        return _rebuild, (cls, names, removed), getstate()

    namespace: dict[str, Any] = {"__reduce_ex__": __reduce_ex__, "_fused_from": (cls, removed)}
    namespace |= {"__module__": __name__, "__doc__": cls.__doc__}
    for method in {call.method for call in removed}:
        mine = [call for call in removed if call.method == method]
        namespace[method] = _without(getattr(cls, method), names, mine)
    try:
        return type(f"Fused{cls.__name__}", (cls,), namespace)
    except Exception as error:  # what a class does when it is derived from is its own
        raise ValueError(f"{cls.__name__} does not let itself be derived from: {error}") from error


def class_before(cls: type[nn.Module]) -> type[nn.Module] | None:
    """What class_without made ``cls`` of."""
    return vars(cls).get("_fused_from", (None,))[0]


def removed_from(cls: type[nn.Module]) -> tuple[Call, ...]:
    """The calls that class_without left out of ``cls``."""
    return vars(cls).get("_fused_from", (None, ()))[1]
