"""The ten figures of a server that is left alone with the world, on a tiny model made here. Exits with 1 if one is missed.

COMMAND: make soak, or python -m benchmarks.soak --only=1,3 --requests=1000 --minutes=5
"""

import argparse
import functools
import pathlib
import sys
import tempfile

from benchmarks.figures import Figure, measured, print_table
from benchmarks.soak import crowd, ending, hours, sameness, slow, strangers
from benchmarks.soak.served import serving, write_model

_OF_ONE_SERVER = {
    1: lambda server, own, options: strangers.malformed(server, options.requests),
    2: lambda server, own, options: strangers.without_a_key(server),
    3: lambda server, own, options: strangers.endless_body(server, 1 << 30),
    4: lambda server, own, options: slow.slow_clients(server, 200, num_rounds=6, secs=8),
    5: lambda server, own, options: crowd.too_many(server, 100, num_tokens=2000),
    6: lambda server, own, options: crowd.leavers(server, 50),
    9: lambda server, own, options: sameness.together(server, 100),
    10: lambda server, own, options: sameness.tenants(server, own, 100),
}
_OF_ITS_OWN = {
    7: lambda server, own, options: ending.sigterm(server),
    8: lambda server, own, options: hours.soak(server, options.minutes),
}
FIGURES = {**_OF_ONE_SERVER, **_OF_ITS_OWN}


def measure(wanted: list[int], options: argparse.Namespace) -> dict[int, Figure]:
    """Figures 7 and 8 have a server of their own each, the others one together."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        own = functools.partial(serving, write_model(pathlib.Path(folder)))
        if shared := [number for number in wanted if number in _OF_ONE_SERVER]:
            with own() as server:
                found |= {number: measured(number, functools.partial(FIGURES[number], server, own, options)) for number in shared}
        for number in (number for number in wanted if number in _OF_ITS_OWN):
            with own() as server:
                found[number] = measured(number, functools.partial(FIGURES[number], server, own, options))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(map(str, sorted(FIGURES))), help="figures, as 1,3 (default: all)")
    parser.add_argument("--requests", type=int, default=10_000, help="of figure 1 (default: 10000)")
    parser.add_argument("--minutes", type=float, default=60.0, help="of figure 8 (default: 60)")
    options = parser.parse_args()
    wanted = [int(number) for number in options.only.split(",")]
    if unknown := set(wanted) - set(FIGURES):
        parser.error(f"--only: there is no figure {unknown.pop()}")
    return print_table(measure(wanted, options))


if __name__ == "__main__":
    sys.exit(main())
