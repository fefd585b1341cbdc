"""The small files beside a tokenizer in a Hugging Face folder: what its special tokens are for, and the model's chat template."""

import json
import pathlib
from typing import Any, NamedTuple

from mtnlg.core import files
from mtnlg.core.errors import DataError

SETTINGS, SPECIALS, GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
TEMPLATE = "chat_template.jinja"
NAMES = (SETTINGS, SPECIALS, GENERATION, TEMPLATE)
MAX_BYTES = 10_000_000
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_CURE = "the file, copied again, or without it"


class Companions(NamedTuple):
    """tokens: by their role, as ROLES; end_ids: where the model's text ends; adds_bos: before every text; template: Jinja's, or None."""

    tokens: dict[str, str]
    end_ids: tuple[int, ...]
    adds_bos: bool
    template: str | None


NONE = Companions({}, (), False, None)


def read(folder: pathlib.Path) -> Companions:
    """What the folder's companions say; those that are not there say nothing. Raises DataError for a damaged one."""
    settings, specials, generation = (_object(folder / name) for name in (SETTINGS, SPECIALS, GENERATION))
    tokens = {role: text for role in ROLES if (text := _text(settings.get(role)) or _text(specials.get(role)))}
    ends = generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(id) is int and id >= 0 for id in ends):
        raise DataError(f"eos_token_id={generation['eos_token_id']!r}", str(folder / GENERATION), _CURE)
    file = _content(folder / TEMPLATE)
    template = _chosen(settings.get("chat_template")) if file is None else _decoded(file, folder / TEMPLATE)
    return Companions(tokens, tuple(ends), settings.get("add_bos_token") is True, template)


def copy(source, target) -> None:
    """Copies the companions of one folder into another, byte for byte. Raises DataError (damaged), CannotWrite, TemporaryFailure."""
    source, target = pathlib.Path(source), pathlib.Path(target)
    read(source)
    files.make_folder(target)
    for name in NAMES:
        if (content := _content(source / name)) is not None:
            files.write_atomic(target / name, content)


def _content(path: pathlib.Path) -> bytes | None:
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES} bytes", str(path), "the right file")
    return path.read_bytes()


def _object(path: pathlib.Path) -> dict[str, Any]:
    content = _content(path)
    try:
        found = {} if content is None else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"damaged: {error}", str(path), _CURE) from None
    if not isinstance(found, dict):
        raise DataError("damaged: an object is wanted", str(path), _CURE)
    return found


def _decoded(content: bytes, path: pathlib.Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"damaged: {error}", str(path), _CURE) from None


def _text(token: Any) -> str | None:
    """A token is its text, or an object with it."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _chosen(templates: Any) -> str | None:
    """The template; of several with names, the one called default."""
    if isinstance(templates, list):
        named = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
        templates = named.get("default")
    return templates if isinstance(templates, str) else None
