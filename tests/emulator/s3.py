"""S3 is not moto's, whose checksums, part lists and conditional writes differ from AWS's, but one that checks them: every request
goes on as it came, but for the access key, which becomes the account it stands for: by that LocalStack tells the owner of a bucket.

LocalStack lets every account into every bucket. S3 User Guide "Verifying bucket ownership": `x-amz-expected-bucket-owner` is held
against the owner; no other account comes in without a policy that lets it, and the modules write none that does.
"""

import http.client
from typing import Any
from urllib.parse import urlsplit

from moto.core.request import Request
from moto.core.routing import get_service_router
from werkzeug.exceptions import NotFound

from .call_log import Call
from .corrections import refuse

# Status line, headers, body.
Answer = tuple[str, list[tuple[str, str]], bytes]

# RFC 9110 7.6.1: of one connection alone. What `Expect` asked for has been said.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}


class S3:
    """The S3 behind the door."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.scheme == "http" and parts.hostname and parts.port, f"--s3 must be http://HOST:PORT, not {url}"
        self._address = (parts.hostname, parts.port)
        self._owners: dict[str, str] = {}

    def answer(self, environ: dict[str, Any], key: str, call: Call) -> Answer:
        call.action = operation(environ)
        bucket = environ["PATH_INFO"].split("/")[1]
        owner = self._owners.get(bucket)
        expected = environ.get("HTTP_X_AMZ_EXPECTED_BUCKET_OWNER", owner)
        if owner is not None and (owner != call.account or owner != expected):
            raise refuse("AccessDenied", f"'{bucket}' is not a bucket of {call.account}, or not of {expected}")
        answer = self.forward(environ, key, call)
        status = answer[0].split()[0]
        if (call.action, status) == ("CreateBucket", "200"):
            self._owners[bucket] = call.account
        if (call.action, status) == ("DeleteBucket", "204"):
            self._owners.pop(bucket, None)
        return answer

    def forward(self, environ: dict[str, Any], key: str, call: Call) -> Answer:
        """The answer of the S3 behind the door, or of another service that stands beside it there."""
        headers = {name: value for name, value in environ["emulator.headers"] if name.lower() not in HOP_BY_HOP}
        authorization = next(name for name in headers if name.lower() == "authorization")
        headers[authorization] = headers[authorization].replace(f"Credential={key}/", f"Credential={call.account}/", 1)
        # A body without a length comes in chunks, which end; one with a length does not end before the connection does.
        length = environ.get("CONTENT_LENGTH")
        body = environ["wsgi.input"].read(int(length)) if length else read_chunked(environ)
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            connection.request(environ["REQUEST_METHOD"], environ["RAW_URI"], body=body, headers=headers)
            reply = connection.getresponse()
            said = reply.read()
        finally:
            connection.close()
        kept = [(name, value) for name, value in reply.getheaders() if name.lower() not in HOP_BY_HOP]
        return f"{reply.status} {reply.reason}", kept, said


def read_chunked(environ: dict[str, Any]) -> bytes:
    return environ["wsgi.input"].read() if environ.get("wsgi.input_terminated") else b""


def operation(environ: dict[str, Any]) -> str:
    """The name of an operation of S3, from method, path and query."""
    try:
        return get_service_router("s3").match(Request(environ))[0].name
    except (NotFound, NotImplementedError):
        return ""
