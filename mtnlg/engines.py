"""Engines for models that were opened: where and in what form the weights lie, what eight bits cost, and a draft beside the model."""

import dataclasses
import os
import pathlib
from typing import NamedTuple

import jax

from mtnlg.core import config as configs
from mtnlg.core import schema, validate
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.data.tokenizer import Tokenizer
from mtnlg.infer import int8_cost, stretch
from mtnlg.infer.engine import Engine, refuse_stages
from mtnlg.infer.speculation import Speculation
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrained import Model
from mtnlg.spmd import Laid


class Settings(NamedTuple):
    """As for `lm.from_pretrained`."""

    num_rows: int = 1
    context: int | None = None
    int8: tuple[str, ...] = ()
    int8_text: str | os.PathLike | None = None
    rope_scaling: str = "none"
    unroll_layers: bool | None = None

    @property
    def apart(self) -> bool:
        """Whether weights lie a layer each. On a CPU a layer taken out of a stack is copied, which costs more than what is computed with
        it; but every layer is compiled on its own, which pays for many texts only."""
        return jax.default_backend() == "cpu" and self.num_rows > 1 if self.unroll_layers is None else self.unroll_layers


class Draft(NamedTuple):
    """A small model, and how many tokens it drafts at a time."""

    model: Model
    num_drafted: int


class Made(NamedTuple):
    """notes: lines that whoever uses the engine should read. int8_cost: None where all is exact."""

    engine: Engine
    notes: list[str]
    int8_cost: int8_cost.Cost | None


def make(model: Model, mesh: schema.Mesh, dtype: str | None, settings: Settings, draft: Draft | None = None) -> Made:
    """An engine with the model's weights, and the draft's beside them.

    Raises ConfigError, and MissingInput or DataError for `int8_text`.
    """
    config = _config(model, mesh, dtype)
    config = dataclasses.replace(config, model=stretch.stretched(config.model, settings.context, settings.rope_scaling))
    made, num_ids = meshes.make(config.mesh), model.tokenizer.vocab_size
    context = config.model.seq_len if settings.context is None else settings.context
    beside = None if draft is None else _draft_engine(draft.model, model, config, context, settings)
    params, exact = model.load_params(config, made), None
    if settings.int8:
        length = min(context, int8_cost.TEXT_TOKENS if settings.int8_text is None else int8_cost.PART_TOKENS)
        exact = _exact_reading(Engine(config, made, params, num_ids, int8_cost.NUM_TEXTS, length), model.tokenizer, settings.int8_text)
    laid = Laid(settings.apart, int8="weights" in settings.int8)
    given = (config, made, params, num_ids, settings.num_rows, context, laid, "cache" in settings.int8, True)
    engine = Engine(*given) if beside is None else Speculation(beside, draft.num_drafted, *given)
    notes, cost = stretch.notes(config.model, context, settings.rope_scaling), None
    if exact is not None:
        cost = int8_cost.cost(exact, int8_cost.read(engine, exact.texts, exact.own_text))
        notes.append(int8_cost.told(cost))
    return Made(engine, notes, cost)


def _config(model: Model, mesh: schema.Mesh, dtype: str | None) -> schema.Config:
    """The model's, on a mesh without ZeRO. Raises ConfigError."""
    values = configs.to_flat(model.config) | ({} if dtype is None else {"train.compute_dtype": dtype})
    config = dataclasses.replace(configs.from_flat(values), mesh=dataclasses.replace(mesh, zero=0))
    configs.require_none(validate.mesh_problems(config), model.where)
    refuse_stages(config)
    if config.train.compute_dtype == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("computing in float64 needs 64-bit mode", "dtype=float64", "JAX_ENABLE_X64=1 before the command")
    return config


def _draft_engine(small: Model, model: Model, config: schema.Config, context: int, settings: Settings) -> Engine:
    """Raises ConfigError for a draft with another tokenizer, or with fewer learned positions than the context."""
    ours, theirs = ([t.decode_bytes([id]) for id in range(t.vocab_size)] for t in (model.tokenizer, small.tokenizer))
    if ours != theirs:
        what = f"the draft has another tokenizer than {model.where}"
        raise ConfigError(what, small.where, "a draft that was trained with the same one")
    small_config = _config(small, config.mesh, config.train.compute_dtype)
    if small_config.model.position == "learned" and small_config.model.seq_len < context:
        what = f"the draft has {small_config.model.seq_len} learned positions, and texts may have {context} tokens"
        raise ConfigError(what, small.where, f"context={small_config.model.seq_len}")
    made = meshes.make(small_config.mesh)
    params = small.load_params(small_config, made)
    return Engine(small_config, made, params, small.tokenizer.vocab_size, settings.num_rows, context, Laid(settings.apart), consume=True)


def _exact_reading(engine: Engine, tokenizer: Tokenizer, file: str | os.PathLike | None) -> int8_cost.Reading:
    """What is compared with the same model in eight bits; the engine lets its weights go. Raises MissingInput, DataError for the file."""
    start_ids = list(tokenizer.start_ids) or [tokenizer.eod_id]
    if file is None:
        reading = int8_cost.written(engine, start_ids)
    else:
        try:
            text = pathlib.Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise MissingInput(f"the text cannot be read: {why}", str(file), "a file of UTF-8 text") from error
        texts = int8_cost.parted([*start_ids, *tokenizer.encode(text)], engine.context)
        if not texts:
            raise DataError("the text has no tokens", str(file), "a text that is not empty")
        reading = int8_cost.read(engine, texts, own_text=False)
    engine.unload()
    return reading
