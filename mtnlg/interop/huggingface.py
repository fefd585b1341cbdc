"""Folders as Hugging Face's transformers writes them: config.json, safetensors, text files."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mtnlg.core import manifest, schema, validate
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.interop import gpt2, llama, neox, opt, safetensors
from mtnlg.interop.foreign import Foreign
from mtnlg.interop.layout import Layout, Tensor
from mtnlg.interop.safetensors import SafetensorsFolder
from mtnlg.interop.settings import Settings
from mtnlg.interop.tensors import Stored, Tensors, problems, refuse, rows_at_once

CONFIG = "config.json"
WEIGHT_FILES = (".safetensors", safetensors.INDEX, *safetensors.PICKLES)


class Architecture(NamedTuple):
    """One of transformers' classes. read: config.json to a model; write: back; base: prefix that a file without the head lacks."""

    model_type: str
    read: Callable[[Settings], schema.Model]
    write: Callable[[schema.Model], dict[str, Any]]
    tensors: Callable[[schema.Model], tuple[Tensor, ...]]
    base: str
    buffers: tuple[str, ...] = ()  # ends of names that hold no weights


_NEOX_BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture("gpt2", gpt2.read, gpt2.write, gpt2.tensors, "transformer.", (".attn.bias", ".attn.masked_bias")),
    "OPTForCausalLM": Architecture("opt", opt.read, opt.write, opt.tensors, "model."),
    "GPTNeoXForCausalLM": Architecture("gpt_neox", neox.read, neox.write, neox.tensors, "gpt_neox.", _NEOX_BUFFERS),
    "LlamaForCausalLM": Architecture("llama", llama.read_llama, llama.write_llama, llama.tensors, "model.", (".rotary_emb.inv_freq",)),
    "MistralForCausalLM": Architecture("mistral", llama.read_mistral, llama.write_mistral, llama.tensors, "model."),
    "Qwen2ForCausalLM": Architecture("qwen2", llama.read_qwen2, llama.write_qwen2, llama.tensors, "model."),
    "Qwen3ForCausalLM": Architecture("qwen3", llama.read_qwen3, llama.write_qwen3, llama.tensors, "model."),
}


def open_folder(path: str | os.PathLike) -> Foreign:
    """The model of a folder, nothing of it read but what is in it.

    Raises MissingInput, DataError: with a line for each file that differs from the folder's hash list, if it has one; for each key of
    config.json that cannot be honoured; for each tensor that is missing, unknown, of another shape, or that would lose digits.
    """
    folder = pathlib.Path(path)
    if (folder / manifest.NAME).is_file():
        refuse(
            manifest.problems(folder, _belongs), "files differ from the folder's hash list", str(folder), "the whole folder, copied again"
        )
    return from_config(read_config(folder), SafetensorsFolder(folder), folder)


def _belongs(name: str) -> bool:
    """Whether a file of a folder may be read: numbers, settings, a tokenizer's."""
    path = pathlib.PurePath(name)
    return len(path.parts) == 1 and (path.suffix in (".safetensors", ".json", ".model", ".jinja") or name == "merges.txt")


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """config.json. Raises MissingInput, DataError."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except OSError as error:
        cure = "a run's folder, or a folder with config.json and model.safetensors"
        raise MissingInput(f"no model is there: {error.strerror}", str(folder / CONFIG), cure) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"damaged: {error}", str(folder / CONFIG), "the file, copied again") from None
    if not isinstance(config, dict):
        raise DataError("damaged: an object is wanted", str(folder / CONFIG), "the file, copied again")
    return config


def from_config(config: dict[str, Any], tensors: Tensors, text_folder: pathlib.Path | None) -> Foreign:
    """The model that a config.json describes, with its tensors. Raises DataError, as `open_folder`."""
    name, architecture = _architecture(config, tensors.where)
    settings = Settings(config)
    try:
        model = architecture.read(settings)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"config.json cannot be understood: {error}", tensors.where, "the folder, copied again") from None
    refuse(settings.problems, f"{name} cannot be honoured as its config.json has it", tensors.where, "a model without these settings")
    whole = dataclasses.replace(schema.Config(), model=model)
    refuse(validate.model_problems(whole), f"config.json of {name} contradicts itself", tensors.where, "the folder, copied again")
    num_tensors = len(tensors.stored())
    if model.num_layers > num_tensors:  # before a list with all of them is made
        what = f"config.json of {name} has {model.num_layers} layers, and {num_tensors} tensors are there"
        raise DataError(what, tensors.where, "the whole folder, copied again")
    layout = Layout(model, architecture.tensors(model))
    shapes = layout.shapes()
    tensors = Renamed(tensors, layout, shapes, architecture)
    stored = tensors.stored()
    refuse(problems(stored, shapes, tensors.ignored()), f"not the tensors of {name}", tensors.where, "the whole folder, copied again")
    dtypes = {stored[tensor].dtype for tensor in shapes}
    return Foreign(model, layout, tensors, functools.reduce(np.promote_types, dtypes), name, text_folder)


def _architecture(config: dict[str, Any], where: str) -> tuple[str, Architecture]:
    named, kind = config.get("architectures"), config.get("model_type")
    named = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    headless = [name for name in named if isinstance(name, str) and name.endswith("Model")]  # a file without its head, as GPT2Model's
    for name, architecture in ARCHITECTURES.items():
        if name in named or ((headless or not named) and kind == architecture.model_type):
            if kind not in (None, architecture.model_type):
                what = f"config.json says {name}, and that model_type is {kind!r}"
                raise DataError(what, where, f'"model_type": "{architecture.model_type}" in config.json, if it is one')
            return name, architecture
    what = f"the architecture {', '.join(map(str, named)) or kind} is not known"
    raise DataError(what, where, f"one of {', '.join(ARCHITECTURES)}")


class Renamed:
    """Tensors by the architecture's own names, of a file that may leave out the prefix that all but the head have."""

    def __init__(self, tensors: Tensors, layout: Layout, shapes: dict[str, tuple[int, ...]], architecture: Architecture):
        self._tensors, self.where, self._buffers = tensors, tensors.where, architecture.buffers
        there = tensors.stored()
        short = not any(name.startswith(architecture.base) for name in there)
        heads = {name for name in shapes if not name.startswith(architecture.base)} | {"lm_head.weight"}
        self._names = {(architecture.base + name if short and name not in heads else name): name for name in there}
        self._tied = self._head_again(layout, shapes)

    def _head_again(self, layout: Layout, shapes: dict[str, tuple[int, ...]]) -> str | None:
        """A head that a tied model has once more. Raises DataError when it is not the embedding."""
        head = next((name for name in ("lm_head.weight", "embed_out.weight") if name in self._names), None)
        if head is None or head in shapes:
            return None
        embedding = layout.tensors_of("embedding/tokens")[0].name
        if embedding in self._names and not self._same(embedding, head):
            what = f"config.json ties {head} to {embedding}, and the two differ"
            raise DataError(what, self.where, '"tie_word_embeddings": false in config.json, if they should')
        return head

    def stored(self) -> dict[str, Stored]:
        there = self._tensors.stored()
        return {name: there[theirs] for name, theirs in self._names.items()}

    def ignored(self) -> list[str]:
        """Names that hold no weights of their own."""
        return [name for name in self._names if name.endswith(self._buffers) or name == self._tied]

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._names[name])

    def _same(self, one: str, other: str) -> bool:
        """Read anew block by block, because either may be as large as the memory."""
        stored = self.stored()
        if stored[one] != stored[other]:
            return False
        rows = rows_at_once(stored[one].shape, stored[one].dtype.itemsize)
        blocks = (slice(start, start + rows) for start in range(0, stored[one].shape[0], rows))
        return all(self.read(one)[block].tobytes() == self.read(other)[block].tobytes() for block in blocks)


