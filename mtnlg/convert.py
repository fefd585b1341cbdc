"""From weights to a run, or to a folder for transformers and vLLM: layer by layer, so that no model is too large; stopped, it goes on."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from mtnlg import checkpoint, layered
from mtnlg import weights as sources
from mtnlg.core import config as configs
from mtnlg.core import files, lock, manifest, schema
from mtnlg.core.errors import CannotWrite, DataError
from mtnlg.data import hf_files
from mtnlg.interop import huggingface, safetensors
from mtnlg.interop.layout import Key, Layout, Tensor, name_of
from mtnlg.interop.tensors import DTYPES, FLOATS, Stored
from mtnlg.run.folder import RunFolder
from mtnlg.weights import Weights

JOURNAL = "journal.jsonl"
NAMED_BY = "OUT"


class Journal:
    """What of a conversion is on the disk: a line for each piece, behind one that says which conversion it is.

    Raises CannotWrite: damaged, or of another conversion.
    """

    def __init__(self, folder: pathlib.Path, this: dict):
        path, cure = folder / JOURNAL, f"another OUT, or remove {folder}"
        known = path.read_bytes() if path.exists() else b""
        whole = known[: known.rfind(b"\n") + 1]  # a line that was being written is no line
        try:
            lines = list(map(json.loads, whole.splitlines()))
        except ValueError as error:
            raise CannotWrite(f"damaged: {error}", str(path), cure) from None
        if lines and lines[0] != this:
            raise CannotWrite("another conversion was stopped here, of other weights or with other options", str(folder), cure)
        if whole != known:
            files.write_atomic(path, whole, NAMED_BY)
        self._file, self.pieces = files.AppendFile(path), lines[1:]
        if not lines:
            self.add(this)

    def add(self, piece: dict) -> None:
        """Puts a line for a piece that is on the disk. Raises TemporaryFailure, CannotWrite."""
        self._file.append(json.dumps(piece).encode() + b"\n")
        self._file.sync()


@contextlib.contextmanager
def _unfinished(weights: Weights, out: str | os.PathLike, this: dict) -> Iterator[tuple[pathlib.Path, Journal]]:
    """A folder to write into, which bears the name OUT when all is done, and its journal. Raises CannotWrite, TemporaryFailure."""
    out = pathlib.Path(out)
    if out.exists():
        raise CannotWrite("something is there already", str(out), "another OUT")
    if out.resolve().is_relative_to(pathlib.Path(weights.where).resolve()):
        raise CannotWrite("OUT lies in what is converted, which it would change", str(out), "an OUT outside of IN")
    work = files.draft(out)
    made, journal, held = work / "made", work / JOURNAL, work / "lock"
    if work.exists() and not (work.is_dir() and set(work.iterdir()) <= {made, journal, held}):
        raise CannotWrite("what is written here on the way is somebody else's", str(work), "another OUT, or move it away")
    files.make_folder(work, NAMED_BY)

    def refuse(owner: str):
        raise CannotWrite(f"this is being written by {owner}", str(work), "another OUT, or stop it first") from None

    with lock.held(held, refuse):
        with files.writing(work, named_by=NAMED_BY):
            if not made.exists():  # what a journal without it knows of is gone
                journal.unlink(missing_ok=True)
                made.mkdir()
        yield made, Journal(work, this)
        with files.writing(out, named_by=NAMED_BY):
            os.replace(made, out)
            files.sync_folder(out.parent)
            journal.unlink()
            held.unlink()
            work.rmdir()


def identity(path: str | os.PathLike, **options) -> dict:
    """What makes a conversion this one: the files that it reads, and its options."""
    source = pathlib.Path(path)
    found = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    listed = [[str(p.relative_to(source)), p.stat().st_size, p.stat().st_mtime_ns] for p in found]
    return {"source": hashlib.sha256(json.dumps(listed).encode()).hexdigest(), "options": options}


def to_run(weights: Weights, out: str | os.PathLike, this: dict, tokenizer: str | None = None, progress: bool = True) -> None:
    """Writes a run with one checkpoint, without an optimizer: what `from_pretrained`, `generate` and init.from take.

    this: of `identity`; tokenizer: a path; None: that of the weights. Raises CannotWrite, TemporaryFailure, MissingInput, DataError.
    """
    out = pathlib.Path(out)
    text = sources.tokenizer_of(weights, tokenizer)
    config, place = sources.config_of(weights), {"step": 0, "samples": 0, "tokens": 0}
    if isinstance(weights, sources.RunWeights):
        place = {name: weights.meta[name] for name in place}
    with _unfinished(weights, out, this) as (draft, journal):
        step = draft / "checkpoints" / f"{place['step']}.saving"
        if step.with_suffix("").exists():
            return
        files.make_folder(step.parent, NAMED_BY)
        writer = layered.LayerWriter(step, sources.shapes(weights.model), config.train.param_dtype)
        done = {Key(*piece["key"]) for piece in journal.pieces}
        keys = sources.keys(weights.model)
        with _bar(sum(_num_numbers(weights.model, key) for key in keys) * 4, progress) as bar:
            for key in keys:
                if key not in done:
                    writer.write(key.path, key.layer, sources.blocks(weights, key))
                    journal.add({"key": list(key)})
                bar.update(_num_numbers(weights.model, key) * 4)
        text.save(draft / "tokenizer")
        with RunFolder(draft) as folder:
            folder.record(config, {})
        meta = place | {"config": configs.to_nested(config), "tokenizer_sha256": text.sha256}
        meta |= {"architecture": weights.architecture, "dtype": FLOATS.get(weights.dtype, "float32")}
        checkpoint.Checkpoints(step.parent, keep_last=1).publish(step, step.with_suffix(""), meta)


def to_hf(
    weights: Weights,
    out: str | os.PathLike,
    this: dict,
    *,
    dtype: str | None = None,
    architecture: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    tokenizer: str | None = None,
    progress: bool = True,
) -> None:
    """Writes config.json, safetensors, the tokenizer and a hash list.

    dtype: float32, bfloat16 or float16, to which numbers are rounded; None: what they came in, which must hold them exactly.
    architecture: of transformers; None: the one that the weights came from, or the first that can say all of the model.
    Raises ConfigError (no architecture can), DataError (numbers that the dtype cannot hold), CannotWrite, TemporaryFailure.
    """
    out = pathlib.Path(out)
    text = sources.tokenizer_of(weights, tokenizer)
    hint = weights.architecture if weights.architecture and huggingface.fits(weights.model, weights.architecture) else None
    architecture = huggingface.choose(weights.model, architecture or hint)
    layout = Layout(weights.model, huggingface.ARCHITECTURES[architecture].tensors(weights.model))
    said = dtype or FLOATS.get(weights.dtype, "float32")
    tensors = {name_of(tensor, layer): (tensor, layer) for tensor, layer in layout.names()}
    stored = {name: Stored(layout.shape(tensor), DTYPES[said]) for name, (tensor, _) in tensors.items()}
    shards = safetensors.shards(stored, max_shard_bytes)
    named = list(zip(safetensors.shard_names(len(shards)), shards, strict=True))
    cast = Cast(DTYPES[said], rounding=dtype is not None)
    with _unfinished(weights, out, this | {"dtype": said, "architecture": architecture, "shards": len(shards)}) as (draft, journal):
        hashed = {piece["file"]: piece["row"] for piece in journal.pieces}
        with _bar(sum(_num_bytes(one) for one in stored.values()), progress) as bar:
            for file, names in named:
                if file in hashed and (draft / file).exists() and manifest.row(draft / file) == hashed[file]:
                    bar.update(sum(_num_bytes(stored[name]) for name in names))
                    continue
                pieces = ((name, *tensors[name]) for name in names)
                hashed[file] = _write_shard(draft / file, weights, layout, {name: stored[name] for name in names}, pieces, cast, bar)
                journal.add({"file": file, "row": hashed[file]})
        if len(shards) > 1:
            files.write_atomic(draft / safetensors.INDEX, safetensors.index(stored, named), NAMED_BY)
        for name, content in hf_files.files(text, weights.model.seq_len).items():
            files.write_atomic(draft / name, content, NAMED_BY)
        ids = {"bos_token_id": text.start_ids[0] if text.start_ids else text.eod_id, "eos_token_id": text.eod_id}
        files.write_atomic(draft / huggingface.CONFIG, huggingface.config_json(weights.model, architecture, said, ids), NAMED_BY)
        files.write_atomic(draft / manifest.NAME, manifest.content(draft, hashed), NAMED_BY)


def to_megatron(
    weights: Weights,
    out: str | os.PathLike,
    this: dict,
    *,
    num_ranks: int = 1,
    num_stages: int = 1,
    transformer_impl: str = "transformer_engine",
    dtype: str | None = None,
    tokenizer: str | None = None,
    progress: bool = True,
) -> None:
    """Writes what Megatron-LM takes as a start, for so many tensor ranks and pipeline stages, and the tokenizer beside it.

    transformer_impl: transformer_engine or local, as Megatron-LM shall run; dtype: as in `to_hf`. A rank's part is in memory at once.
    Raises ConfigError (what Megatron-LM cannot have), DataError, CannotWrite, TemporaryFailure.
    """
    from mtnlg.interop import megatron

    text = sources.tokenizer_of(weights, tokenizer)
    layout = megatron.layout_for(weights.model, num_ranks, num_stages)
    cast = Cast(DTYPES[dtype or FLOATS.get(weights.dtype, "float32")], rounding=dtype is not None)

    def read(tensor: Tensor, layer: int | None) -> np.ndarray:
        return layout.theirs(lambda key: _cast_blocks(weights, key, cast, tensor.name), tensor, layer, cast.dtype)

    with _unfinished(weights, out, this) as (draft, journal):
        hashed = {piece["file"]: piece["row"] for piece in journal.pieces}
        parts = megatron.parts(layout, read, num_ranks, num_stages, transformer_impl)
        with _bar(len(parts), progress, "file") as bar:
            for file, save in parts.items():
                if file not in hashed or not (draft / file).exists() or manifest.row(draft / file) != hashed[file]:
                    save(draft / file)
                    hashed[file] = manifest.row(draft / file)
                    journal.add({"file": file, "row": hashed[file]})
                bar.update()
        text.save(draft / "tokenizer")
        megatron.finish(draft)
        files.write_atomic(draft / manifest.NAME, manifest.content(draft, hashed), NAMED_BY)


class Cast:
    """Numbers in another dtype. Raises DataError where they overflow, and where digits are lost that nobody said may be."""

    def __init__(self, dtype: np.dtype, rounding: bool):
        self.dtype, self._rounding = dtype, rounding

    def __call__(self, rows: np.ndarray, name: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            narrow = rows.astype(self.dtype)
        same = np.array_equal(narrow.astype(rows.dtype), rows, equal_nan=True)
        if not same and not self._rounding:
            raise DataError(
                f"{self.dtype} does not hold the numbers of {name} exactly",
                "--to=hf",
                f"--dtype={self.dtype}, to round them, or --dtype=float32",
            )
        if not same and np.any(np.isinf(narrow.astype(np.float32)) & np.isfinite(rows)):
            raise DataError(f"numbers of {name} are too large for {self.dtype}", "--dtype", "--dtype=bfloat16 or float32")
        return narrow


def _write_shard(path: pathlib.Path, weights: Weights, layout: Layout, stored, pieces, cast: Cast, bar) -> dict:
    """One safetensors file, tensor by tensor; its row of the hash list."""
    digest, draft = hashlib.sha256(), files.draft(path)
    num_bytes = sum(map(_num_bytes, stored.values()))
    with files.writing(path, num_bytes, NAMED_BY), open(draft, "wb") as file:

        def put(content) -> None:
            file.write(content)
            digest.update(content)

        put(safetensors.header(stored))
        for name, tensor, layer in pieces:
            made = layout.theirs(lambda key, name=name: _cast_blocks(weights, key, cast, name), tensor, layer, cast.dtype)
            put(memoryview(made.reshape(-1).view(np.uint8)))
            bar.update(made.nbytes)
            del made  # before the next one is made
        files.sync(file)
    os.replace(draft, path)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _cast_blocks(weights: Weights, key: Key, cast: Cast, name: str) -> Iterator[tuple[int, np.ndarray]]:
    for start, rows in sources.blocks(weights, key):
        yield start, cast(rows, name)


def _num_numbers(model: schema.Model, key: Key) -> int:
    return int(np.prod(sources.shapes(model)[key.path][key.layer is not None :], dtype=np.int64))


def _num_bytes(one: Stored) -> int:
    return int(np.prod(one.shape, dtype=np.int64)) * one.dtype.itemsize


def _bar(count: int, progress: bool, unit: str = "B"):
    """On a terminal, and a silent one elsewhere."""
    from tqdm import tqdm

    return tqdm(total=count, unit=unit, unit_scale=unit == "B", leave=False, disable=None if progress else True)
