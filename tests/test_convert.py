"""Converting: stopped anywhere it goes on, nothing half appears, and what cannot be kept is said."""

import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, "tests/interop")
import cases

from mtnlg import checkpoint, convert, layered
from mtnlg import weights as sources
from mtnlg.cli import main
from mtnlg.core import config as configs
from mtnlg.core import files, manifest
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MtnlgError, TemporaryFailure
from mtnlg.data import tokenizer as tokenizers
from mtnlg.interop import huggingface
from mtnlg.interop import tensors as interop_tensors

CASE = "llama3"
TEXT = "the cat sat on the mat, and the dog lay under the table.\n" * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of Hugging Face with its tokenizer."""
    return made(CASE, tmp_path_factory.mktemp("convert") / "model")


def made(case, where):
    found = cases.golden()[case]
    cases.write_folder(where, found["config"], cases.random_tensors(found["shapes"]))
    tokenizers.train([TEXT], where / "tokenizer.model", kind="bpe", vocab_size=300, max_bytes=10_000)
    return where


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "run"
    convert.to_run(sources.open_weights(folder), out, convert.identity(folder), progress=False)
    return out


def stopping(monkeypatch, owner, name, after):
    """Makes a function raise at its call number `after`; returns the list of calls."""
    calls, true = [], getattr(owner, name)

    def counted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == after:
            raise KeyboardInterrupt
        return true(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


def tree_of(run):
    return checkpoint.stored_arrays(checkpoint.find(run), "params")


@pytest.mark.parametrize("after", (1, 2, 12, 19))
def test_a_conversion_to_a_run_goes_on(after, folder, run, tmp_path, monkeypatch):
    """Killed before, within and after the layers, and again: what is on the disk is not made twice, and the end is the same."""
    this, out = convert.identity(folder), tmp_path / "run"
    with monkeypatch.context() as patch:
        calls = stopping(patch, layered.LayerWriter, "write", after)
        with pytest.raises(KeyboardInterrupt):
            convert.to_run(sources.open_weights(folder), out, this, progress=False)
        assert not out.exists()
    with monkeypatch.context() as patch:
        calls = stopping(patch, layered.LayerWriter, "write", None)
        convert.to_run(sources.open_weights(folder), out, this, progress=False)
        assert len(calls) == len(sources.keys(sources.open_weights(run).model)) - after + 1
    assert not files.draft(out).exists()
    expected = tree_of(run)
    assert expected.keys() == tree_of(out).keys()
    assert all(np.array_equal(tree_of(out)[path], expected[path]) for path in expected)


def test_blocks_that_do_not_divide_a_layer(folder, run, tmp_path, monkeypatch):
    """Chunks of a few rows give the same numbers, out and in."""
    monkeypatch.setattr(interop_tensors, "CHUNK_BYTES", 7 * 32 * 4)
    convert.to_run(sources.open_weights(folder), tmp_path / "run", {}, progress=False)
    assert all(np.array_equal(tree_of(tmp_path / "run")[path], leaf) for path, leaf in tree_of(run).items())
    convert.to_hf(sources.open_weights(tmp_path / "run"), tmp_path / "back", {}, progress=False)
    before, after = (huggingface.open_folder(one).tensors for one in (folder, tmp_path / "back"))
    assert all(np.array_equal(after.read(name), before.read(name)) for name in before.stored())


def test_stopped_when_only_the_name_was_missing(folder, run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stopping(patch, convert.os, "replace", sys.maxsize)
        true = convert.os.replace
        patch.setattr(convert.os, "replace", lambda a, b: true(a, b) if b != out else (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert.to_run(sources.open_weights(folder), out, convert.identity(folder), progress=False)
    convert.to_run(sources.open_weights(folder), out, convert.identity(folder), progress=False)
    assert all(np.array_equal(tree_of(out)[path], leaf) for path, leaf in tree_of(run).items())


def test_stopped_when_only_the_cleaning_was_missing(folder, run, tmp_path, monkeypatch):
    """A journal whose folder has got its name, and has then been taken away, stands for nothing that is there."""
    out, this = tmp_path / "run", convert.identity(folder)
    with monkeypatch.context() as patch:
        patch.setattr(convert.files, "sync_folder", lambda path: (_ for _ in ()).throw(KeyboardInterrupt) if out.exists() else None)
        with pytest.raises(KeyboardInterrupt):
            convert.to_run(sources.open_weights(folder), out, this, progress=False)
    assert files.draft(out).exists()
    shutil.rmtree(out)
    convert.to_run(sources.open_weights(folder), out, this, progress=False)
    assert all(np.array_equal(tree_of(out)[path], leaf) for path, leaf in tree_of(run).items())
    assert not files.draft(out).exists()


def test_killed_and_torn(folder, run, tmp_path):
    """A process that is killed in the middle, twice, with half a line at the end of its journal."""
    out = tmp_path / "run"
    script = (
        "import os, signal, sys; from mtnlg import layered; from mtnlg.cli import main; true = layered.LayerWriter.write; calls = []\n"
        "def write(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    true(*arguments)\n"
        "layered.LayerWriter.write = write\n"
        "main.main(sys.argv[1:])"
    )
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", script, "convert", "--to=run", str(folder), str(out)], capture_output=True)
        assert killed.returncode == -9
        with (files.draft(out) / convert.JOURNAL).open("ab") as journal:
            journal.write(b'{"key": ["blo')
    assert main.main(["convert", "--to=run", str(folder), str(out)]) == 0
    assert all(np.array_equal(tree_of(out)[path], leaf) for path, leaf in tree_of(run).items())


def test_what_lies_in_the_way(folder, tmp_path):
    """Somebody's folder that is called as ours would be on the way; an OUT inside of IN; a journal that is none."""
    draft = files.draft(tmp_path / "out")
    draft.mkdir()
    (draft / "thesis.txt").write_text("precious")
    with pytest.raises(CannotWrite, match="somebody else's"):
        convert.to_run(sources.open_weights(folder), tmp_path / "out", {}, progress=False)
    assert (draft / "thesis.txt").read_text() == "precious"
    with pytest.raises(CannotWrite, match="OUT lies in what is converted"):
        convert.to_run(sources.open_weights(folder), folder / "out", {}, progress=False)
    (draft / "thesis.txt").unlink()
    (draft / "made").mkdir()
    (draft / convert.JOURNAL).write_bytes(b"not a line of ours\n")
    with pytest.raises(CannotWrite, match="damaged"):
        convert.to_run(sources.open_weights(folder), tmp_path / "out", {}, progress=False)


