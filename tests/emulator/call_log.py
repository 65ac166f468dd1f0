"""Who called what, and how it ended: a line of JSON for each call, in the order of the answers."""

import json
import threading
from dataclasses import asdict, dataclass
from typing import Any

from moto.core.responses import BaseResponse

from .corrections import corrects


@dataclass
class Call:
    """One call. `service` is its prefix in IAM policies, `error` the code of the answer where it is one, `agent` how the caller's
    program calls itself, in a word (APN/1.0: Terraform's provider)."""

    agent: str = ""
    account: str = ""
    region: str = ""
    service: str = ""
    action: str = ""
    status: int = 0
    error: str = ""


class CallLog:
    """A file of calls."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._lock = threading.Lock()

    def write(self, call: Call) -> None:
        line = json.dumps(asdict(call)) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


_current = threading.local()


def begin(agent: str, region: str, service: str) -> Call:
    """The call that this thread answers from now on."""
    _current.call = Call(agent=agent, region=region, service=service)
    return _current.call


@corrects(BaseResponse)
def setup_class(original: Any, response: Any, *arguments: Any, **named: Any) -> None:
    original(response, *arguments, **named)
    _current.call.action = response._get_action() or ""
