"""Pages, and WARC files of them, written out by hand."""

SENTENCES = (
    "The river rises in the hills above the town, and for most of the year it is no more than a stream that children can cross. "
    "It is not on the maps that are sold in the shop, and those who live there do not think that it should be.",
    "In spring, when the snow has gone, it takes the bridge with it about once in every ten years, and the people build it again.",
    "Nobody has ever asked why it is not built of stone, because the answer has been known to all of them since they were small.",
)


def PAGE(number: int) -> str:
    """The text of `page`, as trafilatura gives it."""
    return "\n".join([f"Page {number} of the book about the river", *SENTENCES])


def page(number: int) -> bytes:
    paragraphs = "".join(f"<p>{sentence}</p>\n" for sentence in SENTENCES)
    menu = "<nav><ul>" + "".join(f'<li><a href="/{n}">Contact us</a></li>' for n in range(9)) + "</ul></nav>"
    head = f"<html><head><title>Book</title></head><body>{menu}<article><h1>Page {number} of the book about the river</h1>\n"
    return f"{head}{paragraphs}</article><footer>Contact us</footer></body></html>".encode()


def response(body: bytes, *, number: int = 0, headers: bytes = b"Content-Type: text/html; charset=utf-8\r\n", status: bytes = b"200 OK"):
    """(type, number, block) of a record."""
    return "response", number, b"HTTP/1.1 " + status + b"\r\n" + headers + b"\r\n" + body


def warc(records, *, lengths: dict[int, object] | None = None) -> bytes:
    """lengths: by place in `records`, what is said instead of the true length."""
    found = b""
    for place, (kind, number, block) in enumerate(records):
        length = (lengths or {}).get(place, len(block))
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Date: 2021-01-25T00:00:00Z\r\n"
        head += f"WARC-Target-URI: http://a.example/{number}\r\nContent-Length: {length}\r\n\r\n"
        found += head.encode() + block + b"\r\n\r\n"
    return found
