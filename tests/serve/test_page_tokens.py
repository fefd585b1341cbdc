"""page/tokens.js: pieces of text out of tokens, whatever the stream's chunks and the tokens' bytes."""

import random

import pytest

from tests.serve import browser
from tests.serve.running import running
from tests.serve.scripted import ScriptedWriter

pytestmark = browser.NEEDED

ALPHABET = ["a", " ", "\n", "ß", "é", "月", "亮", "👩", "\u200d", "🚀", "\ufeff", "\ufffd"]
JOIN = """async cases => {
    const { Joiner } = await import("/tokens.js");
    return cases.map(deltas => {
        const joiner = new Joiner();
        const pieces = deltas.flatMap(([text, tokens]) => joiner.add(text, tokens));
        return [...pieces, ...joiner.add("", [], true)];
    });
}"""


@pytest.fixture(scope="module")
def join():
    with running(ScriptedWriter()) as server, browser.launched() as chromium:
        page = chromium.new_page()
        page.goto(server.url)
        yield lambda cases: page.evaluate(JOIN, cases)


def stream(rng: random.Random) -> tuple[str, list]:
    """A text, and how it might be told: text when it is whole, later than its tokens by up to four of them; the last may be left out."""
    text = "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(30)))
    data, deltas, told, at = text.encode(), [], 0, 0
    ready = []
    while at < len(data):
        tokens = []
        for _ in range(rng.randint(1, 3)):
            size = rng.randint(1, 5)
            tokens.append({"bytes": list(data[at : at + size])})
            at = min(len(data), at + size)
        ready.append(len(data[:at].decode(errors="ignore")))
        now = max(told, rng.choice(ready[-2:]))
        deltas.append([text[told:now], tokens])
        told = now
    if rng.random() < 0.5:
        deltas.append([text[told:], []])
        told = len(text)
    return text[:told], deltas


def test_pieces_are_the_told_text_and_their_tokens_spell_them(join):
    rng = random.Random(7)
    streams = [stream(rng) for _ in range(500)]
    joined = join([deltas for _, deltas in streams])
    for (text, _), pieces in zip(streams, joined, strict=True):
        assert "".join(piece["text"] for piece in pieces) == text
        for piece in pieces[:-1]:
            assert b"".join(bytes(token["bytes"]) for token in piece["tokens"]).decode() == piece["text"]


def test_a_stop_text_cuts_the_last_token(join):
    tokens = [{"bytes": list(b"so")}, {"bytes": list(b"on END")}]
    [[first, last]] = join([[["so", tokens[:1]], ["on ", tokens[1:]]]])
    assert (first["text"], last["text"], last["tokens"]) == ("so", "on ", tokens[1:])


def test_tokens_without_text_and_text_without_tokens(join):
    end = {"bytes": list(b"<|end|>")}
    assert join([[["hi", []], ["", [end]]]]) == [[{"text": "hi", "tokens": []}]]


def test_out_of_step_is_plain_text_and_finds_back(join):
    odd, good = {"bytes": list(b"odd")}, {"bytes": list(b"good")}
    [pieces] = join([[["other", [odd]], ["good", [good]]]])
    assert pieces == [{"text": "other", "tokens": []}, {"text": "good", "tokens": [good]}]


def test_bytes_that_are_no_text_are_shown_as_the_server_tells_them(join):
    """The server decodes with replacement, token by token, and so does the page."""
    bad = {"bytes": [0xFF]}
    assert join([[["\ufffd", [bad]], ["a", [{"bytes": [97]}]]]]) == [
        [{"text": "\ufffd", "tokens": [bad]}, {"text": "a", "tokens": [{"bytes": [97]}]}]
    ]
