"""From `data.source` to a directory of tokens, once, before training: split, tokenizer, stores, manifest."""

import contextlib
import errno
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator

from mtnlg.core import schema
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, TemporaryFailure
from mtnlg.corpus import manifest, split
from mtnlg.corpus.manifest import Prepared, PreparedSource, PreparedStore
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.store import Store, StoreWriter

_BATCH_BYTES = 4_000_000  # text tokenised at once
_TRAINED = ("bpe", "unigram")


def prepare(config: schema.Config, directory: str | pathlib.Path, *, progress: bool = True) -> Prepared:
    """Tokenises every source into `directory`: NAME.train and NAME.heldout (.bin, .idx, .json), `tokenizer/`, `manifest.json`.

    A directory that is already prepared by the same config and sources is used as it is; a half-finished one is made anew.
    progress: tell on stderr what is done, with a bar where it is a terminal.

    Raises ConfigError (a tokenizer with more than model.vocab_size tokens, or other tokens in the directory), DataError (see
    `sources.documents`, or a damaged directory), MissingInput, CannotWrite, TemporaryFailure (disk full).
    """
    directory = pathlib.Path(directory)
    say = _say if progress else lambda line: None
    given = None if config.data.tokenizer in _TRAINED else _load_tokenizer(config)
    wanted = manifest.fingerprint(config, given and given.sha256)
    prepared = manifest.read(directory, wanted)
    if prepared:
        _require_whole(prepared, directory)
        say(f"{directory}: already prepared, used as it is ({_describe(prepared.sources)})")
        return prepared
    surveys = [split.survey(source, config.data) for source in config.data.source]
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer = given or _train_tokenizer(config, surveys, directory, say)
        path = tokenizer.save(directory / "tokenizer")
        names = split.names(config.data.source)
        made = tuple(_tokenise(name, survey, tokenizer, directory, progress) for name, survey in zip(names, surveys, strict=True))
        prepared = Prepared(path, made)
        manifest.write(directory, prepared, wanted)
    return prepared


def train_text(config: schema.Config, source_name: str) -> Iterator[bytes]:
    """The documents of a source that are trained on, as UTF-8, read from the source again; source_name as in `Prepared`."""
    return _text(config, source_name, heldout=False)


def heldout_text(config: schema.Config, source_name: str) -> Iterator[bytes]:
    """The documents of a source that are held out, as UTF-8, read from the source again; source_name as in `Prepared`."""
    return _text(config, source_name, heldout=True)


def _text(config: schema.Config, source_name: str, heldout: bool) -> Iterator[bytes]:
    source = dict(zip(split.names(config.data.source), config.data.source, strict=True))[source_name]
    for side, text in split.survey(source, config.data).sides():
        if side == heldout:
            yield text.encode()


def _load_tokenizer(config: schema.Config):
    tokenizer = tokenizers.load(config.data.tokenizer)
    size = config.model.vocab_size
    if tokenizer.vocab_size > size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size={size} has room for fewer",
            f"data.tokenizer={config.data.tokenizer}",
            f"--config.model.vocab_size={tokenizer.vocab_size}",
        )
    return tokenizer


def _train_tokenizer(config: schema.Config, surveys: list[split.Survey], directory: pathlib.Path, say):
    data, size = config.data, config.model.vocab_size
    start = time.monotonic()
    tokenizer = tokenizers.train(
        split.sample(surveys, data.tokenizer_train_bytes),
        directory / "tokenizer",
        kind=data.tokenizer,
        vocab_size=size,
        max_bytes=data.tokenizer_train_bytes,
    )
    say(f"tokenizer: {data.tokenizer} with {tokenizer.vocab_size} tokens, trained in {time.monotonic() - start:.0f} s")
    if tokenizer.vocab_size < size:
        say(f"tokenizer: the text is too short for model.vocab_size={size}; tokens {tokenizer.vocab_size} and up will never occur")
    return tokenizer


def _tokenise(name: str, survey: split.Survey, tokenizer, directory: pathlib.Path, progress: bool) -> PreparedSource:
    start = time.monotonic()
    prefixes = [directory / f"{name}.{side}" for side in ("train", "heldout")]
    with contextlib.ExitStack() as stack:
        fits = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
        writers = [stack.enter_context(StoreWriter(prefix, **fits)) for prefix in prefixes]
        bar = stack.enter_context(_bar(name, survey.num_bytes, progress))
        for batch in _batches(survey.sides()):
            for (heldout, text), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
                num_bytes = len(text.encode())
                writers[heldout].add([*ids, tokenizer.eod_id], num_bytes=num_bytes)
                bar.update(num_bytes)
    source = PreparedSource(name, *(_measure(prefix) for prefix in prefixes), survey.drops)
    if progress:
        speed = survey.num_bytes / 1e6 / (time.monotonic() - start)
        left_out = "; left out: " + ", ".join(f"{count} {reason}" for reason, count in survey.drops.items())
        _say(f"{name}: {_describe([source])}, {speed:.1f} MB/s{left_out if survey.drops else ''}")
    return source


def _batches(sides: Iterable[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    """The documents in lists of about _BATCH_BYTES."""
    batch, room = [], _BATCH_BYTES
    for heldout, text in sides:
        batch.append((heldout, text))
        room -= len(text)
        if room <= 0:
            yield batch
            batch, room = [], _BATCH_BYTES
    if batch:
        yield batch


def _measure(prefix: pathlib.Path) -> PreparedStore:
    store = Store(prefix)
    return PreparedStore(prefix, store.num_tokens, store.sidecar["num_bytes"], store.num_documents)


def _require_whole(prepared: Prepared, directory: pathlib.Path) -> None:
    """Raises DataError unless the stores hold what the manifest says."""
    for source in prepared.sources:
        for side in (source.train, source.heldout):
            if _measure(side.prefix) != side:
                raise DataError("the tokens are not those of the manifest", str(side.prefix), f"delete {directory} and start again")


def _bar(name: str, num_bytes: int, progress: bool):
    """A progress bar in MB/s on a terminal, and a silent one elsewhere."""
    from tqdm import tqdm

    return tqdm(total=num_bytes, desc=name, unit="B", unit_scale=True, leave=False, disable=None if progress else True)


def _describe(prepared: Iterable[PreparedSource]) -> str:
    stores = [side for source in prepared for side in (source.train, source.heldout)]
    num_documents, num_bytes, num_tokens = (sum(getattr(s, f"num_{unit}") for s in stores) for unit in ("documents", "bytes", "tokens"))
    return f"{num_documents} documents, {num_bytes / 1e6:.1f} MB, {num_tokens} tokens"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _writing(directory: pathlib.Path):
    """Turns what the file system says into TemporaryFailure (full) or CannotWrite."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TemporaryFailure("the disk is full", str(directory), "free space there and start again") from error
        raise CannotWrite(f"cannot write: {error.strerror or error}", str(directory), "a data.directory you may write to") from error
