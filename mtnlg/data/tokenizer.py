"""Text to token ids and back: SentencePiece models, and BPE as the `tokenizers` library reads it (GPT-2's, `tokenizer.json`)."""

import abc
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from mtnlg.core import files
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.data import byte_level, companions
from mtnlg.data.byte_level import END_OF_DOCUMENT, OTHER_ENDS
from mtnlg.data.companions import Companions

SPACE = "\u2581"  # SentencePiece's spelling of a space
MAX_FILE_BYTES = 50_000_000

_UNKNOWN = "\ufffd".encode()
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class Tokenizer(abc.ABC):
    """vocab_size: ids are below it. eod_id: the id that ends a document. sha256: of the bytes that `save` writes.

    has_dummy_prefix: whether a text gets a space before it. piece_bytes: int64 [vocab_size], of each token.

    start_ids: what the model was trained to see before a text (Llama's <s>), nothing for most. end_ids: where what it writes ends.
    special_ids: of each special token, by its text. companions: what the files beside it say.

    Encoding adds no special tokens and finds none in the text: "<|endoftext|>" there is thirteen characters.
    """

    vocab_size: int
    eod_id: int
    sha256: str
    file_name: str
    start_ids: tuple[int, ...]
    special_ids: dict[str, int]
    companions: Companions

    def __init__(self, content: bytes, where: str, pieces: list[bytes], eod_id: int):
        """start_ids, special_ids and companions are set before. Raises DataError when a start or an end is no token."""
        self.content, self._pieces = content, pieces
        self.vocab_size, self.eod_id = len(pieces), eod_id
        known = (self.special_ids[token] for token in (END_OF_DOCUMENT, *OTHER_ENDS) if token in self.special_ids)
        self.end_ids = frozenset({eod_id, *known, *self.companions.end_ids})
        if (largest := max((*self.end_ids, *self.start_ids))) >= len(pieces):
            what = f"the id {largest} begins or ends a text, and the vocabulary has {len(pieces)} tokens"
            raise DataError(what, f"{where}, or {companions.GENERATION} beside it", "the files of one model")
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.piece_bytes = np.array(list(map(len, pieces)))
        self.has_dummy_prefix = self.decode_bytes(self.encode("a")).startswith(b" ")

    @abc.abstractmethod
    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text. Raises DataError on a string that is not Unicode text (a lone surrogate)."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises DataError on a string that is not Unicode text (a lone surrogate)."""
        return self.encode_batch([text])[0]

    @abc.abstractmethod
    def encode_marked(self, text: str) -> list[int]:
        """The same where a special token's text is that token: for what a chat template writes, never for what a person does."""

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, integers of any kind, made in this thread: for those who run several processes. Raises as above."""
        return [np.array(ids, np.int32) for ids in self.encode_batch(texts)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the pieces, b"" for special tokens; an id alone may give part of a character.

        Raises IndexError on an id outside the vocabulary.
        """
        ids = list(ids)
        if ids and min(ids) < 0:
            raise IndexError(f"id {min(ids)}")
        return b"".join([self._pieces[id] for id in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text, without the space that some models put before it; broken UTF-8 becomes U+FFFD."""
        text = self.decode_bytes(ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.has_dummy_prefix else text

    def save(self, directory) -> pathlib.Path:
        """Writes the tokenizer's one file into the folder and returns its path, and beside it its companions, for `load` of the folder.

        Raises CannotWrite, TemporaryFailure.
        """
        path = pathlib.Path(directory) / self.file_name
        for name, content in {**self.companions.files, self.file_name: self.content}.items():
            _write(path.with_name(name), content)
        return path


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018). Those of `training.train` give any Unicode text back exactly.

    SentencePiece spells a space as U+2581 and so would give a U+2581 of the text back as a space. Such a character is kept apart
    and encoded as its three byte pieces, which every SentencePiece decodes rightly; a model with a dummy prefix or without byte
    pieces cannot do that and keeps its own ways.
    """

    file_name = "tokenizer.model"

    def __init__(self, content: bytes, where: str, beside: Companions = companions.NONE):
        import sentencepiece

        try:
            self._model = model = sentencepiece.SentencePieceProcessor()
            model.load_from_serialized_proto(content)
        except (RuntimeError, ValueError) as error:
            raise DataError("not a SentencePiece model", where, "the whole .model file, copied again") from error
        ids = range(model.get_piece_size())
        self.special_ids = {model.id_to_piece(id): id for id in ids if model.is_control(id)}
        eos_piece = model.id_to_piece(model.eos_id()) if model.eos_id() >= 0 else None
        self.bos_piece = model.id_to_piece(model.bos_id()) if model.bos_id() >= 0 else None
        names = (beside.tokens.get("eos_token"), eos_piece, END_OF_DOCUMENT, *OTHER_ENDS)
        end = next((name for name in names if name in self.special_ids), None)
        if end is None:
            what = f"a model with an eos piece or one of {', '.join((END_OF_DOCUMENT, *OTHER_ENDS))}"
            raise DataError("the model has no end of document", where, what)
        self.companions, bos = beside, beside.tokens.get("bos_token")
        self.start_ids = (self.special_ids[bos],) if beside.adds_bos and bos in self.special_ids else ()
        byte_ids = [model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space_ids = byte_ids if all(map(model.is_byte, byte_ids)) else None
        super().__init__(content, where, [self._piece_bytes(id) for id in ids], self.special_ids[end])
        if self.has_dummy_prefix:
            self._space_ids = None

    def _piece_bytes(self, id: int) -> bytes:
        if self._model.is_control(id):
            return b""
        if self._model.is_unknown(id):
            return _UNKNOWN
        return _spelled_bytes(self._model.id_to_piece(id), self._model.is_byte(id))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        if self._space_ids is None:
            return self._encode_plain(texts)
        parts = [text.split(SPACE) for text in texts]
        encoded = iter(self._encode_plain([part for text in parts for part in text]))
        batch = []
        for text in parts:
            ids = next(encoded)
            for _ in text[1:]:
                ids += self._space_ids + next(encoded)
            batch.append(ids)
        return batch

    def encode_marked(self, text: str) -> list[int]:
        marks = "|".join(map(re.escape, sorted(self.special_ids, key=len, reverse=True)))
        parts = re.split(f"({marks})", text)
        ids = [[self.special_ids[part]] if place % 2 else self.encode(part) for place, part in enumerate(parts)]
        return list(itertools.chain.from_iterable(ids))

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        arrays = self._encode_plain(texts, return_type="numpy", num_threads=1)
        if self._space_ids is not None:
            for place, text in enumerate(texts):
                if SPACE in text:
                    arrays[place] = np.array(self.encode(text), np.int32)
        return arrays

    def _encode_plain(self, texts, **options):
        try:
            return self._model.encode(texts, **options)
        except TypeError as error:
            raise _not_text(error) from error


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` whose tokens spell bytes: byte-level BPE (Radford et al. 2019, section 2.2), or pieces with byte fallback.

    A byte-level vocabulary that lacks bytes which are hardly ever in a text (SmolLM2's: control characters) leaves them out, unseen.
    """

    file_name = "tokenizer.json"

    def __init__(self, content: bytes, where: str, beside: Companions = companions.NONE):
        import tokenizers

        cure = "the whole tokenizer.json, copied again"
        try:
            description = json.loads(content)
            self._model = model = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"not a tokenizer: {error}", where, cure) from error
        model.no_truncation()
        model.no_padding()
        vocabulary = model.get_vocab()
        names = (beside.tokens.get("eos_token"), *map(model.id_to_token, beside.end_ids), END_OF_DOCUMENT, *OTHER_ENDS)
        end = next((token for token in names if token in vocabulary), None)
        if end is None:
            raise DataError("the vocabulary has no end of document", where, f"adding {END_OF_DOCUMENT} to its added_tokens")
        model.add_special_tokens([end])
        model.encode_special_tokens = True

        if max(vocabulary.values()) >= companions.MAX_VOCAB_SIZE:
            raise DataError(f"an id is {max(vocabulary.values())}, above {companions.MAX_VOCAB_SIZE}", where, cure)
        decoders = json.dumps(description.get("decoder"))
        spells_bytes = '"ByteLevel"' in decoders
        if spells_bytes:
            missing = {letter for letter, byte in byte_level.LETTERS.items() if letter not in vocabulary and byte not in byte_level.RARE}
            if missing:
                raise DataError(f"{len(missing)} of the 256 byte letters are not in the vocabulary", where, cure)
        elif '"ByteFallback"' not in decoders:
            raise DataError("tokens neither spell bytes nor fall back to them", where, "a byte-level or byte-fallback tokenizer")
        added = model.get_added_tokens_decoder()
        pieces = [b""] * (max(vocabulary.values()) + 1)
        for token, id in vocabulary.items():
            if id in added:
                pieces[id] = b"" if added[id].special else token.encode()
            else:
                pieces[id] = byte_level.spelled_bytes(token) if spells_bytes else _spelled_bytes(token, bool(_BYTE_PIECE.fullmatch(token)))
        self._engine = byte_level.engine(description) if spells_bytes else None
        self.special_ids = {token.content: id for id, token in added.items() if token.special}
        self.companions = beside
        processed = model.encode("a", add_special_tokens=True)
        before = itertools.takewhile(lambda pair: pair[1], zip(processed.ids, processed.special_tokens_mask, strict=True))
        self.start_ids = tuple(id for id, _ in before) if description.get("post_processor") is not None else ()
        super().__init__(content, where, pieces, vocabulary[end])

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._model.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:
            raise _not_text(error) from error

    def encode_marked(self, text: str) -> list[int]:
        self._model.encode_special_tokens = False
        try:
            return self._model.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise _not_text(error) from error
        finally:
            self._model.encode_special_tokens = True

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        try:
            return list(map(self._encode_fast if self._engine else self._encode_one, texts))
        except (TypeError, UnicodeEncodeError) as error:
            raise _not_text(error) from error

    def _encode_fast(self, text: str) -> np.ndarray:
        try:
            return self._engine.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # its pattern backtracks too far in very long runs of white space
            return self._encode_one(text)

    def _encode_one(self, text: str) -> np.ndarray:
        return np.array(self._model.encode(text, add_special_tokens=False).ids, np.uint32)


def load(path) -> Tokenizer:
    """Reads a SentencePiece model, a `tokenizer.json`, or a folder with one of them or with GPT-2's `vocab.json` and `merges.txt`.

    The companions beside it (`data.companions`) say what comes before a text and where one ends: their eos is the end of a document.

    Raises MissingInput when nothing of that kind is there; DataError when it is damaged, ambiguous or larger than 50 MB.
    """
    path = pathlib.Path(path)
    if path.is_file():
        kind = JsonTokenizer if path.suffix == ".json" else SentencePieceTokenizer
        return kind(_read(path), str(path), companions.read(path.parent))
    models = sorted(path.glob("*.model"))
    if len(models) > 1:
        raise DataError(f"{len(models)} .model files are there", str(path), f"{models[0]}, or another one of them")
    for file in (*models, path / "tokenizer.json"):
        if file.is_file():
            return load(file)
    pair = [path / "vocab.json", path / "merges.txt"]
    if all(file.is_file() for file in pair):
        beside = companions.read(path)
        first = beside.tokens.get("bos_token") if beside.adds_bos else None
        content = byte_level.description(*map(_read, pair), where=", ".join(map(str, pair)), first=first)
        return JsonTokenizer(content, str(path), beside)
    raise MissingInput("no tokenizer is there", str(path), "a .model, a tokenizer.json, or a folder with vocab.json and merges.txt")


def beginning_with_bos(tokenizer: Tokenizer, where: str) -> Tokenizer:
    """The same with companions that say that its bos comes before every text; itself where it is no SentencePiece model, or has none."""
    if not isinstance(tokenizer, SentencePieceTokenizer) or tokenizer.bos_piece is None:
        return tokenizer
    texts = {id: text for text, id in tokenizer.special_ids.items()}
    said = {"add_bos_token": True, "bos_token": tokenizer.bos_piece, "eos_token": texts[tokenizer.eod_id]}
    return SentencePieceTokenizer(tokenizer.content, where, companions.parse({companions.SETTINGS: json.dumps(said).encode()}, where))


def train(texts: Iterable[str], path, *, kind: str, vocab_size: int, max_bytes: int) -> SentencePieceTokenizer:
    """Trains a SentencePiece model on the first max_bytes of the texts and writes it to `path`; see `training.train_model`.

    kind: "bpe" or "unigram". vocab_size: of the model, exactly. Raises DataError, naming a vocab_size that works, when the text is
    too small or too varied for it; CannotWrite, TemporaryFailure.
    """
    from mtnlg.data import training

    content = training.train_model(texts, str(path), kind=kind, vocab_size=vocab_size, max_bytes=max_bytes)
    _write(pathlib.Path(path), content)
    return SentencePieceTokenizer(content, str(path))


def _write(path: pathlib.Path, content: bytes) -> None:
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, content)


def _read(path: pathlib.Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"a tokenizer of more than {MAX_FILE_BYTES} bytes", str(path), "the right file")
    return path.read_bytes()


def _not_text(error) -> DataError:
    return DataError(f"the text is not Unicode: {error}", "text to encode", "removing its lone surrogates")


def _spelled_bytes(piece: str, is_byte: bool) -> bytes:
    """The bytes of a SentencePiece piece, as "<0x0A>" or "▁the"."""
    return bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(SPACE, " ").encode()
