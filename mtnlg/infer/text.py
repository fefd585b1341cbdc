"""One request on its way through an engine, and what is told of it."""

from typing import NamedTuple

from mtnlg.infer import chunks
from mtnlg.infer.programs import Told
from mtnlg.infer.request import Request, Token


class Event(NamedTuple):
    """A token of request `number`. finish: "stop" (this is one of its stop ids) or "length" with the last one, else None.

    slides: how often the beginning of the text has been dropped.
    """

    number: int
    token: Token
    finish: str | None
    slides: int


class Text:
    """One request in its row."""

    def __init__(self, number: int, request: Request):
        self.number, self.request = number, request
        self.ids = [int(id) for id in request.prompt]  # what the row reads: the prompt, and what was written
        self.row = -1
        self.num_read = 0  # of the ids, as a prompt
        self.position = 0  # of the last token written, which is read for the next
        self.num_sent = 0  # tokens that are being written or have been
        self.num_written = 0
        self.dropped, self.slides = 0, 0
        self.reads, self.ended = True, False

    @property
    def width(self) -> int:
        """Of the next chunk of its prompt."""
        return chunks.width(len(self.ids) - self.num_read)

    @property
    def writes(self) -> bool:
        """Whether the end of a round gives it a token."""
        return not (self.reads or self.ended) and self.num_sent < self.request.max_new_tokens

    def slide(self, kept: int) -> None:
        """Goes on from its last tokens, which are to be read anew."""
        self.dropped, self.slides = self.dropped + len(self.ids) - kept, self.slides + 1
        self.ids, self.num_read, self.reads = self.ids[-kept:], 0, True


def token_of(host: Told, place: int, num_likeliest: int | None) -> Token:
    """What is told of a row."""
    id = int(host.tokens_B[place])
    if num_likeliest is None:
        return Token(id)
    pairs = zip(host.likeliest_BK[place][:num_likeliest], host.likeliest_logprobs_BK[place][:num_likeliest], strict=True)
    return Token(id, float(host.logprobs_B[place]), tuple((int(other), float(logprob)) for other, logprob in pairs))
