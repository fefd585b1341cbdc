"""The small files beside a tokenizer in a Hugging Face folder: what its special tokens are for, and the model's chat template."""

import json
import pathlib
from typing import Any, NamedTuple

from mtnlg.core.errors import DataError

SETTINGS, SPECIALS, GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
TEMPLATE = "chat_template.jinja"
NAMES = (SETTINGS, SPECIALS, GENERATION, TEMPLATE)
MAX_BYTES = 10_000_000
MAX_VOCAB_SIZE = 1 << 22
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_CURE = "the file, copied again, or without it"


class Companions(NamedTuple):
    """tokens: by their role, as ROLES; end_ids: where the model's text ends; adds_bos: before every text; template: Jinja's, or None.

    files: what all this was read from, by name.
    """

    tokens: dict[str, str]
    end_ids: tuple[int, ...]
    adds_bos: bool
    template: str | None
    files: dict[str, bytes]


NONE = Companions({}, (), False, None, {})


def read(folder: pathlib.Path) -> Companions:
    """What the folder's companions say; those that are not there say nothing. Raises DataError for a damaged one."""
    found = {}
    for path in (folder / name for name in NAMES):
        if path.is_file():
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"more than {MAX_BYTES} bytes", str(path), "the right file")
            found[path.name] = path.read_bytes()
    return parse(found, str(folder))


def parse(files: dict[str, bytes], where: str) -> Companions:
    """The same, of files that are at hand. Raises DataError."""
    settings, specials, generation = (_object(files.get(name, b"{}"), f"{name} in {where}") for name in (SETTINGS, SPECIALS, GENERATION))
    tokens = {role: text for role in ROLES if (text := _text(settings.get(role)) or _text(specials.get(role)))}
    ends = generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(id) is int and 0 <= id < MAX_VOCAB_SIZE for id in ends):
        raise DataError(f"eos_token_id={str(ends)[:80]}", f"{GENERATION} in {where}", _CURE)
    try:
        template = files[TEMPLATE].decode() if TEMPLATE in files else _chosen(settings.get("chat_template"))
    except UnicodeDecodeError as error:
        raise DataError(f"damaged: {error}", f"{TEMPLATE} in {where}", _CURE) from None
    return Companions(tokens, tuple(ends), settings.get("add_bos_token") is True, template, files)


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"damaged: {error}", where, _CURE) from None
    if not isinstance(found, dict):
        raise DataError("damaged: an object is wanted", where, _CURE)
    return found


def _text(token: Any) -> str | None:
    """A token is its text, or an object with it."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _chosen(templates: Any) -> str | None:
    """The template; of several with names, the one called default."""
    if isinstance(templates, list):
        named = (entry.get("template") for entry in templates if isinstance(entry, dict) and entry.get("name") == "default")
        templates = next(named, None)
    return templates if isinstance(templates, str) else None
