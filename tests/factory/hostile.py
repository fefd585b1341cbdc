"""Files that mean harm, by name; `python hostile.py FOLDER` writes them all."""

import gzip
import io
import os
import pathlib
import pickle
import sys
import zipfile

import zstandard
from warcs import page, response, warc

GOOD = b'{"text": "good"}\n'
MB = 10**6


def _jsonl(name: str, content: bytes):
    return lambda root: (root / name).write_bytes(content + b"\n" + GOOD)


def _file(name: str, content: bytes):
    return lambda root: (root / name).write_bytes(content)


def _warc(*records, **options):
    return _file("b.warc", warc([*records, response(page(9), number=9)], **options))


def _document(field: str) -> bytes:
    return b'{"text": "bad", ' + field.encode() + b"}"


class Boom:
    def __reduce__(self):
        return os.system, ("touch canary",)


def _sparse_line(root):
    with (root / "b.jsonl").open("wb") as file:
        file.truncate(100 * MB)
        file.seek(100 * MB)
        file.write(b"\n" + GOOD)


def _zst_bomb(root):
    (root / "b.jsonl.zst").write_bytes(zstandard.compress(bytes(64 * MB)) * 20)


def _zip(root):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../escaped.jsonl", GOOD)
    (root / "b.jsonl.gz").write_bytes(packed.getvalue())


def _table(columns: dict, **options) -> bytes:
    import pyarrow
    from pyarrow import parquet

    written = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), written, **options)
    return written.getvalue()


def _parquet(columns: dict, change=lambda content: content, **options):
    return lambda root: (root / "b.parquet").write_bytes(change(_table(columns, **options)))


def _parquet_dictionary(root):
    import pyarrow

    indices = pyarrow.array([0] * 3000, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(indices, ["x" * 5 * MB])
    (root / "b.parquet").write_bytes(_table({"text": column}, compression="zstd"))


def _parquet_not_utf8(root):
    import pyarrow

    offsets = pyarrow.py_buffer((0).to_bytes(4, "little") + (2).to_bytes(4, "little") + (10).to_bytes(4, "little"))
    column = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"\xff\xfegood too"))
    (root / "b.parquet").write_bytes(_table({"text": column}))


def _odd_names(root):
    for name in (b"b\n.txt", b"b\xff.txt", "b\u202e.txt".encode(), b"b'\";$(reboot).txt", b"b" * 250 + b".txt"):
        with open(os.fsencode(root) + b"/" + name, "wb") as file:
            file.write(b"text of an odd name")


def _loop(root):
    os.symlink("b.txt", root / "c.txt")
    os.symlink("c.txt", root / "b.txt")
    os.symlink(".", root / "circle")


def _unreadable(root):
    (root / "b.txt").write_text("secret")
    os.chmod(root / "b.txt", 0)


def _chunked(body: bytes):
    return response(body, headers=b"Content-Type: text/html\r\nTransfer-Encoding: chunked\r\n")


def _encoded(encoding: bytes, body: bytes):
    return response(body, headers=b"Content-Type: text/html\r\nContent-Encoding: " + encoding + b"\r\n")


def _html(content: bytes):
    return _file("b.html", content)


_PACKED = gzip.compress(GOOD * 3000, mtime=0)
_CRAWL = gzip.compress(warc([response(page(1), number=1)]), mtime=0)
_ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))