def test_a_full_disk(folder, tmp_path, monkeypatch):
    """TensorStore tells of it in words of its own."""

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(layered, "_store", full)
        with pytest.raises(TemporaryFailure, match="no room to write"):
            convert.to_run(sources.open_weights(folder), tmp_path / "out", {}, progress=False)
    convert.to_run(sources.open_weights(folder), tmp_path / "out", {}, progress=False)


@pytest.mark.parametrize("after", (1, 3))
def test_a_conversion_to_hugging_face_goes_on(after, run, tmp_path, monkeypatch):
    options = {"max_shard_bytes": 20_000, "progress": False}
    convert.to_hf(sources.open_weights(run), tmp_path / "whole", {}, **options)
    with monkeypatch.context() as patch:
        stopping(patch, convert, "_write_shard", after)
        with pytest.raises(KeyboardInterrupt):
            convert.to_hf(sources.open_weights(run), tmp_path / "out", {}, **options)
    damaged = next(iter((files.draft(tmp_path / "out") / "made").glob("*.safetensors")), None)
    if damaged:  # a file that was changed meanwhile is made again
        damaged.write_bytes(damaged.read_bytes()[:-1])
    convert.to_hf(sources.open_weights(run), tmp_path / "out", {}, **options)
    assert manifest.problems(tmp_path / "out") == []
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == whole


def test_a_draft_of_another_conversion_is_left_alone(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, layered.LayerWriter, "write", 2)
        with pytest.raises(KeyboardInterrupt):
            convert.to_run(sources.open_weights(folder), tmp_path / "run", convert.identity(folder), progress=False)
    with pytest.raises(CannotWrite, match="another conversion was stopped here"):
        convert.to_run(sources.open_weights(folder), tmp_path / "run", convert.identity(folder, other="options"), progress=False)


def test_what_is_there_is_left_alone(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CannotWrite, match="something is there already"):
        convert.to_run(sources.open_weights(folder), tmp_path / "out", {}, progress=False)


