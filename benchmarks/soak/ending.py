"""Figure 7: SIGTERM while streams are being written."""

import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections import Counter

from benchmarks.figures import Figure
from benchmarks.soak.served import ENDLESS, ROWS, Server
from tests.serve import raw

_MOST_SECS = 30
_SHORT_TOKENS = 300
_TAIL_BYTES = 2000


def sigterm(server: Server) -> Figure:
    """Half of the streams are short, half of them longer than the server has; as many wait in the queue, and one client says nothing."""
    streams = [_Stream(server, ENDLESS["max_tokens"] if place % 2 else _SHORT_TOKENS) for place in range(2 * ROWS)]
    with socket.create_connection(("127.0.0.1", server.port)):
        for stream in streams:
            if not stream.begun.wait(30):
                raise RuntimeError("a stream does not begin")
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        try:
            code = server.process.wait(2 * _MOST_SECS)
        except subprocess.TimeoutExpired:
            code = None
        secs = time.monotonic() - begin
    [stream.thread.join(10) for stream in streams]
    return judge_ends([stream.end for stream in streams], code, secs, orphans_of(server.process.pid), server.log.read_text())


def judge_ends(ends: list[str], code: int | None, secs: float, orphans: list[int], log: str) -> Figure:
    """ends: as _Stream's; orphans: processes that are left; log: of which the server's word that it ends is no fault."""
    counts = Counter(ends)
    told = ", ".join(f"{count} {end}" for end, count in sorted(counts.items()))
    faults = "\n".join(line for line in log.splitlines() if not line.startswith("mtnlg: ending: "))
    measured = (
        f"streams: {told}; exit code {code} after {secs:.1f} s; {len(orphans)} processes left; faults in its log: {faults[-200:] or 'none'}"
    )
    passed = set(counts) == {"done", "error"} and code == 0 and secs <= _MOST_SECS and not orphans and not faults
    return Figure("streams end with [DONE] or an error, exit in 30 s at most, no thread or process left", measured, passed)


def orphans_of(session: int) -> list[int]:
    """Processes of a session: the server was started in one of its own."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


class _Stream:
    """end: "done", "error" (an error event and no [DONE]) or "cut" (neither)."""

    def __init__(self, server: Server, num_tokens: int):
        self.begun, self.end = threading.Event(), "cut"
        asked = {**ENDLESS, "model": "soak", "prompt": "the cat", "max_tokens": num_tokens, "stream": True}
        headers = f"authorization: {server.http.headers['authorization']}", "connection: close"
        self._sent, self._port = raw.post(asked, *headers), server.port
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        tail = b""
        with raw.connection(self._port, 3 * _MOST_SECS) as sock:
            sock.sendall(self._sent)
            try:
                while piece := sock.recv(1 << 16):
                    self.begun.set()
                    tail = (tail + piece)[-_TAIL_BYTES:]
            except OSError:
                return
        has_ended, failed = b"data: [DONE]" in tail, b'data: {"error":' in tail
        if has_ended != failed:
            self.end = "done" if has_ended else "error"
