"""The door that all requests come through: S3 goes to the S3, the rest to moto, one call after the other.

What moto does not know it answers with 500, which SDKs try again for minutes: here it is 400, with the name of the action.
moto's own doors are shut but for one: `/moto-api/data.json`, what it holds.
"""

import json
import re
import threading
import traceback
from collections.abc import Iterable
from typing import Any
from xml.sax.saxutils import escape

from moto.core.exceptions import ServiceException
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app

from . import accounts, call_log
from .call_log import Call, CallLog
from .s3 import S3, Answer

# AWS4-HMAC-SHA256 Credential=<key>/<day>/<region>/<service>/aws4_request, …
SCOPE = re.compile(r"Credential=([^/]+)/\d{8}/([^/]*)/([^/]+)/aws4_request")

# Where the name of a service in signatures is not its prefix in IAM policies.
IAM_PREFIX = {"monitoring": "cloudwatch"}

ERROR_CODE = re.compile(rb'<Code>([^<]+)</Code>|"__type": *"(?:[^"#]*#)?([^"]+)"')


class RequestHandler(MotoRequestHandler):
    """Keeps the headers as they came: S3 is given them unchanged."""

    def make_environ(self) -> dict[str, Any]:
        environ = super().make_environ()
        environ["emulator.headers"] = self.headers.items()
        return environ

    def log_request(self, *_: Any) -> None:
        """The call log says more."""


class Door:
    """The WSGI application."""

    def __init__(self, s3: S3, calls: CallLog) -> None:
        self._s3 = s3
        self._calls = calls
        self._moto = DomainDispatcherApplication(self._backend)
        # moto is not made for threads.
        self._one_at_a_time = threading.Lock()

    @staticmethod
    def _backend(service: Any) -> Any:
        app = create_backend_app(service)
        # The door answers what goes wrong in there.
        app.config["PROPAGATE_EXCEPTIONS"] = True
        return app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/moto-api/data.json":
            return self._moto(environ, start_response)
        scope = SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
        if scope is None:
            line, headers, body = error(environ, 403, "MissingAuthenticationToken", "Request is missing Authentication Token")
            start_response(line, headers)
            return [body]
        key, region, service = scope.groups()
        environ["emulator.service"] = service
        agent = environ.get("HTTP_USER_AGENT", "").partition(" ")[0]
        call = call_log.begin(agent, region, IAM_PREFIX.get(service, service))
        try:
            call.account = accounts.account_of(key)
            status, headers, body = self._ask(environ, key, service, call)
        except ServiceException as refused:
            status, headers, body = error(environ, 403, refused.code, refused.message)
        call.status = int(status.split()[0])
        if call.status >= 400 and (code := ERROR_CODE.search(body)):
            call.error = (code[1] or code[2]).decode()
        self._calls.write(call)
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _ask(self, environ: dict[str, Any], key: str, service: str, call: Call) -> Answer:
        if service == "s3":
            return self._s3.answer(environ, key, call)
        # CBOR, as SDKs send metrics (Smithy RPC v2), is not moto's: LocalStack takes it.
        if service == "monitoring" and (path := environ["PATH_INFO"]).startswith("/service/"):
            call.action = path.rsplit("/", 1)[1]
            return self._s3.forward(environ, key, call)
        return self._answer(environ, call)

    def _answer(self, environ: dict[str, Any], call: Call) -> Answer:
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = call.account
        began: list[Any] = []
        try:
            with self._one_at_a_time:
                body = b"".join(self._moto(environ, lambda status, headers, *_: began.extend((status, headers))))
            status, headers = began
        except NotImplementedError as unknown:
            return error(environ, 400, "EmulatorUnsupported", f"{call.service}:{call.action} is not emulated: {unknown}")
        except Exception as bug:  # Any: it must not become an answer that SDKs try again.
            traceback.print_exc()
            return error(environ, 400, "EmulatorBroken", f"{call.service}:{call.action}: {type(bug).__name__}: {str(bug)[:300]}")
        if not call.action:
            return error(environ, 400, "EmulatorUnsupported", f"no action of {call.service} is known at {environ['PATH_INFO']}")
        return status, headers, body


def error(environ: dict[str, Any], status: int, code: str, message: str) -> Answer:
    """An error in the words of the request's protocol: JSON, S3's XML, everybody else's XML."""
    if "json" in environ.get("CONTENT_TYPE", ""):
        body = json.dumps({"__type": code, "message": message})
        return f"{status} ERROR", [("Content-Type", "application/x-amz-json-1.0"), ("x-amzn-errortype", code)], body.encode()
    told = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    body = told if environ.get("emulator.service") == "s3" else f"<Response><Errors>{told}</Errors>{told}</Response>"
    return f"{status} ERROR", [("Content-Type", "text/xml")], body.encode()
