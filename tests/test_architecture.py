"""Who may import whom, held transitively: the rooms of docs/design.md."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "mtnlg"

# docs/design.md, "The rooms": for each room, the rooms it may import.
ALLOWED = {
    "core": set(),
    "data": {"core"},
    "corpus": {"core", "data"},
    "factory": {"core", "data", "corpus"},
    "model": {"core"},
    "parallel": {"core"},
    "pipeline": {"core", "model", "parallel"},
    "spmd": {"core", "model", "parallel", "pipeline"},
    "checkpoint": {"core", "parallel"},
    "layered": {"core", "interop"},
    "weights": {"core", "data", "checkpoint", "layered", "interop", "model", "parallel"},
    "convert": {"core", "data", "checkpoint", "layered", "weights", "interop", "model", "parallel", "run"},
    "train": {"core", "pipeline", "spmd", "checkpoint", "parallel", "model"},
    "plan": {"core", "model", "parallel", "pipeline", "spmd", "train"},
    "infer": {"core", "pipeline", "spmd", "parallel", "model"},
    "interop": {"core"},
    "run": {"core"},
    "launch": {"core", "run"},
    "pretrained": {"core", "data", "checkpoint", "layered", "weights", "interop", "model", "parallel"},
}
ALLOWED["text_engine"] = {"data", *ALLOWED["infer"], "infer"}
ALLOWED["engines"] = {"pretrained", "infer", *ALLOWED["infer"], *ALLOWED["pretrained"]}
ALLOWED["lm"] = {"engines", "pretrained", "text_engine", *ALLOWED["text_engine"], *ALLOWED["pretrained"]}
ALLOWED["pretrain"] = {"lm", "corpus", "train", "run", *ALLOWED["lm"]}
ALLOWED["serve"] = {"lm", *ALLOWED["lm"]}
ALLOWED["batches"] = {"lm", "run", *ALLOWED["lm"]}
ALLOWED["cli"] = set(ALLOWED)
# Libraries that live in one room: name -> the rooms that may import them directly.
HOMES = {
    "flax": {"model"},
    "optax": {"train"},
    "orbax": {"checkpoint", "layered"},
    "tensorstore": {"layered"},
    "sentencepiece": {"data"},
    "tokenizers": {"data"},
    "tiktoken": {"data"},
    "gguf": {"interop"},
    "jinja2": {"data"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "h11": {"serve"},
    "prometheus_client": {"serve"},
    "ml_collections": {"core"},
    "safetensors": {"interop"},
    "torch": {"interop"},
    "matplotlib": {"run"},
    "tensorboardX": {"run"},
    "zstandard": {"corpus", "factory"},
    **{name: {"factory"} for name in ("ftfy", "rensa", "scipy", "lingua", "sklearn", "jieba", "HanTa")},
    "datatrove": {"factory"},
    "trafilatura": {"factory"},
    "justext": {"factory"},
    "pyarrow": {"factory"},
    "datasets": {"factory"},
}
NO_JAX = tuple(f"core.{name}" for name in ("schema", "config", "errors", "validate", "fault", "files", "lock", "extras", "strict_json"))
NO_JAX += ("core.keeping", "core.resuming")
NO_JAX += ("core.manifest", "data", "corpus", "factory", "interop", "run", "launch", "cli")
NO_JAX += ("infer.request", "infer.truncate", "infer.stretch", "infer.int8_parts", "infer.room")
NO_JAX += tuple(f"serve.{path.stem}" for path in (PACKAGE / "serve").glob("*.py") if path.stem != "worker")
NO_JAX += tuple(f"parallel.{name}" for name in ("table", "orders", "greedy", "schedule", "schedule_file", "lockstep", "program"))
MAX_LINES = 400

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


def room(module: str) -> str:
    return module.split(".")[1]


def loads_jax_allowed(module: str) -> bool:
    name = module.removeprefix("mtnlg.")
    return not any(name == prefix or name.startswith(prefix + ".") for prefix in NO_JAX)


def imports_of(path: pathlib.Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file."""
    return names_in(ast.parse(path.read_text()))


def names_in(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level_imports(module: str) -> set[str]:
    """Our modules that importing `module` imports itself: not those named inside functions."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {name for name in names_in(tree) if name in MODULES}


@functools.cache
def reached(module: str) -> frozenset[str]:
    """Every module of ours that importing `module` brings along."""
    found, todo = set(), [module]
    while todo:
        for name in top_level_imports(todo.pop()) - found:
            found.add(name)
            todo.append(name)
    return frozenset(found)


def test_every_room_is_on_the_list():
    assert {room(m) for m in MODULES} == set(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_they_may(module):
    rooms = {room(name) for name in reached(module)} - {room(module)}
    assert rooms <= ALLOWED[room(module)], f"{module} pulls in {rooms - ALLOWED[room(module)]}"


@pytest.mark.parametrize("module", MODULES)
def test_no_circles(module):
    assert module not in reached(module)


def test_no_jax():
    """Importing all of these together, in a fresh process, loads no jax."""
    quiet = [m for m in MODULES if not loads_jax_allowed(m)]
    assert len(quiet) > 20
    script = (
        f"import importlib, sys; [importlib.import_module(m) for m in {quiet!r}]; print(*{{'jax', 'flax', 'orbax'}} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_inside_functions_obey_too(module):
    """A lazy import may save time, but not lead anywhere else."""
    named = imports_of(ROOT / (module.replace(".", "/") + ".py"))
    rooms = {room(name) for name in named if name.startswith("mtnlg.")} - {room(module)}
    assert rooms <= ALLOWED[room(module)]
    for library, homes in HOMES.items():
        if any(name.split(".")[0] == library for name in named):
            assert room(module) in homes, f"{module} imports {library}, which lives in {homes}"


def test_shard_map_is_called_in_one_file():
    callers = [m for m in MODULES if "jax.shard_map" in (ROOT / (m.replace(".", "/") + ".py")).read_text()]
    assert callers == ["mtnlg.spmd"]


def test_model_and_spmd_name_no_float32():
    """float64 parity is float64 throughout: float32 appears only as the floor of promote_types."""
    for path in [*(PACKAGE / "model").glob("*.py"), PACKAGE / "spmd.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") != "promote_types":
                inner = [a for a in ast.walk(node) if isinstance(a, ast.Attribute) and a.attr == "float32"]
                outer = [c for c in ast.walk(node) if isinstance(c, ast.Call) and getattr(c.func, "attr", "") == "promote_types"]
                covered = {id(a) for c in outer for a in ast.walk(c)}
                assert all(id(a) in covered for a in inner), f"{path}:{node.lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_small(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert path.name != "utils.py"


def test_the_probe_sees_a_forbidden_import(tmp_path):
    """Negative control: the rule above does notice jax where it must not be."""
    script = "import sys, mtnlg.core.schema; a = 'jax' in sys.modules; import mtnlg.core.tree; print(a, 'jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]
