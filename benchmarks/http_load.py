"""Callers over HTTP: connections that each send their next request once the last is answered.

One thread serves them all, with requests made beforehand, so that little of the machine is taken from the server.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator, Sequence


class _Connection:
    """Sends requests one after another; `latencies` are in seconds."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.latencies: list[float] = []
        self._received = b""
        self._began = 0.0

    def send(self, request: bytes) -> None:
        self._received, self._began = b"", time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Whether that was the end of a response. Raises RuntimeError for one that is no 200."""
        part = self.socket.recv(1 << 20)
        self._received += part
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not part or (separator and not head.startswith(b"HTTP/1.1 200")):
            raise RuntimeError(f"the server answered {self._received[:300]!r}")
        if not separator or len(body) < _content_length(head):
            return False
        self.latencies.append(time.perf_counter() - self._began)
        return True


def _content_length(head: bytes) -> int:
    return int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


def make_request(path: str, body: bytes) -> bytes:
    """A POST of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def send_all(port: int, requests: Sequence[bytes], callers: int) -> tuple[float, list[float]]:
    """Seconds of all requests, and of each."""
    left = iter(requests)
    connections = [_Connection(port) for _ in range(callers)]
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        begin = time.perf_counter()
        running = sum(_send_next(connection, left) for connection in connections)
        while running:
            for key, _ in selector.select():
                if key.data.receive() and not _send_next(key.data, left):
                    running -= 1
        seconds = time.perf_counter() - begin
    for connection in connections:
        connection.socket.close()
    return seconds, [latency for connection in connections for latency in connection.latencies]


def _send_next(connection: _Connection, requests: Iterator[bytes]) -> bool:
    request = next(requests, None)
    if request is not None:
        connection.send(request)
    return request is not None
