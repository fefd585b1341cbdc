"""What is raw: files of many kinds in folders nobody has looked through, Python's own library, and data sets of the Hugging Face hub."""

import pathlib
from collections import Counter
from collections.abc import Iterator

from mtnlg.core.errors import ConfigError, DataError
from mtnlg.corpus import sources
from mtnlg.factory import documents, folder, inputs
from mtnlg.factory.documents import Unreadable
from mtnlg.factory.inputs import InputFile, Inputs, Piece
from mtnlg.factory.raw import hub, parquet, warc
from mtnlg.factory.tally import Tally

MAX_RATIO = 200  # bytes that a byte of a packed file may become
PROSE = (".txt", ".text", ".md", ".rst", ".tex")
CODE = (
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cuh", ".java", ".kt", ".scala", ".cs", ".go", ".rs"),
    *(".js", ".mjs", ".jsx", ".ts", ".tsx", ".php", ".rb", ".pl", ".pm", ".lua", ".r", ".jl", ".swift", ".m", ".mm", ".hs", ".ml"),
    *(".mli", ".ex", ".exs", ".erl", ".clj", ".el", ".lisp", ".f", ".f90", ".sh", ".bash", ".sql", ".proto", ".cmake", ".s", ".asm"),
)
SUFFIXES = {"json": (".jsonl", ".ndjson"), "html": (".html", ".htm", ".xhtml"), "warc": (".warc",), "text": (*PROSE, *CODE)}
PARQUET, HUB = "parquet", "hub"
WHOLE = ("text", "html")  # kinds of files that are one record
READ = "JSONL, Parquet, HTML, WARC, text or source code, by the suffixes that python -m mtnlg data extract --help names"


def kind_of(name: str) -> str:
    """What a file is by its name, packed (.gz, .zst) or not; nothing for what is not read."""
    lower = name.lower()
    if lower.endswith(".parquet"):
        return PARQUET
    lower = lower.removesuffix(".gz").removesuffix(".zst")
    return next((kind for kind, suffixes in SUFFIXES.items() if lower.endswith(suffixes)), "")


class RawInputs(Inputs):
    """Records of kind json, html, warc and text. text_field, fields: what Parquet and data sets are asked for.

    `passed_over` counts files of folders that are of no kind that is read, by suffix. Raises MissingInput, ConfigError, DataError.
    """

    def __init__(self, paths: tuple[str, ...], text_field: str, fields: tuple[str, ...]):
        self._columns = (text_field, *(field for field in fields if field != text_field))
        self.passed_over: Counter = Counter()
        super().__init__(paths)

    @property
    def num_bytes(self) -> int | None:
        plain = all(file.kind in SUFFIXES for file in self.files)
        return super().num_bytes if plain else None

    def tally(self) -> Tally:
        """The files, by kind, and those that were passed over."""
        tally = Tally()
        for file in self.files:
            tally.count("files", "not opened" if file.fault else file.kind)
        for suffix, number in self.passed_over.items():
            tally.count("files passed over", suffix, number)
        return tally

    def _identity(self, path: str, files: list[InputFile]):
        if path.startswith(hub.PREFIX):
            return path
        return inputs.stats(files) if path == sources.PYTHON else super()._identity(path, files)

    def _found(self, path: str, name: str) -> list[InputFile]:
        name = sources.printable(name)
        if path.startswith(hub.PREFIX):
            return [InputFile(hub.name_of(path), path, pathlib.Path(path), HUB)]
        if path == sources.PYTHON:
            return [InputFile(name, f"{name}/{file.id}", file.path, "text") for file in sources.files(path)]
        root = self._root(path)
        if not root.is_dir():
            if not root.is_file():
                raise ConfigError(f"{path!r} is no regular file", self._option, READ)
            if not (kind := kind_of(root.name)):
                raise ConfigError(f"{path!r} is nothing that is read", self._option, READ)
            return [InputFile(name, name, root, kind)]
        if (root / folder.DONE).is_file():
            return self._of_stage(root, name)
        if not (found := list(self._in_folder(root, name))):
            raise DataError("there is nothing to read in this folder", path, READ)
        self._require_one_stage(path, found)
        return found

    def _in_folder(self, root: pathlib.Path, name: str) -> Iterator[InputFile]:
        for file in sources.walk(root, lambda one: one not in (folder.QUARANTINE, folder.JOURNAL)):
            kind, id = kind_of(file.path.name), f"{name}/{file.id}"
            if kind or file.path.is_dir():
                yield InputFile(name, id, file.path, kind, fault=inputs.fault_of(file.path, root))
            else:
                self.passed_over[sources.printable(file.path.suffix.lower()) or "none"] += 1

    def _where(self, file: InputFile, number: int) -> str:
        return file.id if file.kind in WHOLE else super()._where(file, number)

    def _pieces(self, file: InputFile) -> Iterator[Piece]:
        if file.fault:
            yield 1, Unreadable(file.fault)
        elif file.kind == HUB:
            yield from enumerate(hub.rows(file.id, self._columns), 1)
        elif file.kind == PARQUET:
            yield from enumerate(parquet.rows(file.path, self._columns, MAX_RATIO), 1)
        else:
            with sources.opened(file.path, MAX_RATIO) as stream:
                yield from _CUTTERS[file.kind](stream)


def _whole(stream) -> Iterator[Piece]:
    content = stream.read(documents.MAX_RECORD_BYTES + 1)
    yield 1, content if len(content) <= documents.MAX_RECORD_BYTES else Unreadable("too long")


_CUTTERS = {"json": inputs.lines, "warc": warc.pieces, "html": _whole, "text": _whole}
