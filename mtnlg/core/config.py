"""From `--config=FILE.py[:ARG] --config.key=value ...` to the typed, checked, frozen `schema.Config`.

A config file is Python (it runs!) with `get_config()` or `get_config(arg)`, which changes `config.default()` and returns it.
A `.json` file, as each run's folder holds one, is data only.
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import pathlib
import re
import traceback
import types
import typing
from collections.abc import Iterable

from mtnlg.core import schema, validate
from mtnlg.core.errors import ConfigError

PREFIX = "--config"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def default():
    """The schema's defaults as an `ml_collections.ConfigDict`: locked (no new keys) and type-safe."""
    from ml_collections import config_dict

    def build(cls):
        values = {}
        for field in dataclasses.fields(cls):
            name = field.name.rstrip("_")
            if dataclasses.is_dataclass(field.type):
                values[name] = build(field.type)
            elif field.default is None:
                values[name] = config_dict.placeholder(_base_type(field.type))
            else:
                values[name] = field.default
        return config_dict.ConfigDict(values)

    return build(schema.Config).lock()


def resolve(arguments: list[str]) -> schema.Config:
    """Reads the `--config...` arguments of a command line.

    Raises ConfigError: no or missing config, unknown key, wrong type, or a list of everything that contradicts itself.
    """
    path, overrides = split_arguments(arguments)
    values = flatten(load(path))
    for name, text in overrides.items():
        values[name] = parse(name, text)
    config = from_flat(values)
    require_none(validate.problems(config), path)
    return config


def require_none(problems: Iterable[str], where: str) -> None:
    """Raises ConfigError with all of them, if there are any."""
    if lines := [f"  - {problem}" for problem in problems]:
        raise ConfigError("the config contradicts itself:\n" + "\n".join(lines), where)


def mesh_of(arguments: list[str]) -> schema.Mesh:
    """The mesh that `--config.mesh.AXIS=DEGREE` arguments describe, for a verb that takes no other key. Raises ConfigError."""
    values = {}
    for name, text in _given(arguments).items():
        if name not in (f"mesh.{axis}" for axis in schema.AXES):
            given = f"{PREFIX}.{name}".removesuffix(".")
            raise ConfigError(f"this verb does not take {given}", "command line", "--config.mesh.tensor=4, or another degree of the mesh")
        values[name] = parse(name, text)
    return from_flat(values).mesh


def split_arguments(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """(path of the config, {dotted key: text}) of `--config=PATH --config.key=value` and `--config.key value`."""
    given = _given(arguments)
    path = given.pop("", None)
    if path is None:
        shipped = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))) or "FILE.py"
        raise ConfigError("no config is named", "command line", f"--config=FILE, one of {shipped}")
    return path, given


def _given(arguments: list[str]) -> dict[str, str]:
    """{dotted key: text} of all `--config...` arguments, the config's path under ""."""
    given, rest = {}, list(arguments)
    while rest:
        head = rest.pop(0)
        name, equals, value = head.partition("=")
        if name != PREFIX and not name.startswith(PREFIX + "."):
            raise ConfigError(f"unknown argument {head!r}", "command line", _meant(head))
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} has no value", "command line", f"{name}=VALUE")
            value = rest.pop(0)
        key = name.removeprefix(PREFIX).removeprefix(".")
        if key in given:
            raise ConfigError(f"{name} is given twice: {given[key]!r} and {value!r}", "command line", "one of them")
        if key:
            require_known(key)
        given[key] = value
    return given


def _meant(argument: str) -> str:
    """What somebody may have wanted to type who typed this."""
    if argument.partition(":")[0].endswith((".py", ".json")) and not argument.startswith("-"):
        return f"{PREFIX}={argument}"
    return PREFIX if difflib.get_close_matches(re.split("[.=]", argument)[0], [PREFIX], 1, 0.8) else "--help"


