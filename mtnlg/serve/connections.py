"""HTTP/1.1 on a socket: uvicorn's protocol, with time-outs for slow clients and OpenAI's errors where uvicorn has plain text."""

import contextlib
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mtnlg.serve import refusal
from mtnlg.serve.limits import Limits
from mtnlg.serve.refusal import Refusal

_DISCARDED_BODIES = 4  # of the longest allowed: so much of a body that was refused is still read, so that its client sees why
_LINGER_SECS = 1.0


def protocol(limits: Limits) -> type[H11Protocol]:
    """The class of each connection."""
    return type("LimitedConnection", (_Connection,), {"limits": limits})


class _Connection(H11Protocol):
    limits: Limits

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._phase = self._reading = self._stalled = self._lingering = None
        self._discarded_bytes = 0
        if len(self.connections) > self.limits.connections:
            self.app = _too_many
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._lingering or (self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY):
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _DISCARDED_BODIES * self.limits.body_bytes:
                self.transport.abort()
        if not self._lingering and not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._discarded_bytes = 0  # of this request; the next one has its own
        self._watch()

    def connection_lost(self, exc) -> None:
        super().connection_lost(exc)
        for timer in (self._reading, self._stalled, self._lingering):
            if timer is not None:
                timer.cancel()

    def shutdown(self) -> None:
        """When the server ends: a request that has not arrived yet is not waited for."""
        if self._phase == "body":
            self._refuse(refusal.ending())
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.write_secs, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _watch(self) -> None:
        """One time-out for a header, from its first byte or the connection's beginning, and one for a body."""
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            phase = "body"
        elif state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            phase = "header"
        else:
            phase = None
        if phase == "header" and self.cycle is not None:
            self._unset_keepalive_if_required()
        if phase != self._phase:
            self._phase = phase
            if self._reading is not None:
                self._reading.cancel()
            self._reading = self.loop.call_later(self.limits.read_secs, self._too_slow) if phase else None

    def _too_slow(self) -> None:
        if self.cycle is None and not self.conn.trailing_data[0]:
            self.transport.close()  # nothing has been asked
        else:
            self._refuse(Refusal(408, f"the {self._phase} did not arrive in time", "request_timeout"))

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn where h11 has found a fault in what was received."""
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            self._refuse(Refusal(431, f"the header has more than {self.limits.header_bytes} bytes", "header_too_large"))
        else:
            self._refuse(refusal.bad("this is not HTTP", code="invalid_http"))

    def _refuse(self, refused: Refusal) -> None:
        """Answers, if there has been no answer yet, and closes.

        What still arrives is read and dropped for a while: to close before it does would take the answer from the client.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refused.body()
            headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
            answer = h11.Response(status_code=refused.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()
            with contextlib.suppress(h11.LocalProtocolError):  # a body after HEAD
                self.transport.write(b"".join(map(self.conn.send, answer)))
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            self._lingering = self.loop.call_later(_LINGER_SECS, self.transport.abort)


async def _too_many(scope, receive, send) -> None:
    refused = Refusal(503, "the server has as many connections as it takes", "too_many_connections", retry_secs=1)
    await refusal.send(refused, send, ((b"connection", b"close"),))
