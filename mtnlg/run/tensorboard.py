"""TensorBoard's event files, written in step with the training loop.

tensorboardX has the format; its own writer is a thread that dies on a full disk without a word, after which writing to it blocks for ever.
"""

import os
import pathlib
import socket
import struct
import time

from mtnlg.core.files import AppendFile, make_folder


class TensorBoard:
    """Scalars for TensorBoard, a new file at every start. Raises TemporaryFailure (no space) or CannotWrite."""

    def __init__(self, directory):
        directory = pathlib.Path(directory)
        make_folder(directory)
        self._file = AppendFile(directory / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}")
        self._append(file_version="brain.Event:2")

    def write(self, step: int, values: dict) -> None:
        """Adds the numbers among `values`; words, booleans and None are not for plots."""
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
        self._append(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]))

    def cut(self, step: int) -> None:
        """Tells TensorBoard to hide what earlier files hold after `step`."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self._append(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()

    def _append(self, **fields) -> None:
        """Adds one event as a TFRecord: length, checksum of the length, event, checksum of the event."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        self._file.append(length + struct.pack("<I", masked_crc32c(length)) + event + struct.pack("<I", masked_crc32c(event)))
