"""The config keys as text: what `--help` and `mtnlg config --explain` show."""

from mtnlg.core import config as configs
from mtnlg.core import schema


def describe(name: str) -> str:
    """One key: type, default, legal values and meaning."""
    configs.require_known(name)
    field = schema.leaves()[name]
    default = "none" if field.default is None else field.default
    choices = field.metadata["choices"]
    kind = f"one of {', '.join(map(str, choices))}" if choices else configs.type_name(field.type)
    if field.type == tuple[str, ...]:
        kind += """; commas part them, or '["one, with commas", "two"]'"""
    return f"--config.{name}={default}\n      {field.metadata['help']} ({kind})"


def describe_all() -> str:
    """Every key, as an epilog of `--help`."""
    return "config keys, with their defaults:\n\n" + "\n".join(f"  {describe(name)}" for name in schema.leaves())
