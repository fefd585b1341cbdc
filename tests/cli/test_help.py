"""`--help` is instant and complete."""

import pathlib
import subprocess
import sys
import time

import pytest

from mtnlg.cli.main import VERBS, main
from mtnlg.core import schema

ROOT = pathlib.Path(__file__).parent.parent.parent
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "numpy", "ml_collections", "sentencepiece")
SCRIPT = f"""
import atexit, sys
from mtnlg.cli.main import main
atexit.register(lambda: print("loaded:", *[name for name in {HEAVY} if name in sys.modules]))
sys.exit(main(sys.argv[1:]))
"""
BUDGET_SECS = 0.5


def timed_help(*verb) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", SCRIPT, *verb, "--help"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0 and done.stderr == ""
    return time.perf_counter() - start, done.stdout


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)], ids=lambda verb: "".join(verb) or "mtnlg")
def test_help_loads_nothing_heavy_and_is_instant(verb):
    """The best of five: the machine may be busy."""
    best = float("inf")
    for _ in range(5):
        secs, out = timed_help(*verb)
        assert out.startswith("usage: python -m mtnlg") and out.splitlines()[-1] == "loaded:"
        best = min(best, secs)
        if best < BUDGET_SECS:
            return
    pytest.fail(f"{best:.2f} s")


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "mtnlg", "trian"], cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("mtnlg: error: there is no verb 'trian'")


def help_of(capsys, verb):
    try:
        code = main([verb, "--help"])
    except SystemExit as caught:
        code = caught.code
    assert code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "config"])
def test_help_names_every_key_with_default_and_meaning(capsys, verb):
    lines = help_of(capsys, verb).splitlines()
    for name, field in schema.leaves().items():
        default = "none" if field.default is None else field.default
        at = lines.index(f"  --config.{name}={default}")
        assert lines[at + 1].strip().startswith(field.metadata["help"])
        assert all(str(choice) in lines[at + 1] for choice in field.metadata["choices"])


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_says_what_it_is_for(capsys, verb):
    assert help_of(capsys, verb).startswith(f"usage: python -m mtnlg {verb}")
    main([])
    overview = capsys.readouterr().out
    assert f"  {verb:10} {VERBS[verb]}" in overview


def test_version(capsys):
    import mtnlg

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == mtnlg.__version__ + "\n"
