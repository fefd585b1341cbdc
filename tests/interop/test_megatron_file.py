"""Megatron-LM's files as torch writes them: read without running anything, written, damaged; and Megatron itself as the judge."""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import signal
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from megatron_tree import CORE, GATED, GROUPED, LEGACY, OLD, Tree, args_of, parted, random_params
from test_megatron import assert_same, params_of, whole, write_tree

from mtnlg.core.errors import DataError, MissingInput, MtnlgError
from mtnlg.interop import megatron, megatron_file, megatron_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def needed():
    pytest.importorskip("torch")


def nested(part: dict) -> dict:
    """Legacy Megatron's dicts in dicts, tensors for arrays."""
    import torch

    found: dict = {}
    for name, value in part.items():
        for prefix in ("language_model.encoder.", "language_model.embedding.word_embeddings.", "language_model.", ""):
            if name.startswith(prefix):
                inside = found
                for word in prefix.split(".")[:-1]:
                    inside = inside.setdefault(word, {})
                inside[name.removeprefix(prefix)] = torch.from_numpy(np.ascontiguousarray(value))
                break
    return found


def save(root, tree: Tree, params, args=None, **options) -> None:
    """A whole checkpoint, with an optimizer and states of random numbers beside the model."""
    import torch

    for rank, parts in parted(params, tree).items():
        models = {f"model{number}" if tree.virtual > 1 else "model": nested(part) for number, part in enumerate(parts)}
        state = {
            "args": argparse.Namespace(**args_of(tree), params_dtype=torch.float32, **(args or {})),
            "iteration": 12,
            **models,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
            "rng_state": [{"random_rng_state": random.getstate(), "np_rng_state": np.random.RandomState(0).get_state()}],
        }
        if tree.version:
            state["checkpoint_version"] = tree.version
        path = root / "iter_0000012" / megatron_ranks.rank_folder(rank, tree.stages) / "model_optim_rng.pt"
        path.parent.mkdir(parents=True)
        torch.save(state, path, **options)
    (root / "latest_checkpointed_iteration.txt").write_text("12")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"])
@pytest.mark.parametrize(
    "tree", [Tree(OLD, LEGACY, 0, 2, 1), Tree(OLD, LEGACY, 3.0, 2, 2), Tree(GATED, CORE, 3.0, 1, 2, 2), Tree(GROUPED, CORE, 3.0, 4, 2)]
)
def test_files(tree, options, tmp_path):
    params = random_params(tree.model)
    save(tmp_path, tree, params, **options)
    for path in (tmp_path, tmp_path / "iter_0000012"):
        foreign = megatron.open_folder(path, tree.model.vocab_size)
        assert foreign.dtype == np.float32
        assert_same(params_of(foreign), params)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("model", [OLD, GATED, GROUPED])
@pytest.mark.parametrize(("ranks", "stages"), [(ranks, stages) for ranks in (1, 2, 4) for stages in (1, 2)])
def test_out_and_in_again(model, ranks, stages, dtype, tmp_path):
    import torch

    params = {path: rows.astype(dtype) for path, rows in random_params(model).items()}
    layout = megatron.layout_for(model, ranks, stages)
    read = whole(params, layout)
    write_tree(tmp_path, layout, lambda tensor, layer: read(tensor, layer).astype(dtype), ranks, stages)
    foreign = megatron.open_folder(tmp_path, model.vocab_size)
    assert foreign.dtype == dtype
    assert_same(params_of(foreign), params)
    state = torch.load(next(tmp_path.rglob("*.pt")), weights_only=False)
    assert type(state["args"]) is argparse.Namespace
    assert state["args"].params_dtype == next(iter(state["model"].values())).dtype
    assert state["checkpoint_version"] == 3.0
    assert all(value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes for value in state["model"].values())


