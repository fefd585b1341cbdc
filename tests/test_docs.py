"""What the documentation tells people to type: it parses, it names what exists, and both languages say the same."""

import argparse
import ast
import importlib
import pathlib
import re
import shlex
from typing import NamedTuple

import pytest

from mtnlg.cli import data, demo, keys, sampling
from mtnlg.cli import main as cli
from mtnlg.core import config as configs
from mtnlg.core import schema, validate
from mtnlg.core.errors import ConfigError, MtnlgError
from mtnlg.serve import fields, limits
from mtnlg.serve import schema as requests

ROOT = pathlib.Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
READMES = ("README.md", "README.zh-CN.md")
CHECKED = (*READMES, *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
LINKED = (*CHECKED, "CONTRIBUTING.md", "SECURITY.md", "LOG.md")

SHELLS = ("bash", "sh")
CONFIGURED = ("train", "config", "plan", "demo", "blend")  # verbs that need a config
_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_KEY = re.compile(r"\b(?:" + "|".join({name.split(".")[0] for name in schema.leaves() if "." in name}) + r")\.[a-z_]+\b")
_NO_KEYS = re.compile(r"[(/]|\.(py|json|md)\b|^mesh\.put_rows$")  # spans of code in which a dot joins something else
_FILE = re.compile(r"\bconfigs/[a-z0-9_]+\.py\b")
_SEPARATORS = re.compile(r"[;&|]+")


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(*match) for match in _FENCED.findall(text)]


def commands(shell: str) -> list[list[str]]:
    """The words of each command of a shell text, without comments; a command ends at a line's end, `;`, `&&` or `|`."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not _SEPARATORS.fullmatch(word):
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found


def problems_of_command(words: list[str]) -> list[str]:
    """What is wrong with a command of ours; nothing with anybody else's."""
    if words[0] == "make":
        return _problems_of_make(words[1:])
    if words[0] == "mtnlg":
        return _problems_of_verb(words[1:])
    if re.fullmatch(r"(.*/)?python3?", words[0]) and words[1:3] == ["-m", "mtnlg"]:
        return _problems_of_verb(words[3:])
    return []


def _problems_of_make(words: list[str]) -> list[str]:
    found = []
    for word in words:
        name, equals, _ = word.partition("=")
        if equals and not re.search(rf"\b{re.escape(name)}\b", MAKEFILE):
            found.append(f"the Makefile knows no variable {name}")
        if not equals and not re.search(rf"^{re.escape(word)}:", MAKEFILE, re.MULTILINE):
            found.append(f"the Makefile has no target {word}")
    return found


def _problems_of_verb(words: list[str]) -> list[str]:
    verb, *arguments = words or ["--help"]
    if verb in ("--help", "--version"):
        return []
    if verb not in cli.VERBS:
        return [f"there is no verb {verb}"]
    if "--help" in arguments or words == ["data"]:
        return []
    try:
        if verb == "data":
            verb, *arguments = arguments
            parser = data.parser(verb)
        else:
            parser = cli.parser_of(importlib.import_module(f"mtnlg.cli.{verb}"), verb)
        options, rest = parser.parse_known_args(arguments)
        _check_arguments(verb, options, rest)
    except MtnlgError as error:
        return [str(error)]
    return []


def _check_arguments(verb: str, options: argparse.Namespace, rest: list[str]) -> None:
    """Raises MtnlgError unless the verb could start with these arguments, were the user's own files there."""
    explained = getattr(options, "explain", None)
    if explained:
        keys.describe(explained)
    if verb in ("launch", "supervise"):
        started = rest[rest.index("--") + 1 :] if "--" in rest else rest
        found = _problems_of_verb(started)
        if found:
            raise ConfigError(found[0])
        return
    if not rest and (explained or verb not in CONFIGURED):
        return
    named = any(argument.startswith(f"{configs.PREFIX}=") for argument in rest)
    rest = [f"{configs.PREFIX}={demo.CONFIG}", *rest] if verb == "demo" and not named else rest
    path, overrides = configs.split_arguments(rest)
    ours = [p for p in (path, getattr(options, "diff", None)) if p and p.startswith("configs/")]
    for shipped in ours:
        configs.resolve(rest if shipped == path else [f"{configs.PREFIX}={shipped}"])
    for name, text in overrides.items():
        configs.parse(name, text)


