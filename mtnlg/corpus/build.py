"""From `data.source` to a directory of tokens, once, before training: split, tokenizer, stores, manifest."""

import contextlib
import hashlib
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator

from mtnlg.core import files, lock, schema
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.corpus import manifest, split, tokens
from mtnlg.corpus.manifest import Prepared, PreparedSource, PreparedStore
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.store import Store, StoreWriter, paths
from mtnlg.data.tokenizer import Tokenizer

_BATCH_BYTES = 4_000_000  # text tokenised at once
_TRAINED = ("bpe", "unigram")


def prepare(config: schema.Config, directory: str | pathlib.Path, *, progress: bool = True) -> Prepared:
    """Tokenises every source into `directory`: NAME.train and NAME.heldout (.bin, .idx, .json), `tokenizer/`, `manifest.json`.

    A directory that is already prepared by the same config and sources is used as it is; a half-finished one is made anew. While
    another process prepares it, we wait and then look again.
    progress: tell on stderr what is done, with a bar where it is a terminal.

    Raises ConfigError (a tokenizer with more than model.vocab_size tokens, or other tokens in the directory), DataError (see
    `sources.documents`, or a damaged directory), MissingInput, CannotWrite, TemporaryFailure (disk full).
    """
    directory = pathlib.Path(directory)
    say = _say if progress else lambda line: None
    given = None if config.data.tokenizer in _TRAINED else _load_tokenizer(config)
    wanted = manifest.fingerprint(config, given and given.sha256)
    if prepared := _already(directory, wanted, say):
        return prepared
    files.make_folder(directory)
    with lock.held(directory / "lock", lambda owner: say(f"{directory}: waiting for {owner}, which prepares it")):
        return _already(directory, wanted, say) or _build(config, directory, given, wanted, say, progress)


def _already(directory: pathlib.Path, wanted: dict, say) -> Prepared | None:
    """What an earlier call finished, if it did. It needs no lock: the manifest comes last and at once."""
    prepared = manifest.read(directory, wanted)
    if prepared:
        _require_whole(prepared, directory)
        say(f"{directory}: already prepared, used as it is ({_describe(prepared.sources)})")
    return prepared


def _build(config: schema.Config, directory: pathlib.Path, given: Tokenizer | None, wanted: dict, say, progress: bool) -> Prepared:
    surveys = [_survey(source, config, given) for source in config.data.source]
    if given:
        tokenizer, path = given, given.save(directory / "tokenizer")
    else:
        tokenizer, path = _train_tokenizer(config, surveys, directory / "tokenizer" / "tokenizer.model", say)
    if tokenizer.vocab_size < config.model.vocab_size:
        say(f"tokenizer: {tokenizer.vocab_size} tokens; the others of model.vocab_size={config.model.vocab_size} will never occur")
    pairs = zip(split.names(config.data.source), surveys, strict=True)
    prepared = Prepared(path, tuple(_tokenise(name, survey, tokenizer, directory, progress) for name, survey in pairs))
    manifest.write(directory, prepared, wanted)
    return prepared


def _survey(source: str, config: schema.Config, given: Tokenizer | None) -> split.Survey | tokens.Source:
    if not tokens.is_folder(source):
        return split.survey(source, config.data)
    if given is None:
        what, cure = (
            "a source of tokens, and a tokenizer that is still to be trained",
            f"--config.data.tokenizer={source}/{tokens.TOKENIZER}",
        )
        raise ConfigError(what, f"data.source={source}", cure)
    return tokens.Source(source, given, config.data.heldout_fraction)


def train_text(config: schema.Config, source_name: str) -> Iterator[bytes]:
    """The documents of a source that are trained on, as UTF-8, read from the source again; source_name as in `Prepared`."""
    return _text(config, source_name, heldout=False)


def heldout_text(config: schema.Config, source_name: str) -> Iterator[bytes]:
    """The documents of a source that are held out, as UTF-8, read from the source again; source_name as in `Prepared`."""
    return _text(config, source_name, heldout=True)


def _text(config: schema.Config, source_name: str, heldout: bool) -> Iterator[bytes]:
    source = dict(zip(split.names(config.data.source), config.data.source, strict=True))[source_name]
    if tokens.is_folder(source):
        found = tokens.Source(source, tokenizers.load(config.data.tokenizer), config.data.heldout_fraction)
        yield from (text.encode() for text in found.texts(heldout))
        return
    for side, text in split.survey(source, config.data).sides():
        if side == heldout:
            yield text.encode()


