"""Batches of prompts: every text is the one that its line gets alone, stopped anywhere or not; nothing twice; bad lines by their number."""

import io
import json

import pytest

from mtnlg import batches, lm
from mtnlg.cli.main import main
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MissingInput
from mtnlg.infer.request import Request
from mtnlg.infer.truncate import Cut
from tests.data.test_chat import CHATML, with_template
from tests.test_lm import write_run

DEFAULTS = {name: value for name, value in Request([])._asdict().items() if name != "prompt"}
DEFAULTS |= {"max_new_tokens": 8, "stop": [], "truncate": "error", "keep": None}
PROMPTS = [
    {"prompt": "the cat"},
    {"prompt": "", "id": "empty"},
    {"prompt": "the dog", "max_new_tokens": 3, "seed": 99, "id": [1, None]},
    {"prompt": "the mat and", "temperature": 0, "stop_ids": [5], "logit_bias": {"7": 5, "8": -5.5}, "num_likeliest": 1},
    {"prompt": "the cat sat on the mat " * 9, "truncate": "middle", "keep": 1},
    {"prompt": "a 中文", "slide": True, "max_new_tokens": 60, "stop": "zzz"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("batches") / "run")[0]


@pytest.fixture(scope="module")
def model(folder):
    return lm.from_pretrained(folder, num_rows=2)


def written_lines(path, prompts):
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


@pytest.fixture
def prompts(tmp_path):
    return written_lines(tmp_path / "prompts.jsonl", PROMPTS)


def made(model, prompts, output, num_texts=1, **defaults):
    """The lines of the output, by (line, choice); what it looked like is told as well."""
    screen = io.StringIO()
    batches.write(model, batches.read(prompts, DEFAULTS | defaults), output, num_texts, screen)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    by_place = {(one["line"], one.get("choice", 0)): one for one in found}
    assert len(by_place) == len(found), "a text twice"
    return by_place, screen.getvalue()


def expected(model, line, choice=0):
    """What line `line`, from 1, gets alone."""
    given = dict(PROMPTS[line - 1])
    prompt, _ = given.pop("prompt"), given.pop("id", None)
    bias = {int(id): value for id, value in given.pop("logit_bias", {}).items()}
    seed = given.pop("seed", line - 1) + choice
    settings = {"max_new_tokens": 8, "logit_bias": bias, "seed": seed, "stop_ids": frozenset(given.pop("stop_ids", []))}
    return model.answer(prompt, **settings | given)


def test_every_line_gets_what_it_gets_alone(model, prompts, tmp_path):
    found, told = made(model, prompts, tmp_path / "out.jsonl", num_texts=2)
    assert set(found) == {(line, choice) for line in range(1, 7) for choice in range(2)}
    for (line, choice), one in found.items():
        answer = expected(model, line, choice)
        assert (one["text"], one["finish"], one["num_tokens"]) == (answer.text, answer.finish, len(answer.tokens))
        assert one.get("id") == PROMPTS[line - 1].get("id") and ("id" in one) == ("id" in PROMPTS[line - 1])
        assert one.get("cut") == (list(answer.cut) if answer.cut else None) and one.get("slides", 0) == answer.slides
        told_tokens = [(t["id"], t["logprob"], [(id, value) for id, _, value in t["likeliest"]]) for t in one.get("logprobs", [])]
        assert told_tokens == [(t.id, t.logprob, list(t.likeliest)) for t in answer.tokens if t.logprob is not None]
    assert found[5, 0]["cut"] and found[6, 0]["slides"] and found[4, 0]["logprobs"]
    assert "text 12/12" in told and "tok/s" in told


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", range(6))
def test_a_stopped_run_goes_on_with_what_is_missing(model, prompts, tmp_path, monkeypatch, after):
    """Stopped after so many texts, with half a line behind them; the second start asks for the others only."""
    output, whole = tmp_path / "out.jsonl", made(model, prompts, tmp_path / "whole.jsonl")[0]
    answer_many = lm.LanguageModel.answer_many

    def stopping(self, asks):
        for count, told in enumerate(answer_many(self, asks)):
            if count == after:
                raise Stopped
            yield told

    monkeypatch.setattr(lm.LanguageModel, "answer_many", stopping)
    with pytest.raises(Stopped):
        made(model, prompts, output)
    assert not model.engine.busy or model.engine.num_running == 0
    with open(output, "ab") as file:
        file.write(b'{"line": 2, "text": "\xe4')
    before, asked = output.read_bytes()[: output.read_bytes().rfind(b"\n") + 1], []
    monkeypatch.setattr(lm.LanguageModel, "answer_many", lambda self, asks: answer_many(self, (asked.append(ask) or ask for ask in asks)))
    assert made(model, prompts, output)[0] == whole
    assert output.read_bytes().startswith(before) and len(asked) == 6 - after
    asked.clear()
    assert made(model, prompts, output)[0] == whole and not asked


def refusal(kind, *arguments, **settings):
    with pytest.raises(kind) as caught:
        made(*arguments, **settings)
    return str(caught.value)


def test_another_input_setting_or_model_is_refused(model, prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    made(model, prompts, output)
    before = output.read_bytes()
    where = f"({output}). Try: what it was made with, or another --out"
    said = refusal(ConfigError, model, prompts, output, top_k=3)
    assert said == f"its texts were made with other settings: top_k was 0 and is 3 {where}"
    assert "rope_scaling_factor" not in json.loads((tmp_path / "out.jsonl.made.json").read_text())
    assert "n was 1 and is 2" in refusal(ConfigError, model, prompts, output, num_texts=2)
    elsewhere = lm.LanguageModel(model.tokenizer, model.engine, "elsewhere")
    assert "model was" in refusal(ConfigError, elsewhere, prompts, output)
    written_lines(prompts, PROMPTS[:-1])
    assert "other settings: prompts was" in refusal(ConfigError, model, prompts, output)
    assert output.read_bytes() == before


def test_a_file_of_somebody_else_is_left_alone(model, prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    assert "was not made by this command" in refusal(CannotWrite, model, prompts, output)
    assert output.read_text() == "mine"
    assert "cannot write" in refusal(CannotWrite, model, prompts, tmp_path)


@pytest.mark.parametrize("damage", [b"{}\n", b"what\n", b'{"line": null}\n', b"\n"])
def test_a_damaged_output_is_told(model, prompts, tmp_path, damage):
    output = tmp_path / "out.jsonl"
    made(model, prompts, output)
    output.write_bytes(output.read_bytes() + damage)
    assert refusal(DataError, model, prompts, output).startswith(f"the line is damaged ({output}:7)")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"what", "the line is not JSON"),
        (b"[]", "the line must be a JSON object"),
        (b'{"prompt": "\xff"}', "the line is not UTF-8"),
        (b'{"prompt": "\\ud800"}', "the line is not UTF-8, or has half of a surrogate pair"),
        (b'{"prompt": ' + b"[" * 100_000, "the line is JSON that is nested too deeply"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "the line is not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "the line has a name twice in one object"),
        (b'{"prompt": "a", "temperature": NaN}', "the line has NaN in it, which is not JSON"),
        (b"{}", "there is not one prompt"),
        (b'{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}', "there is not one prompt"),
        (b'{"prompt": 3}', "the field 'prompt' is not a text"),
        (b'{"prompt": "a", "tempreature": 3}', "there is no field 'tempreature'"),
        (b'{"prompt": "a", "top_k": 1.5}', "the field 'top_k' is not a whole number"),
        (b'{"prompt": "a", "top_k": true}', "the field 'top_k' is not a whole number"),
        (b'{"prompt": "a", "top_p": 2}', "top_p=2 is out of range"),
        (b'{"prompt": "a", "seed": -1}', "seed=-1 is out of range"),
        (b'{"prompt": "a", "stop": [3]}', "the field 'stop' is not a text or a list of texts"),
        (b'{"prompt": "a", "stop": ["b", ""]}', "the field 'stop' is not a text or a list of texts, none empty"),
        (b'{"prompt": "a", "stop": ""}', "the field 'stop' is not a text or a list of texts, none empty"),
        (b'{"prompt": "a", "keep": 3}', "keep=3 keeps nothing where nothing is cut"),
        (b'{"prompt": "a", "logit_bias": {"a": 1}}', "the field 'logit_bias' is not an object of numbers by token ids"),
        (b'{"messages": []}', "the field 'messages' is not a list of objects"),
        (b'{"messages": [{"role": "root", "content": "a"}]}', "the field 'messages' is not a list of objects"),
        (b'{"messages": [{"role": "user", "content": "a"}], "truncate": "middle"}', "a conversation is cut at its oldest exchanges only"),
        (b'{"prompt": "a", "max_new_tokens": 48}', "1 tokens of prompt and 48 new ones exceed the context of 48"),
        (b'{"prompt": "a", "logit_bias": {"300": 1}}', "the logit_bias has ids beyond the vocabulary of 300"),
        (b'{"prompt": "a", "truncate": "left", "max_new_tokens": 48}', "48 new tokens leave no room in a context of 48"),
    ],
)
def test_a_bad_line_stops_all_before_anything_is_written(model, tmp_path, line, said):
    path, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n' + line + b"\n")
    found = refusal(DataError, model, path, output)
    assert found.startswith(said) and f"({path}:3)" in found and "\n" not in found
    assert sorted(tmp_path.iterdir()) == [path]


def test_no_prompts(model, tmp_path):
    assert "cannot be read: No such file" in refusal(MissingInput, model, tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").write_text("\n\n")
    assert "there are no prompts" in refusal(DataError, model, tmp_path / "empty", tmp_path / "out")


def test_conversations(model, tmp_path, monkeypatch):
    """As the template writes them; with truncate=left without what is oldest, and that is told. No template: by the line's number."""
    turns = [{"role": "system", "content": "be"}] + [{"role": role, "content": "aa"} for role in ("user", "assistant") * 3 + ("user",)]
    given = [{"messages": [turns[-1]]}, {"messages": turns, "truncate": "left"}]
    path, small = written_lines(tmp_path / "prompts.jsonl", given), {"max_new_tokens": 2, "temperature": 0.0}
    assert "the model has no chat template" in refusal(DataError, model, path, tmp_path / "out.jsonl", **small)
    tokenizer = with_template(tmp_path, CHATML.replace("<|im_start|>", "").replace("<|im_end|>", ""))
    talking = lm.LanguageModel(tokenizer, model.engine)
    found, _ = made(talking, path, tmp_path / "out.jsonl", **small)
    short = "user\naa\nassistant\n"
    assert found[1, 0]["text"] == talking.complete(tokenizer.encode(short), **small) and "dropped_messages" not in found[1, 0]
    dropped = found[2, 0]["dropped_messages"]
    kept = "system\nbe\n" + "".join(f"{turn['role']}\naa\n" for turn in turns[1 + dropped :]) + "assistant\n"
    assert dropped in (2, 4, 6) and len(tokenizer.encode(kept)) <= 46
    assert found[2, 0]["text"] == talking.complete(tokenizer.encode(kept), **small)
    written_lines(path, [given[0], {"messages": turns}])
    assert f"exceed the context of 48 ({path}:2)" in refusal(DataError, talking, path, tmp_path / "other.jsonl", **small)


def test_the_command(folder, prompts, tmp_path, capsys):
    """It is finished by the second start, which has nothing to do."""
    command = ["generate", f"--model={folder}", f"--in={prompts}", f"--out={tmp_path / 'out.jsonl'}", "--max_new_tokens=8", "--rows=2"]
    for _ in range(2):
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert out == "" and err.endswith(f"mtnlg: 6 texts are in {tmp_path / 'out.jsonl'}\n")
    found = {json.loads(line)["line"]: json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()}
    alone = lm.from_pretrained(folder, num_rows=2)
    assert found == {line: expected(alone, line).text for line in range(1, 7)}


# answer_many, on which they stand


def test_answers_as_they_end_each_as_alone(model):
    """More of them than rows, taken when their turn is near; a short one that comes later ends before a long one."""
    taken = []
    asks = [lm.Ask("the cat", sampling={"max_new_tokens": length, "seed": length}) for length in (20, 2, 3, 2, 5, 2, 3)]
    numbers = []
    for number, answer in model.answer_many(taken.append(ask) or ask for ask in asks):
        if not numbers:
            assert len(taken) == 2 * model.engine.num_rows
        numbers.append(number)
        assert answer == model.answer("the cat", **asks[number].sampling)
    assert sorted(numbers) == list(range(7)) and numbers[0] != 0


def test_closed_early_nothing_is_left(model):
    answers = model.answer_many([lm.Ask("the cat", sampling={"max_new_tokens": 9})] * 5)
    next(answers)
    answers.close()
    assert model.engine.num_running == model.engine.num_queued == 0
    with pytest.raises(ConfigError):
        list(model.answer_many([lm.Ask("a"), lm.Ask("a", sampling={"max_new_tokens": 99})]))
    assert model.engine.num_running == model.engine.num_queued == 0


def test_what_texts_begin_with_stays(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "start_ids", (7, 8))
    ids = model.prompt_ids("the cat sat on the mat " * 9)
    request, cut = model.request_of(lm.Ask("the cat sat on the mat " * 9, truncate="left", sampling={"max_new_tokens": 8}))
    assert request.prompt == [7, 8, *ids[-38:]] and cut == Cut(2, len(ids) - 38)
    request, cut = model.request_of(lm.Ask(ids, truncate="left", sampling={"max_new_tokens": 8}))
    assert request.prompt == ids[-40:] and cut == Cut(0, len(ids) - 40)
    slid, _ = model.request_of(lm.Ask(ids, truncate="left", sampling={"max_new_tokens": 8, "slide": True}))
    assert slid.prompt == ids[-47:]
