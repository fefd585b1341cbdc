"""The real writer on a tiny model: it tells what the model writes alone, whoever else asks; it counts, cancels, and survives a fault."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import jax
import numpy as np
import openai
import pytest

from mtnlg import lm
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, TemporaryFailure
from mtnlg.infer.request import Request
from mtnlg.serve.worker import make_writer
from mtnlg.serve.writer import Busy, Failed, Job
from tests.serve.running import until
from tests.test_lm import CONFIG, write_run

ROWS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose model has an opinion."""
    import dataclasses

    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, init_std=1.0))
    return write_run(tmp_path_factory.mktemp("served") / "run", config)[0]


@pytest.fixture(scope="module")
def alone(folder):
    return lm.from_pretrained(folder, num_rows=ROWS)


@pytest.fixture(scope="module")
def writer(folder):
    """One for all: to compile its programs takes longer than any test."""
    made = make_writer(str(folder), schema.Mesh(), ROWS, 20, print)
    yield made
    made.close(1.0)


def always() -> bool:
    return True


class Listener:
    """What is told of a job."""

    def __init__(self, num_choices: int = 1):
        self.texts, self.ends, self.pieces, self.failed = [""] * num_choices, [None] * num_choices, [[] for _ in range(num_choices)], None
        self.done = threading.Event()

    def __call__(self, delta):
        if isinstance(delta, Failed):
            self.failed = delta.error
        else:
            self.texts[delta.choice] += delta.text
            self.pieces[delta.choice] += delta.pieces
            self.ends[delta.choice] = delta.finish
        if self.failed or all(self.ends):
            self.done.set()