def _load_tokenizer(config: schema.Config) -> Tokenizer:
    tokenizer = tokenizers.load(config.data.tokenizer)
    size = config.model.vocab_size
    if tokenizer.vocab_size > size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size={size} has room for fewer",
            f"data.tokenizer={config.data.tokenizer}",
            f"--config.model.vocab_size={tokenizer.vocab_size}",
        )
    return tokenizer


def _train_tokenizer(config: schema.Config, surveys: list[split.Survey], path: pathlib.Path, say) -> tuple[Tokenizer, pathlib.Path]:
    data, size = config.data, config.model.vocab_size
    start = time.monotonic()
    texts = split.sample(surveys, data.tokenizer_train_bytes)
    tokenizer = tokenizers.train(texts, path, kind=data.tokenizer, vocab_size=size, max_bytes=data.tokenizer_train_bytes)
    say(f"tokenizer: {data.tokenizer} with {tokenizer.vocab_size} tokens, trained in {time.monotonic() - start:.0f} s")
    return tokenizer, path


def _tokenise(
    name: str, survey: split.Survey | tokens.Source, tokenizer: Tokenizer, directory: pathlib.Path, progress: bool
) -> PreparedSource:
    start = time.monotonic()
    prefixes = [directory / f"{name}.{side}" for side in ("train", "heldout")]
    write = _copy_tokens if isinstance(survey, tokens.Source) else _encode_text
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(tokens.writer(prefix, tokenizer)) for prefix in prefixes]
        write(survey, tokenizer, writers, stack.enter_context(_bar(name, survey.num_bytes, progress)))
    source = PreparedSource(name, *(_measure(prefix, tokenizer) for prefix in prefixes), survey.drops)
    if progress:
        speed = survey.num_bytes / 1e6 / (time.monotonic() - start)
        left_out = "; left out: " + ", ".join(f"{count} {reason}" for reason, count in survey.drops.items())
        _say(f"{name}: {_describe([source])}, {speed:.1f} MB/s{left_out if survey.drops else ''}")
    return source


def _encode_text(survey: split.Survey, tokenizer: Tokenizer, writers: list[StoreWriter], bar) -> None:
    for batch in _batches(survey.sides()):
        for (heldout, text), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
            num_bytes = len(text.encode())
            writers[heldout].add([*ids, tokenizer.eod_id], num_bytes=num_bytes)
            bar.update(num_bytes)


def _copy_tokens(source: tokens.Source, tokenizer: Tokenizer, writers: list[StoreWriter], bar) -> None:
    for heldout, chunk in source.sides():
        num_bytes = chunk.num_bytes(tokenizer)
        writers[heldout].extend(chunk.ids, chunk.lengths, num_bytes)
        bar.update(num_bytes)


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


def _measure(prefix: pathlib.Path, tokenizer: Tokenizer) -> PreparedStore:
    """What a store holds. Raises DataError when another tokenizer made it, or its sidecar is gone."""
    store = Store(prefix, vocab_size=tokenizer.vocab_size)
    if not store.sidecar or store.sidecar["tokenizer_sha256"] != tokenizer.sha256:
        raise DataError("the tokens are not of the tokenizer beside them", str(prefix), "--config.data.directory=NEW_FOLDER")
    digests = (_sha256(path) for path in paths(prefix)[:2])
    return PreparedStore(prefix, store.num_tokens, store.sidecar["num_bytes"], store.num_documents, *digests)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_whole(prepared: Prepared, directory: pathlib.Path) -> None:
    """Raises DataError, naming the file, or MissingInput, unless tokenizer and stores are what the manifest says, byte for byte."""
    tokenizer = tokenizers.load(prepared.tokenizer)
    for source in prepared.sources:
        for side in (source.train, source.heldout):
            found = _measure(side.prefix, tokenizer)
            if found != side:
                where = _differing_file(found, side)
                raise DataError("the tokens are not those of the manifest", where, f"delete {directory} and start again")


def _differing_file(found: PreparedStore, expected: PreparedStore) -> str:
    told_by = zip(paths(found.prefix), ("bin_sha256", "idx_sha256", "num_bytes"), strict=True)
    return next((str(path) for path, key in told_by if getattr(found, key) != getattr(expected, key)), str(found.prefix))


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