def test_tensors_are_mapped_and_not_read(tmp_path):
    save(tmp_path, Tree(OLD, CORE, 3.0, 1, 1), random_params(OLD))
    path = next(tmp_path.rglob("*.pt"))
    file = megatron_file.File(path)
    assert str(path) in pathlib.Path("/proc/self/maps").read_text()
    value = file.state["model"]["decoder.layers.0.mlp.linear_fc1.weight"]
    assert np.shares_memory(file.array(value, "a"), file.array(value, "a"))


@pytest.mark.parametrize("sums", [True, False])
def test_numbers_that_have_changed(sums, tmp_path):
    """Every byte of every tensor is under a checksum, where torch wrote any."""
    import torch

    torch.serialization.set_crc32_options(sums)
    params = random_params(OLD)
    try:
        save(tmp_path, Tree(OLD, CORE, 3.0, 1, 1), params)
    finally:
        torch.serialization.set_crc32_options(True)
    path = next(tmp_path.rglob("*.pt"))
    assert_same(params_of(megatron.open_folder(tmp_path, OLD.vocab_size)), params)
    content = path.read_bytes()
    at = content.index(params["embedding/positions"].tobytes())
    for place in (0, 100, params["embedding/positions"].nbytes - 1):
        path.write_bytes(content[: at + place] + bytes([content[at + place] ^ 1]) + content[at + place + 1 :])
        if sums:
            with pytest.raises(DataError, match="position_embeddings.weight is damaged"):
                megatron.open_folder(tmp_path, OLD.vocab_size)
        else:
            megatron.open_folder(tmp_path, OLD.vocab_size)


class Canary:
    """Runs when it is unpickled, if anything does."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["args", "model", "optimizer", "key"])
def test_nothing_in_a_file_is_run(place, zipped, tmp_path):
    import torch

    folder = tmp_path / "mp_rank_00"
    folder.mkdir()
    for number, (function, named) in enumerate([(os.mkdir, "posix.mkdir"), (os.system, "posix.system"), (eval, "eval"), (exec, "exec")]):
        target = tmp_path / f"canary{number}"
        code = f"__import__('os').mkdir({str(target)!r})"
        argument = {os.mkdir: str(target), os.system: f"mkdir {target}"}.get(function, code)
        state = {"args": argparse.Namespace(), "model": {}, "optimizer": {}, "checkpoint_version": 3.0}
        canary = Canary(function, argument)
        if place == "args":
            state["args"].evil = canary
        elif place == "key":
            state[canary] = 1
        else:
            state[place]["x"] = canary
        torch.save(state, folder / "model_optim_rng.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(DataError, match=f"names {named}, .* nothing of it was run") as caught:
            megatron.open_folder(tmp_path)
        assert "\n" not in str(caught.value)
        assert not target.exists()
    with contextlib.suppress(TypeError):  # negative control: it would have run
        torch.load(folder / "model_optim_rng.pt", weights_only=False)
    assert target.exists()


def test_settings_of_classes_that_are_not_there(tmp_path, monkeypatch):
    """Enums and records of Megatron's are stood for by objects without a class; theirs are never looked for."""
    import torch

    def kind(module: str, name: str):
        made = type(name, (), {"__module__": module})
        path = module.split(".")
        for end in range(1, len(path) + 1):
            monkeypatch.setitem(sys.modules, ".".join(path[:end]), types.ModuleType(".".join(path[:end])))
        setattr(sys.modules[module], name, made)
        return made

    args = {
        "model_type": kind("megatron.core.enums", "ModelType")(),
        "attention_backend": kind("megatron.core.transformer.enums", "AttnBackend")(),
        "future": kind("megatron.training.future", "Setting")(),
        "loss_scaler": kind("fp16.loss_scaler", "DynamicLossScaler")(),
        "exit_signal": signal.SIGTERM,
        "more": types.SimpleNamespace(a=1),
        "order": collections.OrderedDict(a=1),
    }
    args["model_type"].value = 1
    tree = Tree(OLD, CORE, 3.0, 1, 1)
    save(tmp_path, tree, random_params(OLD), args)
    monkeypatch.undo()
    safe = [argparse.Namespace, types.SimpleNamespace]  # by somebody else's leave: here they are stood for all the same
    with torch.serialization.safe_globals(safe):
        loaded = megatron_file.File(next(tmp_path.rglob("*.pt"))).state["args"]
        assert set(safe) <= set(torch.serialization.get_safe_globals())
    assert type(loaded) is megatron_file.StandIn
    assert type(loaded.future) is megatron_file.StandIn
    assert type(loaded.more) is megatron_file.StandIn
    assert loaded.model_type.value == 1
    assert "megatron.training" not in sys.modules
    assert_same(params_of(megatron.open_folder(tmp_path, OLD.vocab_size)), random_params(OLD))


