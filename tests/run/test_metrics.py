"""Every bit of every number comes back; a crash or a full disk costs at most the line it hit."""

import json
import math
import pathlib
import struct

import numpy as np
import pytest

from mtnlg.core.errors import DataError, MissingInput, TemporaryFailure
from mtnlg.run.metrics import Metrics, read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_floats_keep_every_bit(path):
    values = [0.1, 1 / 3, 1e-308, np.float32(0.1), np.float64(math.pi)]
    with Metrics(path) as metrics:
        for step, value in enumerate(values):
            metrics.write(step=np.int32(step), loss=value, note="warm-up", done=False, nothing=None)
    lines = read(path)
    assert [line["loss"] for line in lines] == [float(value) for value in values]
    assert lines[0] == {"step": 0, "loss": 0.1, "note": "warm-up", "done": False, "nothing": None}


def test_lines_are_there_before_closing(path):
    metrics = Metrics(path)
    metrics.write(step=1, loss=2.5)
    assert path.read_text() == '{"step": 1, "loss": 2.5}\n'


def test_non_finite_numbers_are_null_and_named(path):
    with Metrics(path) as metrics:
        metrics.write(step=1, loss=math.nan, grad_norm=np.float32(math.inf), mfu=0.5)
    (line,) = [json.loads(text, parse_constant=pytest.fail) for text in path.read_text().splitlines()]
    assert line == {"step": 1, "loss": None, "grad_norm": None, "mfu": 0.5, "non_finite": ["loss", "grad_norm"]}


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_asks_to_start_again(path):
    path.symlink_to("/dev/full")
    with Metrics(path) as metrics:
        metrics.cut(0)
        with pytest.raises(TemporaryFailure, match="no room to write: No space left on device") as raised:
            metrics.write(step=1, loss=1.0)
    assert raised.value.exit_code == 75
    assert raised.value.where == str(path)


def test_cut_forgets_later_steps_and_a_torn_line(path):
    with Metrics(path) as metrics:
        for step in (2, 4, 6, 8):
            metrics.write(step=step, loss=1 / step)
            metrics.write(step=step, heldout_loss=0.5)
    before = path.read_bytes().splitlines(keepends=True)
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    with Metrics(path) as metrics:
        metrics.cut(4)
        assert path.read_bytes() == b"".join(before[:4])
        metrics.write(step=6, loss=1.0)
    assert [line["step"] for line in read(path)] == [2, 2, 4, 4, 6]
    with Metrics(path) as metrics:
        metrics.cut(-1)
    assert read(path) == []


def test_reading_leaves_out_a_torn_last_line(path):
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1')
    assert read(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("damage", [b"\x00\x00\xff", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b'{"step": 1}\r{"step": 2}', b""])
def test_a_damaged_line_in_the_middle_is_named_and_kept(path, damage):
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"damaged line of metrics \(.*metrics.jsonl:2\)"):
        read(path)
    before = path.read_bytes()
    with Metrics(path) as metrics, pytest.raises(DataError):
        metrics.cut(3)
    assert path.read_bytes() == before


def test_no_metrics(path):
    with pytest.raises(MissingInput, match="no metrics here: No such file"):
        read(path)


def tensorboard_events(directory):
    """The events of a folder's files, checksums checked."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    for file in sorted(directory.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = content[12 : 12 + length]
            assert struct.unpack("<I", content[8:12]) == (masked_crc32c(content[:8]),)
            assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked_crc32c(event),)
            yield Event.FromString(event)
            content = content[16 + length :]


def test_tensorboard_has_the_numbers_and_hides_what_was_cut(path):
    with Metrics(path, tensorboard=True) as metrics:
        metrics.write(step=7, loss=np.float32(2.5), tokens=4096, note="x", done=True, nothing=None)
        metrics.cut(5)
    first, numbers, purge = tensorboard_events(path.parent / "tensorboard")
    assert first.file_version == "brain.Event:2"
    assert (numbers.step, {value.tag: value.simple_value for value in numbers.summary.value}) == (7, {"loss": 2.5, "tokens": 4096.0})
    assert (purge.step, purge.session_log.status) == (6, purge.session_log.START)


def test_no_tensorboard_files_unless_asked(path):
    Metrics(path).close()
    assert not (path.parent / "tensorboard").exists()