def fits(model: schema.Model, architecture: str) -> bool:
    """Whether transformers' class of this name can say all of a model."""
    return architecture in ARCHITECTURES and not _lost(model, ARCHITECTURES[architecture])


def choose(model: schema.Model, wanted: str | None = None) -> str:
    """The wanted architecture, else the first that can say all of a model. Raises ConfigError, with what it cannot say."""
    if wanted is not None and wanted not in ARCHITECTURES:
        raise ConfigError(f"the architecture {wanted} is not known", "--architecture", f"one of {', '.join(ARCHITECTURES)}")
    fitting = [name for name in ARCHITECTURES if fits(model, name)]
    if wanted in fitting or (wanted is None and fitting):
        return wanted or fitting[0]
    lost = {name: _lost(model, architecture) for name, architecture in ARCHITECTURES.items()}
    nearest = wanted or min(lost, key=lambda name: len(lost[name]))
    lines = "\n".join(f"  - {line}" for line in lost[nearest])
    cure = f"--architecture={fitting[0]}" if fitting else "--to=run, which says every model of ours"
    before = "" if wanted else "none of the known architectures can say all of this model; the nearest is "
    raise ConfigError(f"{before}{nearest}, which differs in\n{lines}\n", "--to=hf", cure)


def _lost(model: schema.Model, architecture: Architecture) -> list[str]:
    """A line for each key that the architecture's config.json cannot say."""
    settings = Settings({key: value for key, value in architecture.write(model).items() if value is not None or key == "sliding_window"})
    back, wanted = dataclasses.asdict(essential(architecture.read(settings))), dataclasses.asdict(essential(model))
    lines = [f"model.{key}={value}, there {back[key]}" for key, value in wanted.items() if back[key] != value]
    return lines + settings.problems


def essential(model: schema.Model) -> schema.Model:
    """A model with everything said that follows from the rest, and without what does not change what it computes."""
    _, num_groups, head_dim = model.heads
    said = {"num_kv_heads": num_groups, "head_dim": head_dim, "d_ff": model.ff_dim}
    for group in ("dropout_", "init_std", "vocab_multiple", *(["rope_"] if model.position != "rope" else [])):
        said |= {field.name: field.default for field in dataclasses.fields(model) if field.name.startswith(group)}
    scaled = ("rope_scaling_factor",) if model.rope_scaling == "linear" else ()
    if model.rope_scaling != "llama3":
        names = ("rope_scaling_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_seq_len")
        said |= {field.name: field.default for field in dataclasses.fields(model) if field.name in names and field.name not in scaled}
    if model.norm == "rmsnorm":
        said["bias_norm"] = False
    return dataclasses.replace(model, **said)


def config_json(model: schema.Model, architecture: str, dtype: str, ids: dict[str, Any]) -> str:
    """The content of config.json. ids: bos_token_id, eos_token_id and the like."""
    one = ARCHITECTURES[architecture]
    said = {
        "architectures": [architecture],
        "model_type": one.model_type,
        **one.write(model),
        **ids,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    return json.dumps(said, indent=2) + "\n"
