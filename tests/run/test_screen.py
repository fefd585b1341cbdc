"""A run goes on when nobody reads what it says."""

import os

from mtnlg.run.screen import Screen


def test_a_reader_that_goes_away(tmp_path):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", buffering=1) as stream:
        screen = Screen(stream)
        print("heard", file=screen, flush=True)
        assert os.read(reader, 100) == b"heard\n"
        os.close(reader)
        for _ in range(3):
            print("not heard", file=screen, flush=True)
        assert screen.encoding == stream.encoding and not screen.isatty()
