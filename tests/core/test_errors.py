"""What errors tell people to try."""

import ast
import pathlib
import re

import pytest

from mtnlg.core import errors, schema

PACKAGE = pathlib.Path(errors.__file__).parent.parent
KINDS = {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)}
BARE_KEY = re.compile(r"(?<!--config\.)\b(" + "|".join(re.escape(name) for name in schema.leaves() if "." in name) + r")\b")


def cures(tree: ast.AST) -> list[str]:
    """Everything that is written as the third argument of an error, or into a variable `cure`."""
    given = [node.args[2] for node in ast.walk(tree) if isinstance(node, ast.Call) and called(node) in KINDS and len(node.args) > 2]
    given += [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "cure"]
    return [part.value for cure in given for part in ast.walk(cure) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_cure_that_is_a_key_can_be_typed(path):
    assert [cure for cure in cures(ast.parse(path.read_text())) if BARE_KEY.search(cure)] == []


def test_a_bare_key_is_seen():
    """Negative control."""
    written = (
        "cure = 'a smaller model.seq_len'\nraise errors.DataError('what', 'where', f'model.vocab_size={n} or --config.data.weights=1')"
    )
    assert [BARE_KEY.findall(cure) for cure in cures(ast.parse(written))] == [["model.vocab_size"], [], ["model.seq_len"]]
