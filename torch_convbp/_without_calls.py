"""A method without some of its calls: f(g(x)) becomes f(x), the rest of the code as it was.

The source is read, checked to be that of the method that runs, and compiled again: so the method
still follows every attribute it looks at, and its lines are where they were in tracebacks.
"""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from torch_convbp import _source
from torch_convbp._classes import reduce_by

__all__ = ["Call", "call_of", "check", "class_before", "class_without"]


class Call(NamedTuple):
    """A call in a method: the ``number``-th that ast.walk comes to."""

    method: str
    number: int
    text: str


def _calls(definition: ast.FunctionDef) -> list[ast.Call]:
    return [node for node in ast.walk(definition) if isinstance(node, ast.Call)]


def call_of(code: types.CodeType, call: ast.Call) -> Call:
    """The call of the definition of ``code`` as what can be kept, pickled and found again."""
    number = _calls(_source.definition_of(code)).index(call)
    return Call(code.co_name, number, ast.unparse(call))


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
    else:  # relu(**arguments)
        raise ValueError(f"the arguments of {ast.unparse(call)} are not known")
    if isinstance(argument, ast.Starred) or None in keywords:
        raise ValueError(f"the arguments of {ast.unparse(call)} are not known")
    for value in (*rest, *keywords.values()):
        try:
            ast.literal_eval(value)
        except ValueError:
            raise ValueError(f"{ast.unparse(value)} may change") from None
    return argument


def check(call: Call) -> None:
    """Raises ValueError: it cannot be left out, by what it is called with."""
    node = ast.parse(call.text, mode="eval").body
    assert isinstance(node, ast.Call)
    _argument(node)


def _without(function: types.FunctionType, removed: Iterable[Call]) -> types.FunctionType:
    code = function.__code__
    _source.definition_of(code)  # or it raises
    tree = ast.parse(_source.file_of(code))  # one of its own, to be changed
    [definition] = [node for node in ast.walk(tree) if _source.is_definition(node, code)]
    assert isinstance(definition, ast.FunctionDef)
    found = _calls(definition)
    argument: dict[ast.AST, ast.expr] = {}
    for call in removed:
        if call.number >= len(found) or ast.unparse(found[call.number]) != call.text:
            raise ValueError(f"it has no call {call.text} any more")
        argument[found[call.number]] = _argument(found[call.number])

    class Remove(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            return self.visit(argument[node]) if node in argument else node

    definition.body = [Remove().visit(statement) for statement in definition.body]
    compiled = _source.compiled(tree, code)
    _source.register(compiled, definition)
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    new = types.FunctionType(
        compiled,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells[name] for name in compiled.co_freevars),
    )
    functools.update_wrapper(new, function)
    del new.__wrapped__  # type: ignore[attr-defined]  # inspect would show the old one
    new.__kwdefaults__ = function.__kwdefaults__
    return new


def class_without(cls: Any, removed: tuple[Call, ...]) -> type[nn.Module]:
    """A class as ``cls`` whose methods lack these calls. Raises ValueError."""
    functions = tuple(getattr(cls, name, None) for name in sorted({c.method for c in removed}))
    return _class_without(cls, removed, functions)


@functools.cache
def _class_without(cls: Any, removed: tuple[Call, ...], functions: Any) -> type[nn.Module]:
    def __call__(_: Any, *args: Any, **kwargs: Any) -> Any:
        return cls(*args, **kwargs)  # type(module)(...) makes a new one, with nothing fused

    namespace: dict[str, Any] = {"_fused_from": cls}
    namespace |= {"__module__": __name__, "__doc__": cls.__doc__}
    namespace["__reduce_ex__"] = reduce_by(functools.partial(_unpickled, removed), cls)
    for function in functions:
        if not isinstance(function, types.FunctionType):
            raise ValueError("it has no such method any more")
        mine = [call for call in removed if call.method == function.__name__]
        namespace[function.__name__] = _without(function, mine)
    try:
        meta = type(type(cls).__name__, (type(cls),), {"__call__": __call__})
        made: type[nn.Module] = meta(f"Fused{cls.__name__}", (cls,), namespace)
        return made
    except Exception as error:  # what a class does when it is derived from is its own
        raise ValueError(f"{cls.__name__} does not let itself be derived from: {error}") from error


def _unpickled(removed: tuple[Call, ...], cls: Any) -> type[nn.Module]:
    try:
        return class_without(cls, removed)
    except ValueError as error:
        raise RuntimeError(
            f"{cls.__name__} was saved with activations fused into convolutions and its code has "
            f"changed since: {error}. Save models reverted, or their state_dict."
        ) from error


def class_before(cls: type[nn.Module]) -> type[nn.Module] | None:
    """What class_without made ``cls`` of."""
    return vars(cls).get("_fused_from")