def load(path_and_arg: str) -> dict:
    """The nested values of a config file, `.py` or `.json`; `FILE.py:ARG` hands ARG to `get_config`."""
    path, arg = path_and_arg, ""
    if ":" in path and not pathlib.Path(path).is_file():
        path, _, arg = path.rpartition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(file.stem, [p.stem for p in pathlib.Path("configs").glob("*.py")], 1, 0.4)
        cure = f"--config=configs/{near[0]}.py" if near else "a path that exists, as configs/demo.py"
        raise ConfigError(f"--config={path_and_arg}: there is no such file", path, cure)
    if file.suffix == ".json":
        if arg:
            raise ConfigError(f"a .json config takes no argument, so {arg!r} means nothing", path, f"--config={path}")
        try:
            values = json.loads(file.read_text())
        except ValueError as error:
            raise ConfigError(f"not JSON: {error}", path, "a run's config.json") from None
        if not isinstance(values, dict):
            raise ConfigError("not a config: a JSON object is expected", path, "a run's config.json")
        return values
    return _run(file, arg)


def _run(file: pathlib.Path, arg: str) -> dict:
    config = run_file(file, "get_config", arg, "python -m mtnlg config --help lists every key")
    if not hasattr(config, "to_dict"):
        raise ConfigError(f"get_config() gave {config!r}, not a config", str(file), "`return config` at its end")
    return config.to_dict()


def run_file(file: pathlib.Path, function: str, arg: str, cure: str):
    """What FUNCTION() of a config file, or FUNCTION(arg), returns. The file is Python, and it runs.

    Raises ConfigError, with file and line, for whatever goes wrong in it.
    """
    spec = importlib.util.spec_from_file_location(f"mtnlg_config_{file.stem}", file)
    if spec is None:
        raise ConfigError("a config is a .py or a .json file", str(file), "--config=configs/demo.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get = getattr(module, function, None)
        if get is None:
            raise ConfigError(f"there is no {function}() in this file", str(file), "a config of the right kind, which defines it")
        takes_arg = bool(inspect.signature(get).parameters)
        if arg and not takes_arg:
            raise ConfigError(f"this config takes no argument, so {arg!r} means nothing", str(file), f"--config={file}")
        return get(arg) if takes_arg and arg else get()
    except ConfigError:
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == spec.origin]
        if isinstance(error, SyntaxError) and error.filename == spec.origin:
            lines.append(error.lineno)
        where = f"{file}:{lines[-1]}" if lines else str(file)
        raise ConfigError(f"{type(error).__name__}: {_brief(error)}", where, cure) from error


def _brief(error: Exception) -> str:
    """The error in one line, without the list of every other key that ConfigDict adds."""
    while error.args and isinstance(error.args[0], Exception):  # ConfigDict wraps a KeyError, whose str is a repr
        error = error.args[0]
    text = str(error.args[0]) if error.args else ""
    return " ".join(re.sub(r"Other fields present: .*?(?=Did you mean|$)", "", text, flags=re.DOTALL).split())


def flatten(nested: dict, prefix: str = "") -> dict:
    """{'a': {'b': 1}} as {'a.b': 1}; an empty dict is a value, so that `from_flat` sees it."""
    flat = {}
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def from_flat(values: dict) -> schema.Config:
    """The typed config of {dotted key: value}; a missing key has its default. Raises ConfigError on unknown keys and wrong types."""
    fields = schema.leaves()
    for name, value in values.items():
        if value == {} and _keys_inside(name):
            continue
        require_known(name)
        values[name] = _check_type(name, value, fields[name].type)
        choices = fields[name].metadata["choices"]
        if choices and values[name] not in choices:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(str, choices))}", name, f"--config.{name}={choices[0]}")

    def build(cls, prefix):
        arguments = {}
        for field in dataclasses.fields(cls):
            path = prefix + field.name.rstrip("_")
            if dataclasses.is_dataclass(field.type):
                arguments[field.name] = build(field.type, path + ".")
            elif path in values:
                arguments[field.name] = values[path]
        return cls(**arguments)

    return build(schema.Config, "")


def to_flat(config: schema.Config) -> dict:
    """{dotted key: value} of a typed config, every key."""

    def value_of(path):
        node = config
        for part in path.split("."):
            node = getattr(node, part) if hasattr(node, part) else getattr(node, part + "_")
        return node

    return {path: value_of(path) for path in schema.leaves()}


def to_nested(config: schema.Config) -> dict:
    """The config as nested dicts of JSON values, as a run's folder stores it."""
    nested: dict = {}
    for path, value in to_flat(config).items():
        *parents, last = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    return nested


