"""A writer that knows one text by heart, in tokens of words and of half characters: for tests of the page and for its pictures."""

import json
import math
import random
import threading
from collections.abc import Iterator

from mtnlg.serve.writer import Delta, Job, Load, Piece

TEXT = (
    "The sea rises twice a day because the Earth turns beneath two bulges of water. The Moon pulls up one of them; "
    "the other stays behind on the far side, where its pull is weakest.\n\n"
    "月亮离我们越近，潮水涨得越高。👩‍🚀 Sun and Moon together make the spring tides."
)
_LIKELY = (0.99, 0.97, 0.93, 0.99, 0.86, 0.71, 0.98, 0.42, 0.95, 0.08)
OTHERS = (" the", " a", ",", " and", "\n", " of")


class ScriptedWriter:
    """Writes `text` to whoever asks. secs_a_token: between two tokens. prompts: what it was asked, as text, newest last."""

    name, vocab_size = "tides-124m-chat", 1000

    def __init__(self, text: str = TEXT, others: tuple[str, ...] = OTHERS):
        """others: what the tokens might have been instead."""
        self.pieces = _pieces(text, others)
        self.num_tokens = len(self.pieces)
        self.reset()

    def reset(self) -> None:
        self.context, self.can_chat, self.secs_a_token = 1024, True, 0.0
        self.prompts, self.cancelled = [], threading.Event()

    def is_half(self, place: int) -> bool:
        """Whether this token's bytes are no text on their own."""
        try:
            self.pieces[place].bytes.decode()
        except UnicodeDecodeError:
            return True
        return False

    def prompt_ids(self, text):
        if text:  # else it is only asked what texts begin with
            self.prompts.append(text)
        return [0, *(ord(c) % self.vocab_size for c in text)]

    def chat_ids(self, messages):
        return self.prompt_ids("".join(f"{role}:{content}\n" for role, content in messages))

    def submit(self, job: Job, notify):
        ticket = _Ticket()
        threading.Thread(target=self._write, args=(notify, ticket)).start()
        return ticket

    def _write(self, notify, ticket) -> None:
        data, told = b"", 0
        for place, piece in enumerate(self.pieces, 1):
            if ticket.is_cancelled.wait(self.secs_a_token):
                self.cancelled.set()
                return
            data += piece.bytes
            whole = data.decode(errors="ignore")
            notify(Delta(0, whole[told:], (piece,), "stop" if place == self.num_tokens else None))
            told = len(whole)

    def load(self):
        return Load(0, 0, 1, 0, 0, 0)

    def close(self, timeout_secs):
        pass


class _Ticket:
    def __init__(self):
        self.is_cancelled = threading.Event()

    def cancel(self) -> None:
        self.is_cancelled.set()


def _pieces(text: str, others: tuple[str, ...]) -> tuple[Piece, ...]:
    """Words, and characters of several bytes, some of them cut in two, each as likely as the dice say."""
    rng = random.Random(3)
    return tuple(_piece(place, part, others, rng) for place, part in enumerate(_parts(text)))


def _parts(text: str) -> Iterator[bytes]:
    word = b""
    for character in text:
        data = character.encode()
        if word and (len(data) > 1 or character in " \n.,;<>=()"):
            yield word
            word = b""
        if len(data) > 1:
            cut = 2 if ord(character) % 3 == 0 else len(data)
            yield from filter(None, (data[:cut], data[cut:]))
        else:
            word += data
    if word:
        yield word


def _piece(place: int, part: bytes, others: tuple[str, ...], rng: random.Random) -> Piece:
    probability = rng.choice(_LIKELY)
    rest, shares = 1 - probability, {part: probability}
    for other in rng.sample([other for other in others if other.encode() != part], 4):
        share = rest * rng.uniform(0.3, 0.7)
        rest -= share
        shares[other.encode()] = share
    likeliest = sorted(((data, math.log(share)) for data, share in shares.items()), key=lambda one: -one[1])
    return Piece(place, part, math.log(probability), tuple(likeliest))


def events(*chunks) -> str:
    """A stream as the server sends it."""
    return "".join(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks)


def chunk(text: str, **more) -> dict:
    """Of a chat's answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}], **more}
