"""The numbers of a run: `metrics.jsonl`, one JSON object a line, and the same as TensorBoard files beside it."""

import json
import math
import pathlib

from mtnlg.core.errors import DataError, MissingInput
from mtnlg.core.files import AppendFile, write_atomic
from mtnlg.run.tensorboard import TensorBoard


class Metrics:
    """Appends to a run's metrics. Every call raises TemporaryFailure if there is no space, CannotWrite if there is no permission."""

    def __init__(self, path, tensorboard: bool = False):
        self._path = pathlib.Path(path)
        self._file = AppendFile(self._path)
        self._tensorboard = TensorBoard(self._path.parent / "tensorboard") if tensorboard else None

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Gives the files back. What was written is safe without it."""
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def write(self, *, step: int, **values) -> None:
        """Adds one line. Values are numbers (also NumPy's and JAX's scalars), words, booleans or None; floats keep every bit.

        JSON has no NaN and no infinity: such a value becomes null, and its name is listed under `non_finite`.
        """
        step, values = int(step), {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
        non_finite = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        line = {"step": step, **values, **dict.fromkeys(non_finite)}
        if non_finite:
            line["non_finite"] = non_finite
        self._file.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        if self._tensorboard:
            self._tensorboard.write(step, values)

    def cut(self, step: int) -> None:
        """Forgets everything after `step` (the step restored; -1: everything) and a last line a crash tore. Call it at every start.

        Raises DataError if a line that is not the last is damaged.
        """
        if self._path.is_file():  # a link to a pipe or a device has no past
            kept = [text for text, line in _whole_lines(self._path) if line["step"] <= step]
            self._file.close()
            write_atomic(self._path, b"".join(kept))
            self._file = AppendFile(self._path)
        if self._tensorboard:
            self._tensorboard.cut(step)


def read(path) -> list[dict]:
    """The lines of a metrics file; a last line without its newline (torn by a crash, or being written now) is left out.

    Raises MissingInput if there is no file, DataError naming the line that is damaged.
    """
    return [line for _, line in _whole_lines(path)]


def _whole_lines(path) -> list[tuple[bytes, dict]]:
    """(the line as it stands, what it says), for each whole line."""
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise MissingInput(f"no metrics here: {error.strerror}", str(path), "the --workdir of an earlier `python -m mtnlg train`") from None
    *whole, _ = content.split(b"\n")
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
            line["step"] + 0
        except (ValueError, KeyError, TypeError):
            raise DataError("damaged line of metrics", f"{path}:{number}", "mend or delete this line") from None
        lines.append((text + b"\n", line))
    return lines
