"""A method: a function, and how params become its arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from inspect import Parameter
from typing import Any, NamedTuple

from ._fault import Fault

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")

#: The names of methods that the daemon itself has.
_TAKEN = frozenset({"ping", "methods"})


class Method(NamedTuple):
    """A function that answers requests."""

    name: str
    function: Callable[..., Any]
    #: Calls the function with these params.
    invoke: Callable[[Any], Any]
    idempotent: bool
    reply: str | None
    is_async: bool
    in_thread: bool
    #: Whether params and result are the bytes of JSON.
    is_raw: bool

    def as_declared(self) -> dict[str, Any]:
        declared: dict[str, Any] = {"name": self.name, "idempotent": self.idempotent}
        if self.reply is not None:
            declared["reply"] = self.reply
        return declared


def method(
    function: Callable[..., Any], name: str | None, idempotent: bool, reply: str | None, thread: bool, raw: bool
) -> Method:
    """Returns the method of a function.

    :raises ValueError: A name is not valid, or is the daemon's.
    :raises TypeError: The function cannot be a method: a generator, or a coroutine with `thread`.
    """
    name = function.__name__ if name is None else name
    for text in (name, reply):
        if text is not None and (not _NAME.fullmatch(text) or text == "error"):
            raise ValueError(f'{text!r} is not a valid name: [a-z][a-z0-9_.-]{{0,63}}, but not "error"')
    if name in _TAKEN:
        raise ValueError(f"the method {name!r} is the daemon's own")
    is_async = inspect.iscoroutinefunction(function)
    if is_async and thread:
        raise TypeError(f"{name}: a coroutine runs in the loop, not in a thread")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name}: a generator has no single result")
    invoke = function if raw else _invoke(function)
    return Method(name, function, invoke, idempotent, reply, is_async, thread, raw)


def _invoke(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Returns the call of a function with the params of a request.

    A parameter that is positional-only gets the params as they are. Other parameters get the members of an object; the
    first of them gets any other value. No params and null are the same.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if len(parameters) == 1 and parameters[0].kind is Parameter.POSITIONAL_ONLY:
        if parameters[0].default is Parameter.empty:
            return function
        return lambda params: function() if params is None else function(params)
    positional = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    known = frozenset(p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY))
    required = tuple(
        p.name
        for p in parameters
        if p.default is Parameter.empty and p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    )
    needed = frozenset(required)
    if needed - known:
        raise TypeError(f"{function.__name__}: a positional-only parameter is the only one")
    takes_value = bool(positional) and needed <= {positional[0].name}

    def invoke(params: Any) -> Any:
        if params.__class__ is dict:
            if not needed <= params.keys():
                raise Fault("bad_params", "missing: " + ", ".join(n for n in required if n not in params))
            if not takes_any and not params.keys() <= known:
                raise Fault("bad_params", "unknown: " + next(n for n in params if n not in known)[:64])
            return function(**params)
        if params is None:
            if needed:
                raise Fault("bad_params", "missing: " + ", ".join(required))
            return function()
        if not takes_value:
            raise Fault("bad_params", "the params are not an object" if known or takes_any else "the method takes no params")
        return function(params)

    return invoke
