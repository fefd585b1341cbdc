"""What a run survives, in eleven figures, on tiny models made here. Exits with 1 if one is missed.

COMMAND: make soak-train, or python -m benchmarks.soak_train --only=1,6
"""

import argparse
import os
import pathlib
import sys
import tempfile


def main() -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    from benchmarks.figures import measured, print_table
    from benchmarks.soak_train import damage, day, kills, numbers, overhead, workers
    from benchmarks.soak_train.tested import tests

    figures = {
        1: kills.kills,
        2: damage.damage,
        3: workers.losses,
        4: lambda _: tests("a full disk at 5 points, and what follows", 5, "tests/train/test_failed_saves.py"),
        5: lambda _: tests("30 mismatches refused before any compile, 10 legal changes accepted", 40, "tests/train/test_mismatch.py"),
        6: lambda _: numbers.not_numbers(20),
        7: lambda _: tests("a planted spike: the run is the one that was told to skip", 1, "tests/train/test_rollback.py"),
        8: lambda _: tests("50 flipped bits of copies found", 1, "tests/train/test_replicas.py", "tests/launch/test_damage_in_two.py"),
        9: lambda _: overhead.guards(),
        10: overhead.saves,
        11: day.bad_day,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(map(str, figures)), help="figures, as 1,3 (default: all)")
    wanted = [int(number) for number in parser.parse_args().only.split(",")]
    if unknown := set(wanted) - set(figures):
        parser.error(f"--only: there is no figure {unknown.pop()}")
    found = {}
    for number in wanted:
        with tempfile.TemporaryDirectory() as folder:
            found[number] = measured(number, lambda number=number, folder=folder: figures[number](pathlib.Path(folder)))
    return print_table(found)


if __name__ == "__main__":
    sys.exit(main())
