"""Serves a model over HTTP, as OpenAI's API, with a page at /. Ctrl-C or SIGTERM ends it when what it writes is written,
a second one at once."""

import argparse
import os
import pathlib

from mtnlg.cli import loading, runtime
from mtnlg.core import config as configs
from mtnlg.core import extras
from mtnlg.core.errors import ConfigError, MissingInput
from mtnlg.serve import limits as server_limits

KEY_VARIABLE = "MTNLG_API_KEY"
_LEAST_KEY_CHARS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --model=PATH [--port=8000] [options] [--config.mesh.key=value ...]"
    parser.epilog = (
        f"The key that every request has to bring stands in the environment, {KEY_VARIABLE}, or in a file.\n"
        "Without one only this machine's own programs are answered."
    )
    parser.add_argument("--model", required=True, help=loading.MODEL)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; others than this machine's own need a key")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    parser.add_argument("--key_file", help="a file with keys, one a line: any of them opens the server")
    parser.add_argument("--rows", type=int, default=8, help="texts written at once (default: 8)")
    loading.add_arguments(parser)
    group = parser.add_argument_group("limits")
    for name, default, meaning in server_limits.meanings():
        group.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    mesh = configs.mesh_of(rest)
    limits = server_limits.Limits(**{name: getattr(options, name) for name, _, _ in server_limits.meanings()})
    for name, value in {"rows": options.rows, **vars(limits)}.items():
        if value < 1:
            raise ConfigError(f"{name}={value} is out of range", f"--{name}", "1 or more")
    if not 0 <= options.port < 2**16:
        raise ConfigError(f"port={options.port} is out of range", "--port", "0 to 65535")
    keys, reading = _keys(options.key_file), loading.settings(options)
    runtime.prepare()
    with extras.needed("serve"):
        from mtnlg.serve.run import serve

    def make_writer(check):
        loading.begin(options.model, options)
        from mtnlg.serve.worker import make_writer

        def begin(part: str) -> None:
            check()
            loading.ask_for_patience(part)

        with loading.as_options():
            writer = make_writer(options.model, mesh, options.rows, limits.queue, begin, **reading)
        loading.tell(writer.notes)
        return writer

    def say(address: str) -> None:
        key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if keys else ""
        print(f"mtnlg: the page is {address}/ and OpenAI's API {address}/v1; try: curl {address}/v1/models{key}", flush=True)

    serve(make_writer, options.host, options.port, keys, limits, say, lambda line: loading.tell([line]))
    return 0


def _keys(file: str | None) -> tuple[bytes, ...]:
    """Of the environment and the file. Raises MissingInput, ConfigError."""
    found = [os.fsencode(os.environ[KEY_VARIABLE]).strip()] if KEY_VARIABLE in os.environ else []
    if file is not None:
        try:
            lines = pathlib.Path(file).read_bytes().splitlines()
        except OSError as error:
            raise MissingInput(f"the keys cannot be read: {error.strerror}", file, "--key_file=FILE with one key a line") from error
        found += [line.strip() for line in lines if line.strip()]
        if not found:
            raise ConfigError("there is no key in the file", file, "one key a line")
    if any(len(key) < _LEAST_KEY_CHARS or not key.isascii() or len(key.split()) != 1 for key in found):
        what = f"a key has less than {_LEAST_KEY_CHARS} characters, white space in it, or is not ASCII"
        raise ConfigError(what, file or KEY_VARIABLE, "a random one, as `openssl rand -hex 32` makes")
    return tuple(found)
