"""HTTP by hand on a socket, for what a client library would never send."""

import contextlib
import json
import socket


@contextlib.contextmanager
def connection(port: int, timeout_secs: float = 10.0):
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_secs) as sock:
        yield sock


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode()


def post(told: dict, *headers: str, path: str = "/v1/completions") -> bytes:
    body = json.dumps(told).encode()
    return head("POST", path, "content-type: application/json", f"content-length: {len(body)}", *headers) + body


def read_all(sock: socket.socket) -> bytes:
    """Everything until the server closes."""
    content = b""
    while piece := sock.recv(1 << 16):
        content += piece
    return content


def refusal_of(answer: bytes) -> tuple[int, dict]:
    """(status, error) of an answer in OpenAI's shape."""
    headers, _, body = answer.partition(b"\r\n\r\n")
    told = json.loads(body)
    assert set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}
    return int(headers.split()[1]), told["error"]