def differences(a: schema.Config, b: schema.Config) -> dict[str, tuple]:
    """{dotted key: (value in a, value in b)} where they differ."""
    flat_a, flat_b = to_flat(a), to_flat(b)
    return {name: (flat_a[name], flat_b[name]) for name in flat_a if flat_a[name] != flat_b[name]}


def require_known(name: str) -> None:
    """Raises ConfigError, with the nearest key, unless the schema has this dotted key."""
    known = schema.leaves()
    if name in known:
        return
    if inside := _keys_inside(name):
        raise ConfigError(f"{name} is a group of keys, not a key", f"--config.{name}", f"--config.{inside[0]}=VALUE")
    near = difflib.get_close_matches(name, known, 1, 0.3)
    last = difflib.get_close_matches(name.rpartition(".")[2], [k.rpartition(".")[2] for k in known], 1, 0.6)
    if last and (not near or near[0].rpartition(".")[2] != last[0]):
        near = [k for k in known if k.rpartition(".")[2] == last[0]]
    raise ConfigError(f"there is no key {name!r}", f"--config.{name}", f"--config.{near[0]}" if near else "python -m mtnlg config --help")


def _keys_inside(group: str) -> list[str]:
    return [name for name in schema.leaves() if name.startswith(group + ".")]


def _base_type(annotation):
    """int for `int | None`, tuple for `tuple[str, ...]`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(t for t in typing.get_args(annotation) if t is not type(None))
    return typing.get_origin(annotation) or annotation


def type_name(annotation) -> str:
    """How a key's type is shown to people."""
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)


def kind(annotation) -> str:
    """What a value of this type is, in words."""
    base, or_none = _base_type(annotation), " or none" if isinstance(annotation, types.UnionType) else ""
    if base is tuple:
        return f"a list of {_KINDS[typing.get_args(annotation)[0]].removeprefix('a ')}s{or_none}"
    return _KINDS[base] + or_none


def parse(name: str, text: str):
    """The value that `--config.NAME=TEXT` means. Raises ConfigError naming key, value and type."""
    require_known(name)
    annotation = schema.leaves()[name].type
    try:
        return from_text(annotation, text)
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not {kind(annotation)}", f"--config.{name}", _example(name)) from None


def from_text(annotation, text: str):
    """What a text means as a value of this type: none, true and false as words, a list with commas. Raises ValueError."""
    base = _base_type(annotation)
    if isinstance(annotation, types.UnionType) and text.lower() in ("none", ""):
        return None
    try:
        if base is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if base is int:
            value = float(text) if "e" in text.lower() else int(text)
            if value != int(value):
                raise ValueError
            return int(value)
        if base is float:
            return float(text)
        if base is tuple:
            item, literal = typing.get_args(annotation)[0], _literal(text)
            return tuple(map(item, literal if _is_list_of(item, literal) else filter(None, text.split(","))))
    except (KeyError, SyntaxError, TypeError, OverflowError) as error:
        raise ValueError(f"{text!r} is not {kind(annotation)}") from error
    return text


def _literal(text: str):
    """What `text` means in Python, if it is written as a tuple or list; else None."""
    try:
        return ast.literal_eval(text) if text.startswith(("(", "[")) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _is_list_of(item: type, value) -> bool:
    kinds = (int, float) if item is float else item
    return isinstance(value, (list, tuple)) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in value)


def _example(name: str) -> str:
    value = schema.leaves()[name].default
    if isinstance(value, tuple):
        value = ",".join(map(str, value)) or "VALUE,VALUE"
    return f"--config.{name}={'VALUE' if value is None else value}"


def _check_type(name: str, value, annotation):
    try:
        return as_type(annotation, value)
    except ValueError:
        raise ConfigError(f"{name}={value!r} is not {kind(annotation)}", name, _example(name)) from None


def as_type(annotation, value):
    """The value, with lists as tuples and whole numbers as floats where a float is meant. Raises ValueError when it is of another type."""
    base = _base_type(annotation)
    if value is None and isinstance(annotation, types.UnionType):
        return None
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if base is tuple:
        value = (value,) if isinstance(value, str) else value
        item = typing.get_args(annotation)[0]
        if _is_list_of(item, value):
            return tuple(map(item, value))
    elif isinstance(value, base) and not (base is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{value!r} is not {kind(annotation)}")
