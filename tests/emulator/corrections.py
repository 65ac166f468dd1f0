"""How a module corrects moto: functions that replace an answer or add one.

moto finds the method of an action by its name in the class of a service's responses, and serialises what it returns by botocore's
own description of the service: only the names of fields matter.
"""

from collections.abc import Callable
from typing import Any

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult


def answers(responses: type) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """The decorated function answers the action of its name. Its argument is moto's response object."""

    def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def answer(request: Any) -> Any:
            result = function(request)
            return ActionResult(result) if isinstance(result, dict) else result

        setattr(responses, function.__name__, answer)
        return function

    return register


def corrects(owner: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorated function replaces the method of its name; its first argument is what it replaces."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        original = getattr(owner, function.__name__)

        def method(self: Any, *arguments: Any, **named: Any) -> Any:
            return function(original, self, *arguments, **named)

        setattr(owner, function.__name__, method)
        return function

    return register


class Refused(ServiceException):
    """What a service says to a wrong request."""


def refuse(code: str, message: str) -> Refused:
    return Refused(code, message)