def test_many_at_once_each_get_their_own_text(writer, alone):
    """Jobs of two choices, from four threads; texts, ends and log-probabilities are those of the model alone."""
    prompts = [f"the {animal} sat on the mat, and the {animal}" for animal in ("cat", "dog", "cow", "hen", "pig", "ape", "bat", "elk")]
    listeners = [Listener(2) for _ in prompts]

    def ask(part):
        for place in range(part, len(prompts), 4):
            ids = writer.prompt_ids(prompts[place])
            settings = {"max_new_tokens": 8, "temperature": 1.0, "num_likeliest": 2}
            requests = tuple(Request(ids, seed=place + choice, **settings) for choice in range(2))
            writer.submit(Job(requests, ("e",)), listeners[place])

    threads = [threading.Thread(target=ask, args=(part,)) for part in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for place, listener in enumerate(listeners):
        assert listener.done.wait(60)
        for choice in range(2):
            settings = {"max_new_tokens": 8, "temperature": 1.0, "num_likeliest": 2, "seed": place + choice}
            answer = alone.answer(prompts[place], ["e"], **settings)
            assert (listener.texts[choice], listener.ends[choice]) == (answer.text, answer.finish)
            told = [piece.logprob for piece in listener.pieces[choice]]
            assert told == [token.logprob for token in answer.tokens if token.id not in alone.tokenizer.end_ids]
    assert len({listener.texts[0] for listener in listeners}) > 4
    assert until(lambda: writer.load().running == 0)
    load = writer.load()
    assert load.queued == 0 and load.rows == ROWS and load.written_tokens > 0 and load.prompt_tokens > 0


def test_a_full_queue_refuses_and_a_cancelled_job_makes_room(writer):
    ids = writer.prompt_ids("the cat")
    tickets = [writer.submit(Job((Request(ids, 40),)), Listener()) for _ in range(ROWS + 20)]
    with pytest.raises(Busy):
        writer.submit(Job((Request(ids, 1),)), Listener())
    for ticket in tickets:
        ticket.cancel()
        ticket.cancel()
    last = Listener()
    assert until(lambda: writer.load().running == 0, 10)
    writer.submit(Job((Request(ids, 2, temperature=0.0),)), last)
    assert last.done.wait(20) and last.failed is None


def test_a_request_that_cannot_be_honoured_is_refused_at_once(writer):
    with pytest.raises(ConfigError, match="exceed the context of 48"):
        writer.submit(Job((Request([1] * 40, 20),)), Listener())


def test_scores_and_vectors_are_the_models(writer, alone):
    """What is told of a text read is what was told of it when it was written."""
    prompt = writer.prompt_ids("the cat sat on")
    tokens = [event.token for event in alone.engine.run([Request(prompt, 20, temperature=1.0, num_likeliest=2)])]
    ids = prompt + [token.id for token in tokens]
    pieces = writer.score(ids, 2, always)
    assert pieces[0].logprob is None and [piece.id for piece in pieces] == ids
    np.testing.assert_allclose([piece.logprob for piece in pieces[len(prompt) :]], [token.logprob for token in tokens], atol=1e-4)
    likeliest = [[logprob for _, logprob in told.likeliest] for told in (*pieces[len(prompt) :], *tokens)]
    np.testing.assert_allclose(likeliest[: len(tokens)], likeliest[len(tokens) :], atol=1e-4)
    vectors, num_tokens = writer.embed(["the cat", "a dog"], always)
    np.testing.assert_array_equal(vectors, np.concatenate([alone.encode(["the cat"]), alone.encode(["a dog"])]))
    assert num_tokens == sum(len(alone.tokenizer.encode(text)) for text in ("the cat", "a dog"))


def test_a_step_that_fails_ends_what_was_under_way_and_nothing_else(writer, monkeypatch, caplog):
    engine = writer._model.engine
    ids = writer.prompt_ids("the cat")
    before = Listener()
    writer.submit(Job((Request(ids, 6, temperature=0.0),)), before)
    assert before.done.wait(20)
    step = engine.programs.step

    def failing(*arguments):
        monkeypatch.setattr(engine.programs, "step", step)
        raise jax.errors.JaxRuntimeError("INTERNAL: a device has a fault")

    monkeypatch.setattr(engine.programs, "step", failing)
    during, after = Listener(), Listener()
    writer.submit(Job((Request(ids, 6, temperature=0.0),)), during)
    assert during.done.wait(20) and "the model failed" in str(during.failed) and "device" not in str(during.failed)
    writer.submit(Job((Request(ids, 6, temperature=0.0),)), after)
    assert after.done.wait(20) and after.texts == before.texts
    assert "a device has a fault" in caplog.text


def test_a_fault_while_a_job_is_taken_ends_the_job_and_not_the_thread(writer, monkeypatch):
    submit = writer._model.texts.submit

    def failing(*arguments):
        monkeypatch.setattr(writer._model.texts, "submit", submit)
        raise MemoryError

    monkeypatch.setattr(writer._model.texts, "submit", failing)
    during, after = Listener(), Listener()
    job = Job((Request(writer.prompt_ids("the cat"), 2),))
    writer.submit(job, during)
    assert during.done.wait(20) and during.failed
    writer.submit(job, after)
    assert after.done.wait(20) and after.failed is None


def test_a_step_comes_between_two_calls(writer):
    """Texts under way do not wait until all scores and vectors that are asked for have been computed."""
    entered, begun, written = threading.Event(), threading.Event(), []

    def call():
        entered.set()
        begun.wait(20)
        written.append(writer.load().written_tokens)

    threads = [threading.Thread(target=writer._call, args=(call, always)) for _ in range(3)]
    threads[0].start()
    assert entered.wait(20)
    writer.submit(Job((Request(writer.prompt_ids("the cat"), 40, temperature=0.0),)), Listener())
    for thread in threads[1:]:
        thread.start()
    assert until(lambda: len(writer._calls) == 2, 20)
    begun.set()
    for thread in threads:
        thread.join(20)
    assert written[0] == written[1] < written[2]


def test_a_call_that_nobody_waits_for_is_not_begun(writer, monkeypatch):
    """Nor are the texts behind the one under way, of those whose vectors were asked for."""
    read, wanted = [], iter([True, False])
    encode = writer._model.encode
    monkeypatch.setattr(writer._model, "encode", lambda texts: read.append(texts) or encode(texts))
    with pytest.raises(CancelledError):
        writer.embed(["the cat", "a dog", "a hen"], lambda: next(wanted))
    assert read == [["the cat"]]
    assert writer.embed(["a dog"], always)[0].shape == (1, CONFIG.model.d_model)


def test_closing_lets_what_runs_end_and_cancels_the_rest(folder):
    writer = make_writer(str(folder), schema.Mesh(), 1, 20, print)
    ids, short, endless = writer.prompt_ids("the cat"), Listener(), Listener()
    writer.submit(Job((Request(ids, 3, temperature=0.0),)), short)
    writer.submit(Job((Request(ids, 10**9, temperature=0.0, slide=True),)), endless)
    writer.close(1.0)
    assert short.done.is_set() and not endless.done.is_set()
    assert not writer._thread.is_alive()
    with pytest.raises(TemporaryFailure, match="ending"):
        writer.submit(Job((Request(ids, 1),)), Listener())
    with pytest.raises(TemporaryFailure, match="ending"):
        writer.score(ids, 0, always)


def test_the_command_serves_the_model(folder, alone):
    """As a process: the openai client reads what the model writes alone, streamed and whole."""
    command = [sys.executable, "-m", "mtnlg", "serve", f"--model={folder}", "--port=0", f"--rows={ROWS}"]
    environment = os.environ | {"MTNLG_API_KEY": "a key of the tests, 0123".replace(" ", "-").replace(",", "")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            url = line.split("API ")[1].split(";")[0]
            client = openai.OpenAI(base_url=url, api_key=environment["MTNLG_API_KEY"], max_retries=0, timeout=30)
            asked = {"model": "run", "prompt": "the cat", "max_tokens": 12, "temperature": 1.0, "seed": 3}
            whole = client.completions.create(**asked).choices[0].text
            streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
            assert whole == streamed == alone.complete("the cat", max_new_tokens=12, temperature=1.0, top_p=1.0, seed=3)
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="another").models.list()
            assert json.loads(client.models.list().model_dump_json())["data"][0]["context"] == CONFIG.model.seq_len
            process.terminate()
            assert process.wait(20) == 0
            assert process.stderr.read() == "mtnlg: ending\n"
        finally:
            process.kill()