def test_files_of_something_else(tmp_path):
    import torch

    folder = tmp_path / "mp_rank_00"
    folder.mkdir()
    path = folder / "model_optim_rng.pt"

    def refused(content, error=DataError) -> str:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(error) as caught:
            megatron.open_folder(tmp_path)
        return str(caught.value)

    args = argparse.Namespace(**args_of(Tree(OLD, CORE, 3.0, 1, 1)))
    assert "not a checkpoint of torch" in refused(b"")
    assert "not a checkpoint of torch" in refused(b"PK\x03\x04 and nothing else")
    assert "not a checkpoint of torch" in refused(b"hello\n" * 100)
    assert "no named values" in refused([1, 2])
    assert "no args" in refused({"model": {}})
    assert "no args" in refused({"model": {}, "args": {"num_layers": 2}})
    assert "has no model" in refused({"args": args})
    assert "has no model" in refused({"args": args, "model": torch.ones(3)})
    assert "has no model" in refused({"args": args, "model0": {}, "model2": {}})
    assert "is no tensor" in refused({"args": args, "model": {"embedding": 3}})
    assert "cannot be read" in refused({"args": args, "model": {"embedding": torch.ones(3).to_sparse()}})
    assert "cannot be read" in refused({"args": args, "model": {"embedding": torch.ones(3, device="meta")}})
    assert "checkpoint version" in refused({"args": args, "model": {}, "checkpoint_version": torch.ones(3)})
    good = {"embedding.word_embeddings.weight": torch.ones(24, 16)}
    for name in vars(args):
        hostile = argparse.Namespace(**vars(args) | {name: torch.ones(3), "num_experts": torch.ones(3)})
        assert name in refused({"args": hostile, "model": good, "checkpoint_version": 3.0})
    inside: dict = {"args": args, "checkpoint_version": 3.0}
    inside["model"] = inside
    assert "is no tensor" in refused(inside)
    for _ in range(100):
        good = {"x": good}
    assert "has no matrix" in refused({"args": args, "model": good, "checkpoint_version": 3.0})
    path.unlink()
    path.mkdir()
    with pytest.raises(MissingInput):
        megatron.open_folder(tmp_path)


def test_damaged_files(tmp_path):
    """Cut off anywhere, or with bytes changed: an error of ours, or, where an old file has no checksums, other numbers."""
    params = random_params(OLD)
    for zipped in (True, False):
        root = tmp_path / str(zipped)
        save(root, Tree(OLD, LEGACY, 3.0, 1, 1), params, _use_new_zipfile_serialization=zipped)
        path = next(root.rglob("*.pt"))
        content, chance = path.read_bytes(), random.Random(0)
        refused = 0
        for trial in range(400):
            broken = bytearray(content)
            if trial % 2:
                del broken[chance.randrange(len(content)) :]
            else:
                at = chance.choice((len(content), 20_000, 2_000))
                for _ in range(chance.choice((1, 8))):
                    broken[chance.randrange(min(at, len(content))) * chance.choice((1, -1))] ^= 1 << chance.randrange(8)
            path.write_bytes(broken)
            try:
                found = params_of(megatron.open_folder(root, OLD.vocab_size))
            except MtnlgError:
                refused += 1
            else:
                if zipped:  # what changed lies in the optimizer, or in what torch does not read
                    assert_same(found, params)
        assert refused > 200