def test_numbers_that_a_dtype_cannot_hold(folder, tmp_path):
    """Rounding has to be asked for; what overflows is refused even then."""
    wide = sources.open_weights(folder)._replace(dtype=np.dtype("float16"))  # a claim that is not true
    with pytest.raises(
        DataError, match="float16 does not hold the numbers of model.embed_tokens.weight exactly.*--dtype=float16, to round"
    ):
        convert.to_hf(wide, tmp_path / "exact", {}, progress=False)
    convert.to_hf(wide, tmp_path / "rounded", {}, dtype="float16", progress=False)
    back = huggingface.open_folder(tmp_path / "rounded")
    name = "model.embed_tokens.weight"
    assert np.array_equal(back.tensors.read(name), wide.tensors.read(name).astype(np.float16))

    huge = cases.random_tensors(cases.golden()[CASE]["shapes"])
    huge[name][0, 0] = 1e6
    where = cases.write_folder(tmp_path / "huge", cases.golden()[CASE]["config"], huge)
    with pytest.raises(DataError, match="too large for float16"):
        convert.to_hf(sources.open_weights(where), tmp_path / "out", {}, dtype="float16", tokenizer=str(folder), progress=False)


def test_what_no_architecture_can_say(run):
    model = sources.open_weights(run).model
    assert huggingface.choose(model) == "LlamaForCausalLM"
    with pytest.raises(ConfigError, match=r"the nearest is LlamaForCausalLM, which differs in\n  - model.position=alibi, there rope\n"):
        huggingface.choose(dataclasses.replace(model, position="alibi", rope_scaling="none"))


def test_a_tokenizer_with_more_ids_than_the_model(folder, tmp_path):
    text = [pathlib.Path(__file__).read_text()]
    tokenizers.train(text, tmp_path / "wide" / "tokenizer.model", kind="bpe", vocab_size=400, max_bytes=10_000)
    with pytest.raises(DataError, match="the tokenizer has 400 ids, and the model 320"):
        convert.to_run(sources.open_weights(folder), tmp_path / "run", {}, str(tmp_path / "wide"), progress=False)


def test_a_converted_run_is_a_run(run):
    """Every command takes it: its manifest, its config, its weights for a fine-tuning, and what it has not got is said."""
    step_dir = checkpoint.find(run)
    checkpoint.require_good(step_dir)
    config = configs.from_flat(configs.flatten(checkpoint.meta(step_dir)["config"]))
    assert json.loads((run / "config.json").read_text()) == configs.to_nested(config)
    with pytest.raises(DataError, match="there is no optimizer in it"):
        checkpoint.stored_shapes(step_dir, "optimizer")


def test_reading_a_layer_is_reading_that_of_the_whole(run):
    reader, whole = layered.LayerReader(checkpoint.find(run)), tree_of(run)
    for key in sources.keys(sources.open_weights(run).model):
        expected = whole[key.path] if key.layer is None else whole[key.path][key.layer]
        assert np.array_equal(reader.read(key.path, key.layer), expected)
        assert np.array_equal(reader.read(key.path, key.layer, slice(1, 3)), expected[1:3])


@pytest.mark.slow
def test_megatron_and_back(tmp_path, monkeypatch):
    """Stopped between two ranks it goes on, and what comes back is what went out."""
    pytest.importorskip("torch")
    from mtnlg.interop import megatron_file

    folder = made("llama_tied_groups", tmp_path / "model")  # Megatron-LM has no other original length of Llama 3's scaling
    run, options = tmp_path / "run", {"num_ranks": 2, "num_stages": 2, "progress": False}
    convert.to_run(sources.open_weights(folder), run, {}, progress=False)
    this = convert.identity(run)
    with monkeypatch.context() as patch:
        stopping(patch, megatron_file, "save", 3)
        with pytest.raises(KeyboardInterrupt):
            convert.to_megatron(sources.open_weights(run), tmp_path / "out", this, **options)
    with monkeypatch.context() as patch:
        calls = stopping(patch, megatron_file, "save", None)
        convert.to_megatron(sources.open_weights(run), tmp_path / "out", this, **options)
        assert len(calls) == 2
    assert manifest.problems(tmp_path / "out") == []
    convert.to_run(sources.open_weights(tmp_path / "out", vocab_size=320), tmp_path / "back", {}, progress=False)
    assert all(np.array_equal(tree_of(tmp_path / "back")[path], leaf) for path, leaf in tree_of(run).items())


