"""Parquet as lines of JSON: row by row, with the columns that are asked for and no others."""

import functools
import importlib.util
import json
import pathlib
from collections.abc import Iterator

from mtnlg.core import extras
from mtnlg.core.errors import DataError
from mtnlg.corpus import sources
from mtnlg.factory import documents
from mtnlg.factory.documents import Unreadable
from mtnlg.factory.raw import sandbox

_ROWS = 16  # decoded at once: each may be as long as a record
_PAGE_BYTES = 2**20  # read at once
_SHOWN_CHARS = 100  # of a library's message


def rows(path: pathlib.Path, columns: tuple[str, ...], max_ratio: int) -> Iterator[bytes | Unreadable]:
    """The rows of a file as JSON objects. columns: that of the text, which must be there, and others.

    max_ratio: bytes of text for each byte of the file at most, beyond the first 16 MB. Raises DataError, and ConfigError without pyarrow.
    """
    with extras.needed("data"):
        if importlib.util.find_spec("pyarrow") is None:
            raise ImportError(name="pyarrow")
    return sandbox.streamed(functools.partial(_read, path, columns, max_ratio), str(path))


def _read(path: pathlib.Path, columns: tuple[str, ...], max_ratio: int) -> Iterator[bytes | Unreadable]:
    """In a child, for pyarrow ends the process over some damaged footers."""
    import pyarrow
    from pyarrow import parquet

    limit, size = sources.FREE_BYTES + max_ratio * path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path, buffer_size=_PAGE_BYTES) as file:
            found = _columns(file, columns, path, max_ratio)
            for batch in file.iter_batches(_ROWS, columns=found, use_threads=False):
                for row in _rows(batch, found):
                    size += len(row) if isinstance(row, bytes) else 0
                    if size > limit:
                        raise DataError(f"unpacks to more than {max_ratio} times its size", str(path), "another form of it")
                    yield row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        shown = " ".join(str(error).split())[:_SHOWN_CHARS]
        raise DataError(f"damaged or cut short: {shown}", str(path), "a fresh copy of the file") from None


def _columns(file, wanted: tuple[str, ...], path: pathlib.Path, max_ratio: int) -> list[str]:
    """Those of the wanted columns that are there. Raises DataError for a column of text that is none, or that swells."""
    import pyarrow

    schema, text = file.schema_arrow, wanted[0]
    names = [name for name in wanted if schema.names.count(name) == 1]
    if text not in names:
        raise DataError(f"no column {text!r}", str(path), f"--text with one of {', '.join(schema.names[:20])}")
    type = schema.field(text).type
    type = type.value_type if pyarrow.types.is_dictionary(type) else type
    if not (pyarrow.types.is_string(type) or pyarrow.types.is_large_string(type) or pyarrow.types.is_string_view(type)):
        raise DataError(f"column {text!r} is {str(type)[:_SHOWN_CHARS]}, not string", str(path), "--text with a column of strings")
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > sources.FREE_BYTES + max_ratio * column.total_compressed_size:
                raise DataError(f"unpacks to more than {max_ratio} times its size", str(path), "another form of it")
    return names


def _rows(batch, names: list[str]) -> Iterator[bytes | Unreadable]:
    values = [batch.column(name) for name in names]
    for number in range(batch.num_rows):
        try:
            row = {name: column[number].as_py() for name, column in zip(names, values, strict=True)}
            found = {name: value for name, value in row.items() if value is not None and value == value}  # not NaN
            if isinstance(id := found.get("id"), float) and id.is_integer():  # a whole number, in a column with gaps
                found["id"] = int(id)
            content = json.dumps(found, ensure_ascii=False, default=str).encode()
            yield content if len(content) <= documents.MAX_RECORD_BYTES else Unreadable("too long")
        except UnicodeDecodeError:
            yield Unreadable("invalid utf-8")