# name: (what writes it, reasons in the order in which they are counted)
CASES = {
    "json_depth_bomb": (_jsonl("b.jsonl", b"[" * MB), ["nested too deep"]),
    "json_deep_objects": (_jsonl("b.jsonl", b'{"text": "a", "b": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001), ["nested too deep"]),
    "json_below_the_stack": (_jsonl("b.jsonl", _document('"a": ' + "[" * 900 + "]" * 900)), ["nested too deep"]),
    "json_huge_integer": (_jsonl("b.jsonl", _document('"n": ' + "9" * MB)), ["not JSON"]),
    "json_huge_float": (_jsonl("b.jsonl", _document('"n": 1e999')), ["not JSON"]),
    "json_nan": (_jsonl("b.jsonl", _document('"n": NaN')), ["not JSON"]),
    "json_infinity": (_jsonl("b.jsonl", _document('"n": -Infinity')), ["not JSON"]),
    "json_duplicate_keys": (_jsonl("b.jsonl", b'{"text": 1, "id": "twice", "text": "the last counts"}'), []),
    "json_text_is_a_number": (_jsonl("b.jsonl", b'{"text": 7}'), ["no text"]),
    "json_text_is_null": (_jsonl("b.jsonl", b'{"text": null}'), ["no text"]),
    "json_id_is_a_list": (_jsonl("b.jsonl", _document('"id": []')), ["an id that is no word or number"]),
    "json_array": (_jsonl("b.jsonl", b'["text"]'), ["not a JSON object"]),
    "json_millions_of_objects": (_jsonl("b.jsonl", _document('"a": [' + '{"":0},' * 1_400_000 + "0]")), []),
    "json_not_utf8": (_jsonl("b.jsonl", b'{"text": "\xff\xfe"}'), ["invalid utf-8"]),
    "json_utf16": (lambda root: (root / "b.jsonl").write_bytes('{"text": "wide"}\n'.encode("utf-16") * 2), None),
    "json_byte_order_mark": (_file("b.jsonl", b"\xef\xbb\xbf" + GOOD), []),
    "json_lone_surrogates": (_jsonl("b.jsonl", b'{"text": "\\ud800"}'), ["lone surrogates"]),
    "json_nul_in_a_string": (_jsonl("b.jsonl", b'{"text": "a\0b"}'), ["not JSON"]),
    "json_nothing_but_nul": (_jsonl("b.jsonl", bytes(MB)), None),
    "json_line_of_11_mb": (_jsonl("b.jsonl", b'{"text": "' + b"a" * 11 * MB + b'"}'), ["too long"]),
    "json_line_of_100_mb": (_sparse_line, ["too long"]),
    "json_carriage_returns": (_file("b.jsonl", GOOD.replace(b"\n", b"\r") * 3), ["not JSON"]),
    "json_empty": (_file("b.jsonl", b""), []),
    "json_is_a_pickle": (_file("b.jsonl", pickle.dumps(Boom())), None),
    "gz_bomb": (_file("b.jsonl.gz", gzip.compress(bytes(300 * MB), 1)), ["from here on: unpacks to more than 200 times its size"]),
    "gz_bomb_of_lines": (_file("b.jsonl.gz", gzip.compress(b"\n" * 100 * MB)), ["from here on: unpacks to more than 200 times its size"]),
    "zst_bomb": (_zst_bomb, ["from here on: unpacks to more than 200 times its size"]),
    "gz_cut_short": (_file("b.jsonl.gz", _PACKED[:-20]), ["from here on: damaged or cut short"]),
    "gz_with_garbage_behind": (_file("b.jsonl.gz", _PACKED + b"garbage"), ["from here on: damaged or cut short"]),
    "gz_in_gz": (_file("b.txt.gz", gzip.compress(_PACKED)), ["invalid utf-8"]),
    "gz_is_a_zip": (_zip, ["from here on: damaged or cut short"]),
    "gz_empty": (_file("b.jsonl.gz", b""), []),
    "zst_cut_short": (_file("b.jsonl.zst", zstandard.compress(GOOD * 3000)[:-3]), ["from here on: damaged or cut short"]),
    "zst_with_garbage_behind": (_file("b.jsonl.zst", zstandard.compress(GOOD) + b"garbage"), ["from here on: damaged or cut short"]),
    "parquet_cut_short": (_parquet({"text": ["a"] * 99}, lambda c: c[: len(c) // 2]), ["from here on: damaged or cut short"]),
    "parquet_damaged_footer": (_parquet({"text": ["a"] * 99}, lambda c: c[:-60] + bytes(52) + c[-8:]), ["from here on: damaged or cut"]),
    "parquet_footer_of_4_gb": (_parquet({"text": ["a"]}, lambda c: c[:-8] + b"\xff\xff\xff\xff" + c[-4:]), ["from here on: damaged or"]),
    "parquet_that_ends_pyarrow_26": (  # by abort(), over the length of a histogram
        _parquet({"text": ["a"] * 99, "n": [[1, 2]] * 99}, lambda c: c[:-597] + b"8" + c[-596:]),
        ["from here on: "],
    ),
    "parquet_damaged_page": (
        _parquet({"text": ["a" * 999]}, lambda c: c[:10] + b"\xff" * 40 + c[50:]),
        ["from here on: damaged or cut short"],
    ),
    "parquet_empty": (_file("b.parquet", b""), ["from here on: damaged or cut short"]),
    "parquet_is_text": (_file("b.parquet", GOOD * 99), ["from here on: damaged or cut short"]),
    "parquet_no_such_column": (_parquet({"body": ["a"]}), ["from here on: no column 'text'"]),
    "parquet_numbers": (_parquet({"text": [1, 2]}), ["from here on: column 'text' is int64, not string"]),
    "parquet_nested": (_parquet({"text": [{"text": "a"}]}), ["from here on: column 'text' is struct"]),
    "parquet_not_utf8": (_parquet_not_utf8, ["invalid utf-8"]),
    "parquet_bomb": (_parquet({"text": ["a" * 9 * MB] * 30}, compression="zstd", use_dictionary=False), ["from here on: unpacks to more"]),
    "parquet_bomb_of_a_dictionary": (_parquet_dictionary, ["from here on: unpacks to more than 200 times its size"]),
    "warc_length_too_large": (_warc(response(page(1)), lengths={0: 2000}), None),
    "warc_length_beyond_the_file": (_warc(response(page(1)), lengths={0: MB}), ["from here on: the file ends inside a WARC record"]),
    "warc_length_of_10_18": (_warc(response(page(1)), lengths={0: 10**18}), ["from here on: the file ends inside a WARC record"]),
    "warc_length_too_small": (_warc(response(page(1)), lengths={0: 300}), ["no WARC record where one should begin"]),
    "warc_length_is_negative": (_warc(response(b"x"), lengths={0: -5}), ["a WARC record without a length", "no WARC record where"]),
    "warc_length_is_a_word": (_warc(response(b"x"), lengths={0: "²"}), ["a WARC record without a length", "no WARC record where"]),
    "warc_cut_short": (_file("b.warc.gz", _CRAWL[:-40]), ["from here on: damaged or cut short"]),
    "warc_is_garbage": (_file("b.warc", bytes(range(256)) * 4000), ["no WARC record where one should begin"]),
    "warc_endless_header": (
        _file("b.warc", b"WARC/1.0\r\nX: " + b"a" * 30 * MB),
        ["a WARC record without a length", "no WARC record where"],
    ),
    "warc_endless_headers": (
        _file("b.warc", b"WARC/1.0\r\n" + b"a: b\r\n" * MB),
        ["a WARC record without a length", "no WARC record where"],
    ),
    "warc_is_not_http": (_warc(("response", 1, b"GET me out of here\r\n\r\n")), ["no HTTP response"]),
    "http_thousands_of_headers": (_warc(response(b"x", headers=b"A: b\r\n" * 5000)), ["HTTP headers that cannot be read"]),
    "http_long_header": (_warc(response(b"x", headers=b"A: " + b"b" * MB + b"\r\n")), ["HTTP headers that cannot be read"]),
    "http_chunked_nonsense": (_warc(_chunked(b"fffffff\r\n" + page(1))), []),
    "http_chunked_but_is_not": (_warc(_chunked(page(1))), []),
    "http_gzip_but_is_not": (_warc(_encoded(b"gzip", page(1))), []),
    "http_gzip_bomb": (_warc(_encoded(b"gzip", gzip.compress(bytes(300 * MB), 1))), ["too long"]),
    "http_unknown_encoding": (_warc(_encoded(b"br", b"\x0b\x02")), ["a content encoding that is not known"]),
    "html_a_million_divs": (_html(b"<div>" * 59_000 + b"deep"), []),
    "html_more_tags_than_any_page": (_html(b"<p>a" * MB), ["more than 60000 tags"]),
    "html_bold_in_bold": (_html(b"<p><b>" * 29_000 + b"deep"), []),
    "html_attributes": (_html(b"<div " + b" ".join(b"a%d" % n for n in range(300_000)) + b">"), ["takes the parser too long"]),
    "html_entity_bomb": (_html(f'<!DOCTYPE html [<!ENTITY e0 "ha">{_ENTITIES}]><p>&e11;</p>'.encode()), []),
    "html_one_long_word": (_html(b"<p>" + b"w" * 9 * MB), []),
    "html_charset_is_a_trap": (_html(b'<meta charset="unicode_escape"><p>\\N{BULLET}</p>' + page(1)), []),
    "html_half_characters": (_html(b"<p>&#xD800;&#55296;&#x110000;&#0;</p>" + page(1)), []),
    "html_is_binary": (_html(bytes(range(256)) * 4000), []),
    "text_of_11_mb": (_file("b.txt", b"a" * 11 * MB), ["too long"]),
    "text_not_utf8": (_file("b.txt", b"caf\xe9"), ["invalid utf-8"]),
    "text_is_binary": (_file("b.txt", b"\x7fELF\0\0\0"), ["no text, but bytes"]),
    "text_empty": (_file("b.txt", b""), []),
    "file_names": (_odd_names, []),
    "file_links_in_a_circle": (_loop, ["a link that leads nowhere", "a link to a folder"]),
    "file_link_out": (lambda root: os.symlink("/etc/passwd", root / "b.txt"), ["a link that leads out of the folder"]),
    "file_is_a_fifo": (lambda root: os.mkfifo(root / "b.jsonl"), ["no regular file"]),
    "file_is_a_folder": (lambda root: (root / "b.jsonl").mkdir(), []),
    "file_without_permission": (_unreadable, None),
}


def write_all(folder: pathlib.Path) -> None:
    """Each case in a folder of its own, between two good files."""
    for name, (write, _) in CASES.items():
        root = folder / name
        root.mkdir()
        for good in ("a.jsonl", "z.jsonl"):
            (root / good).write_bytes(GOOD)
        write(root)


if __name__ == "__main__":
    write_all(pathlib.Path(sys.argv[1]))
