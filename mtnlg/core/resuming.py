"""What may differ between a checkpoint and the run that goes on from it; everything else is refused, unless `resume.allow` names it."""

import difflib
from collections.abc import Iterable

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError

# Keys and groups that change no number beyond rounding, or are meant to change on the way. A key that is in no list here is compared.
FREE = ("name", "mesh", "pipeline", "log", "eval", "sample", "checkpoint", "resume", "guard", "init", "model.init_std", "data.directory")
FREE += ("data.weights", "data.skip_ranges", "train.num_steps", "train.microbatch_size", "train.recompute", "train.unroll_layers")
FREE += ("train.loss_chunk_tokens", "watchdog")
# What prepares the tokens: what came of it is compared by its hashes, where the checkpoint has them.
PREPARES = ("data.source", "data.tokenizer", "data.tokenizer_train_bytes", "data.heldout_fraction", "data.max_document_bytes")
# What shapes the arrays: those are compared themselves, one by one, and nobody can allow them to differ.
SHAPES = tuple(f"model.{name}" for name in ("num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_multiple"))
SHAPES += tuple(f"model.{name}" for name in ("bias_qkv", "bias_attention_output", "bias_mlp", "bias_norm", "qk_norm", "tie_embeddings"))
SHAPES += ("train.param_dtype",)
# What may be another one for a fine-tuning, of what the network computes.
TUNING = ("model.seq_len", "model.dropout_hidden", "model.dropout_attention", "model.init_std")
TOKENS = "data"  # in `resume.allow`: other tokens, and every key of the data


def require_same_run(meta: dict, here: dict, allow: Iterable[str], where: str) -> list[str]:
    """Compares a checkpoint's meta with what this run would store, the `config` of both flat; lines for people about what differs and may.

    Raises ConfigError (keys) or DataError (tokens alone) with both values of each.
    """
    prepares = PREPARES if "data" in meta else ()
    keys = _differences(meta, here, lambda key: not _is_in(key, (*FREE, *SHAPES, *prepares)))
    tokens = {} if TOKENS in allow or "data" not in meta else _tokens(meta["data"], here["data"])
    _refuse("this would not be the same run", {key: both for key, both in keys.items() if not _is_in(key, allow)}, tokens, where)
    return _notes(meta, here)


def require_same_network(meta: dict, here: dict, allow: Iterable[str], where: str) -> None:
    """Of weights to start from: they are to compute the same here. Raises ConfigError with both values of each key that differs."""
    keys = _differences(meta, here, lambda key: key.startswith("model.") and not _is_in(key, (*SHAPES, *TUNING, *allow)))
    _refuse("this would not be the same network", keys, {}, where)


def allow_problems(config: schema.Config) -> Iterable[str]:
    """A line for each name in `resume.allow` that is no key and no group, or that nobody can allow."""
    known = sorted({name for key in schema.leaves() for name in (key, key.partition(".")[0])})
    for name in config.resume.allow:
        if name in SHAPES:
            yield f"resume.allow={name} cannot be: it shapes the arrays of the checkpoint; take the checkpoint's own value"
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.3) or ["optimizer"]
            yield f"resume.allow={name} is no key and no group of keys: take resume.allow={near[0]}"


def _is_in(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _differences(meta: dict, here: dict, is_compared) -> dict[str, tuple]:
    """{key: (in the checkpoint, here)}; a key that the checkpoint does not know had its default."""
    default = {key: field.default for key, field in schema.leaves().items()}
    stored, mine = default | meta["config"], here["config"]
    return {key: (stored[key], mine[key]) for key in mine if is_compared(key) and _plain(stored[key]) != _plain(mine[key])}


def _plain(value):
    """A tuple is stored as a list."""
    return list(value) if isinstance(value, tuple) else value


def _tokens(stored: dict, here: dict) -> dict[str, tuple]:
    """{file: (12 digits of its hash in the checkpoint, here)} of every source that both have; and the tokenizer's end."""
    shown = {name: (digest, here["tokens"][name]) for name, digest in stored["tokens"].items() if name in here["tokens"]}
    shown |= {"id of the end of a document": (stored["eod_id"], here["eod_id"])}
    return {name: tuple(str(value)[:12] for value in both) for name, both in shown.items() if both[0] != both[1]}


def _refuse(what: str, keys: dict[str, tuple], tokens: dict[str, tuple], where: str) -> None:
    if not keys and not tokens:
        return
    lines = "".join(f"  - {name}: {stored} in the checkpoint, {mine} here\n" for name, (stored, mine) in (keys | tokens).items())
    names = ",".join([*keys, *([TOKENS] if tokens else [])])
    cure = f"the checkpoint's values, or, if it is meant, --config.resume.allow={names}"
    raise (ConfigError if keys else DataError)(f"{what}:\n{lines}", where, cure)


def _notes(meta: dict, here: dict) -> list[str]:
    stored, mine = meta.get("versions", here["versions"]), here["versions"]
    changed = [f"{name} {stored.get(name)} -> {mine.get(name)}" for name in stored | mine if stored.get(name) != mine.get(name)]
    notes = [f"the checkpoint is of other versions, so that its last bits may differ: {', '.join(changed)}"] if changed else []
    before, now = meta["config"]["train.num_steps"], here["config"]["train.num_steps"]
    if before != now and here["config"]["optimizer.decay_tokens"] is None and here["config"]["optimizer.schedule"] != "constant":
        notes.append(
            f"train.num_steps was {before} and is {now}: the learning rate goes on along the decay that ends there "
            "(optimizer.decay_tokens would pin its end)"
        )
    return notes