def test_the_command(folder, tmp_path, capsys):
    assert main.main(["convert", "--from=hf", "--to=run", str(folder), str(tmp_path / "run")]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main.main(["convert", "--to=hf", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert main.main(["ckpt", "verify", str(tmp_path / "run")]) == 0
    assert main.main(["ckpt", "verify", str(tmp_path / "hf")]) == 0
    assert main.main(["ckpt", "export", str(tmp_path / "run"), str(tmp_path / "exported")]) == 0
    assert main.main(["ckpt", "diff", str(tmp_path / "run"), str(tmp_path / "exported")]) == 0
    assert "no difference" in capsys.readouterr().out
    assert main.main(["train", "--config=configs/demo.py", f"--config.init.from={folder}", f"--workdir={tmp_path / 'w'}"]) == 2
    assert "convert --to=run" in capsys.readouterr().err
    assert main.main(["ckpt", "show", str(tmp_path / "run")]) == 0
    assert main.main(["convert", "--to=run", "--vocab_size=7", str(folder), str(tmp_path / "x")]) == 2
    assert main.main(["convert", "--to=run", "--dtype=float16", str(folder), str(tmp_path / "x")]) == 2
    assert main.main(["convert", "--to=run", str(tmp_path / "nothing"), str(tmp_path / "x")]) == 66
    assert "nothing is there, and nothing is fetched from a hub" in capsys.readouterr().err
    assert main.main(["convert", "--to=run", str(folder / "config.json"), str(tmp_path / "x")]) == 66
    assert f"Try: its folder, {folder}" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main.main(["convert", "--to=run", str(tmp_path / "empty"), str(tmp_path / "x")]) == 66
    assert "there is no model" in capsys.readouterr().err


def test_a_gguf_file_with_a_hash_list(tmp_path):
    """The list beside a file is asked before the file is read."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    (tmp_path / manifest.NAME).write_text(manifest.content(tmp_path))
    with pytest.raises(DataError) as sound:
        sources.open_weights(file)
    assert "has changed" not in str(sound.value)
    file.write_bytes(b"GGUF" + bytes(19) + b"1")
    with pytest.raises(DataError, match="model.gguf has changed"):
        sources.open_weights(file)


def test_files_beside_those_of_the_hash_list(run, tmp_path):
    """What nobody reads may lie there, as a README; what would be read may not."""
    out = tmp_path / "out"
    convert.to_hf(sources.open_weights(run), out, {}, progress=False)
    for name in ("README.md", ".gitattributes", "onnx/config.json"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{}")
    assert sources.open_weights(out).architecture == "LlamaForCausalLM"
    for name in ("model-00009-of-00009.safetensors", "chat_template.jinja", "merges.txt", "added_tokens.json", "other.model"):
        (out / name).write_text("{}")
        with pytest.raises(DataError, match=f"{name} does not belong to it"):
            sources.open_weights(out)
        (out / name).unlink()
    (out / "README.md").unlink()
    (out / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        sources.open_weights(out, "hf")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json", "meta.json", ""])
def test_what_may_not_be_read(name, folder, run, tmp_path, monkeypatch):
    """One line, of the file, whoever opens it; a folder too, and a name that no file can have."""
    source = shutil.copytree(run if name == "meta.json" else folder, tmp_path / "source")
    (source / "tokenizer_config.json").write_text("{}")
    path = source if name else "x" * 300
    true = pathlib.Path.open, io.open

    def denied(original):
        def opened(file, *arguments, **options):
            if pathlib.Path(str(file)).name == name:
                raise PermissionError(13, "Permission denied", str(file))
            return original(file, *arguments, **options)

        return opened

    monkeypatch.setattr(pathlib.Path, "open", denied(true[0]))
    monkeypatch.setattr(io, "open", denied(true[1]))
    with pytest.raises(MtnlgError, match=r"(Permission denied|File name too long|there is no model).*Try: ") as caught:
        sources.tokenizer_of(sources.open_weights(path))
    assert name in str(caught.value)
