"""The real server with a writer that has no model: `python -m tests.serve.fake_server --port=8000 [--key=...] [--step_secs=0.03]`.

For work on the page and for tests that end a server. --no_chat: a model without a chat template; --endless_template: with one that never
comes to its end; --load_secs: how long it loads.
"""

import argparse
import functools
import sys
import time

from mtnlg.core.errors import MtnlgError
from mtnlg.serve.limits import Limits, meanings
from mtnlg.serve.run import serve
from tests.serve.fake_writer import FakeWriter


class EndlessTemplate(FakeWriter):
    def chat_ids(self, messages):
        while True:
            pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--key")
    parser.add_argument("--step_secs", type=float, default=0.03)
    parser.add_argument("--load_secs", type=float, default=0.0)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--no_chat", action="store_true")
    parser.add_argument("--endless_template", action="store_true")
    for name, default, _ in meanings():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    limits = Limits(**{name: getattr(options, name) for name, _, _ in meanings()})

    def make_writer(check) -> FakeWriter:
        time.sleep(options.load_secs)
        kind = EndlessTemplate if options.endless_template else FakeWriter
        return kind(options.context, options.rows, limits.queue, options.step_secs, not options.no_chat)

    say = functools.partial(print, flush=True)
    keys = (options.key.encode(),) if options.key else ()
    try:
        serve(make_writer, options.host, options.port, keys, limits, say, functools.partial(print, file=sys.stderr))
    except MtnlgError as error:
        print(f"mtnlg: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