def problems(text: str, folder: pathlib.Path = ROOT) -> list[str]:
    """Everything in a page that is not so: commands, config files and keys, links."""
    prose = _FENCED.sub("", text)
    spans = [span.replace("\n", " ") for span in _INLINE.findall(prose)]
    shell = [block.text for block in blocks(text) if block.language in SHELLS]
    shell += [span for span in spans if re.match(r"make [a-z]|(\S*/)?python3? -m mtnlg ", span)]
    found = [f"{shlex.join(words)}: {p}" for part in shell for words in commands(part) for p in problems_of_command(words)]
    dotted = {name for span in spans if not _NO_KEYS.search(span) for name in _KEY.findall(span)}
    found += [f"there is no key {name}" for name in sorted(dotted - schema.leaves().keys())]
    found += [f"{name} is not there" for name in _FILE.findall(prose) if not (ROOT / name).is_file()]
    anchors = {anchor(heading) for heading in _HEADING.findall(prose)}
    for target in _LINK.findall(prose):
        path, _, fragment = target.partition("#")
        if ":" in path:
            continue
        if path and not (folder / path).exists():
            found.append(f"the link {target} leads nowhere")
        if not path and fragment not in anchors:
            found.append(f"the page has no heading #{fragment}")
    return found


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def meanings(text: str) -> list:
    """What the code blocks of a page say, comments and translations left out: the same for two languages of one page."""
    found: list = []
    for language, content in blocks(text):
        if language == "python":
            found.append((language, ast.dump(ast.parse(content))))
        else:
            found.append((language, commands(content) if language in SHELLS else None))
    return found


@pytest.mark.parametrize("page", LINKED)
def test_what_a_page_says_is_so(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = ROOT / page
    assert problems(path.read_text(), path.parent) == []


@pytest.mark.parametrize("page", CHECKED)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """All blocks of a page in one namespace and an empty folder; a config among them has to be a good one."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    for number, block in enumerate(b for b in blocks((ROOT / page).read_text()) if b.language == "python"):
        exec(compile(block.text, f"{page}, python block {number + 1}", "exec"), namespace)
    if "get_config" in namespace:
        assert validate.problems(configs.from_flat(configs.flatten(namespace["get_config"]().to_dict()))) == []


def test_both_languages_have_the_same_blocks():
    english, chinese = (meanings((ROOT / page).read_text()) for page in READMES)
    assert english == chinese
    assert len(english) > 5


def test_both_languages_have_the_same_shape():
    """As many headings of each level, and tables with as many rows."""
    shapes = []
    for page in READMES:
        text = _FENCED.sub("", (ROOT / page).read_text())
        shapes.append(re.findall(r"^(#+) |^(\|)|^(<!-- .* -->)$", text, re.MULTILINE))
    assert shapes[0] == shapes[1]


def test_every_shipped_config_is_in_both_readmes():
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.py")}
    for page in READMES:
        assert shipped <= set(_FILE.findall((ROOT / page).read_text()))


def table(page: str, header: str) -> list[list[str]]:
    """The cells of each row of the one table whose header begins so."""
    _, _, after = (ROOT / page).read_text().partition(f"\n| {header} |")
    rows = re.match(r"[^\n]*\n\|[-|]+\n((?:\|.*\n)+)", after)
    assert rows, f"{page} has no table of {header}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]


def named(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in _INLINE.findall(cell)]


def test_the_limits_are_those_of_the_server():
    told = [(name.strip("`"), int(default), meaning) for name, default, meaning in table("docs/inference.md", "limit")]
    assert told == limits.meanings()


def test_the_settings_are_those_of_the_commands():
    parser = argparse.ArgumentParser(add_help=False)
    sampling.add_arguments(parser)
    told = {name: row[1] for row in table("docs/inference.md", "option | if nothing is said") for name in named(row[:1])}
    assert sorted(told) == sorted(action.dest for action in parser._actions)
    for action in parser._actions:
        default = "none" if action.default == [] else f"{action.default:g}"
        assert re.match(rf"{re.escape(default)}(?![.\d])", told[action.dest]), action.dest


def test_the_fields_are_those_of_the_server():
    endpoints = [of(limits.Limits()) for of in (requests.completion, requests.chat, requests.embeddings)]
    refused = {name for known in endpoints for name, field in known.items() if field.check is fields.unsupported}
    page = (ROOT / "docs/inference.md").read_text()
    paragraph = page[page.index("Refused by name") : page.index("A field that nobody knows")]
    assert set(_INLINE.findall(paragraph)) == refused | {"unsupported_field"}
    honoured = named([row[0] for row in table("docs/inference.md", "field")])
    assert sorted(honoured) == sorted({name for known in endpoints for name in known} - refused)


def messages(source: str) -> list[str]:
    """The strings of a module, without its docstrings."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = [
        node.body[0].value for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    ]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings]


