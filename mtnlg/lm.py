"""A trained model to talk to: text in, text out."""

import codecs
import dataclasses
import os
from collections.abc import Iterator, Sequence

import jax

from mtnlg import checkpoint
from mtnlg.core import config as configs
from mtnlg.core import schema, validate
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.data import tokenizer as tokenizers
from mtnlg.infer.engine import Engine, Request, refuse_stages
from mtnlg.model import transformer
from mtnlg.parallel import arrangement
from mtnlg.parallel import mesh as meshes


def from_pretrained(path: str | os.PathLike, mesh: schema.Mesh | None = None) -> "LanguageModel":
    """The model of a run's folder (its newest checkpoint) or of one `checkpoints/STEP`, on a mesh of its own; None: one device.

    The mesh of the training does not matter, and of this one only the degrees do. Raises MissingInput (no checkpoint or tokenizer
    there), DataError (damaged, of another version, or the tokenizer is not the one trained with) or ConfigError (a mesh or a float64
    that cannot be honoured here).
    """
    step_dir = checkpoint.find(path)
    checkpoint.require_good(step_dir)
    meta = checkpoint.meta(step_dir)
    try:
        config = configs.from_flat(configs.flatten(meta["config"]))
    except ConfigError as error:
        what = f"config of another version of mtnlg: {error.what}"
        raise DataError(what, str(step_dir), "the version of mtnlg that the run's environment.json names") from None
    folder = step_dir.parent.parent / "tokenizer"
    if not folder.exists():
        raise MissingInput("the run has no tokenizer", str(folder), "the folder that training made, whole")
    tokenizer = tokenizers.load(folder)
    if tokenizer.sha256 != meta["tokenizer_sha256"]:
        raise DataError("the tokenizer is not the one the model was trained with", str(folder), "the run's own tokenizer/")
    config = dataclasses.replace(config, mesh=mesh or schema.Mesh())
    configs.require_none(validate.mesh_problems(config), str(step_dir))
    refuse_stages(config)
    made = meshes.make(config.mesh)
    return LanguageModel(tokenizer, Engine(config, made, load_params(step_dir, config, made), tokenizer.vocab_size))


def load_params(step_dir, config: schema.Config, mesh):
    """The weights of a checkpoint, arranged and in their storage sharding on the mesh."""
    dtype = jax.numpy.dtype(config.train.param_dtype)
    shapes = jax.eval_shape(lambda: transformer.init(config.model, jax.random.key(0), dtype))
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    abstract = jax.tree.map(place, shapes, arrangement.canonical_shardings(config, mesh, shapes))
    return arrangement.arranged(config, mesh, checkpoint.load(step_dir, "params", abstract, config))


class LanguageModel:
    """A tokenizer and an engine. `generate` works on ids, `complete` and `stream` on text."""

    def __init__(self, tokenizer, engine: Engine):
        self.tokenizer, self.engine = tokenizer, engine

    def generate(self, ids: Sequence[int], **sampling) -> list[int]:
        """The new ids after `ids`, up to the end of the document; `sampling` as in `infer.engine.Request`."""
        return self.engine.generate([Request(ids, **sampling)], self.tokenizer.end_ids)[0]

    def complete(self, prompt: str, stop: Sequence[str] = (), **sampling) -> str:
        """The text that follows the prompt."""
        return "".join(self.stream(prompt, stop, **sampling))

    def stream(self, prompt: str, stop: Sequence[str] = (), **sampling) -> Iterator[str]:
        """The text that follows the prompt, piece by piece; ends before the first stop string or at the end of the document.

        A piece is given out when it is whole UTF-8 and can no longer become part of a stop string.
        """
        return self.stream_from(self.tokenizer.encode(prompt) or [self.tokenizer.eod_id], stop, **sampling)

    def stream_from(self, ids: Sequence[int], stop: Sequence[str] = (), **sampling) -> Iterator[str]:
        """The text that follows these ids, in the same way; ends at any of the tokenizer's `end_ids`."""
        request = Request(ids, **sampling)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        held = ""
        for count, tokens_B in enumerate(self.engine.stream([request]), start=1):
            token = int(tokens_B[0])
            ended = token in self.tokenizer.end_ids or count == request.max_new_tokens
            piece = b"" if token in self.tokenizer.end_ids else self.tokenizer.decode_bytes([token])
            held += decoder.decode(piece, final=ended)
            places = [place for place in (held.find(s) for s in stop if s) if place >= 0]
            safe = min(places) if places else len(held) if ended else len(held) - _longest_overlap(held, stop)
            if held[:safe]:
                yield held[:safe]
            held = held[safe:]
            if places or ended:
                return


def _longest_overlap(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of `text` that a stop string may begin with."""
    return max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
