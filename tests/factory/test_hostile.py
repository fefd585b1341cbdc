"""Files that mean harm are set aside by name, quickly and in little memory, and the documents beside them come through."""

import json
import os
import pathlib
import subprocess
import sys

import hostile
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("trafilatura")
SECONDS, MEGABYTES = 10, 500
# What is not named here came through only as the two good files beside it, or with GOOD of the same file.
CAME_TOO = {
    "json_duplicate_keys": {"twice": "the last counts"},
    "parquet_not_utf8": {"parquet_not_utf8/b.parquet:2": "good too"},
    "file_names": {
        "file_names/b\n.txt": "text of an odd name",
        "file_names/b\\xff.txt": "text of an odd name",
        "file_names/b\u202e.txt": "text of an odd name",
        "file_names/b'\";$(reboot).txt": "text of an odd name",
        f"file_names/{'b' * 250}.txt": "text of an odd name",
    },
}


EXTRACT = """
import json, pathlib, re, resource, sys, time
from corpora import read, run

if __name__ == "__main__":
    for root in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        start, output = time.monotonic(), root.with_name(root.name + ".out")
        reasons = list(run("extract", str(root), output).counts.get("unreadable", {}))
        seconds = time.monotonic() - start
        # ru_maxrss begins with that of pytest
        own = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
        megabytes = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1000
        found = {document["id"]: document["text"][:200] for document in read(output)}
        print(json.dumps({"name": root.name, "reasons": reasons, "found": found, "seconds": seconds, "megabytes": megabytes}))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of all cases, one after another in one process: what was set aside, the documents, seconds, MB of the largest process so far."""
    folder = tmp_path_factory.mktemp("hostile")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(pathlib.Path.cwd()), str(pathlib.Path(__file__).parent)])}
    subprocess.run([sys.executable, hostile.__file__, str(folder)], env=environment, check=True)
    (folder.parent / "extract.py").write_text(EXTRACT)
    command = [sys.executable, str(folder.parent / "extract.py"), str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, {outcome["name"]: outcome for outcome in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", hostile.CASES)
def test_it_is_handled(outcomes, name):
    _, all_outcomes = outcomes
    outcome, expected = all_outcomes[name], hostile.CASES[name][1]
    if expected is not None:
        assert len(outcome["reasons"]) == len(expected)
        assert all(reason.startswith(begin) for reason, begin in zip(outcome["reasons"], expected, strict=True))
    assert not any(reason.startswith("failed: ") for reason in outcome["reasons"])
    assert {f"{name}/a.jsonl:1": "good", f"{name}/z.jsonl:1": "good"}.items() <= outcome["found"].items()
    assert CAME_TOO.get(name, {}).items() <= outcome["found"].items()
    assert outcome["seconds"] < SECONDS and outcome["megabytes"] < MEGABYTES


def test_nothing_was_run_or_written_elsewhere(outcomes):
    folder, _ = outcomes
    assert {path.name.removesuffix(".out") for path in folder.iterdir()} == set(hostile.CASES)
    assert len(hostile.CASES) > 40
