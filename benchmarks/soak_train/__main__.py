"""What a run survives, in ten figures, on tiny models made here. Exits with 1 if one is missed.

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
    from benchmarks.soak_train import kills, numbers, overhead

    figures = {
        1: kills.kills,
        6: lambda folder: numbers.not_numbers(20),
        9: lambda folder: overhead.guards(),
        10: overhead.saves,
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