def test_commands_in_messages_can_be_typed():
    """`mtnlg` alone is a command only where it has been installed as one."""
    untypable = re.compile(rf"(?<!python -m )\bmtnlg ({'|'.join(cli.VERBS)}|VERB)\b")
    texts = [text for path in (ROOT / "mtnlg").rglob("*.py") for text in messages(path.read_text())]
    assert [text for text in texts if untypable.search(text)] == []
    assert sum("python -m mtnlg " in text for text in texts) > 10


WRONG = {
    "a verb": ("```bash\npython -m mtnlg tain --config=configs/demo.py\n```\n", "no verb tain"),
    "a key": (
        "```sh\n.venv/bin/python -m mtnlg demo --config.train.num_step 1\n```\n",
        "no key 'train.num_step'",
    ),
    "a value": ("```bash\nmtnlg train --config=configs/demo.py --config.train.num_steps=many\n```\n", "is not a whole number"),
    "a word among choices": ("```bash\nmtnlg train --config=configs/demo.py --config.train.recompute=some\n```\n", "is not one of none"),
    "a contradiction": ("```bash\nmtnlg train --config=configs/demo.py --config.model.num_heads=5\n```\n", "does not divide"),
    "a config file": ("```bash\nmtnlg config --config=configs/dmo.py\n```\n", "no such file"),
    "a config file to compare with": ("```bash\nmtnlg config --config=configs/demo.py --diff=configs/dmo.py\n```\n", "no such file"),
    "a key over a continued line": ("```bash\nmtnlg train --config=runs/a/config.json \\\n  --config.tain.x=1\n```\n", "no key 'tain.x'"),
    "an option": ("```bash\nmtnlg generate --workdir=runs/demo --prompt=a --top=3\n```\n", "--top=3"),
    "an option's value": ("```bash\nmtnlg generate --workdir=runs/demo --prompt=a --top_k=few\n```\n", "no whole number"),
    "a key of a supervised command": (
        "```bash\nmtnlg supervise -- train --config=configs/demo.py --config.train.num_step=1\n```\n",
        "there is no key 'train.num_step'",
    ),
    "a key of a launched command": (
        "```bash\nmtnlg launch local --processes=2 -- train --config=configs/demo.py --config.train.num_step=1\n```\n",
        "no key 'train.num_step'",
    ),
    "a key to explain": ("```bash\nmtnlg config --explain=train.steps\n```\n", "no key 'train.steps'"),
    "the second command of a line": ("```bash\ncd x && mtnlg tain\n```\n", "no verb tain"),
    "a target": ("```bash\nmake dmo\n```\n", "no target dmo"),
    "a variable of make": ("```bash\nmake test SLIDE=0/4\n```\n", "no variable SLIDE"),
    "a target in prose": ("Say `make dmo` first.\n", "no target dmo"),
    "a key in prose": ("It is `checkpoint.evry_steps`.\n", "no key checkpoint.evry_steps"),
    "a file in prose": ("See `configs/dmo.py`.\n", "configs/dmo.py is not there"),
    "a link": ("See [there](docs/nowhere.md).\n", "docs/nowhere.md leads nowhere"),
    "a heading": ("# Here\n\nSee [there](#there).\n", "no heading #there"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found(what, monkeypatch):
    """Negative controls."""
    monkeypatch.chdir(ROOT)
    text, expected = WRONG[what]
    found = problems(text)
    assert len(found) == 1, found
    assert expected in found[0]


def test_a_translation_that_differs_is_found():
    page = "```bash\nmake demo  # {}\n```\n```python\nx = 1  # {}\n```\n```text\n{}\n```\n"
    assert meanings(page.format("go", "one", "a")) == meanings(page.format("走", "一", "甲"))
    assert meanings(page) != meanings(page.replace("make demo", "make test"))
    assert meanings(page) != meanings(page.replace("x = 1", "x = 2"))
    assert meanings(page) != meanings(page + "```bash\nmake\n```\n")
