"""How do calls off the hot path share the gateway's connections?   As httpx2 clients over http1."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx2

from gateway.http1 import Client, Limits, Origin, Response, TransportError

FOREVER = 86_400.0  # seconds, where httpx2 says None

ERRORS: dict[str, type[httpx2.TransportError]] = {
    "connect": httpx2.ConnectError,
    "first_byte": httpx2.ReadTimeout,
    "idle": httpx2.ReadTimeout,
    "total": httpx2.ReadTimeout,
    "closed": httpx2.RemoteProtocolError,
}


_FRAMING = frozenset({b"content-length", b"transfer-encoding"})  # of the whole body, whatever the caller said


class Transport(httpx2.AsyncBaseTransport):
    """`httpx2.AsyncClient(transport=Transport(client))` speaks through `client`, whose holder closes it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        origin = Origin.parse(f"{request.url.scheme}://{request.url.netloc.decode()}")
        lines = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
        lines += [b"%s: %s" % pair for pair in request.headers.raw if pair[0].lower() not in _FRAMING]
        lines += [b"content-length: %d" % len(body), b"\r\n"]
        times = {key: FOREVER if seconds is None else seconds for key, seconds in request.extensions["timeout"].items()}
        limits = Limits(times["connect"], times["read"], times["read"], FOREVER)
        with _named(request):
            response = await self._client.request(origin, b"\r\n".join(lines), body, limits)
        return httpx2.Response(response.status, headers=response.headers, stream=_Stream(request, response))


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, request: httpx2.Request, response: Response) -> None:
        self._request, self._response = request, response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _named(self._request):
            while data := await self._response.chunk():
                yield data

    async def aclose(self) -> None:
        self._response.close()


@contextlib.contextmanager
def _named(request: httpx2.Request) -> Iterator[None]:
    """Our errors by httpx2's names."""
    try:
        yield
    except TransportError as error:
        raise ERRORS[error.kind](str(error), request=request) from error
