"""The page's files as answers: read once, from a list that is fixed when the server starts."""

import mimetypes
import pathlib

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def page_files(folder: pathlib.Path) -> dict[str, tuple[bytes, str, dict[str, str]]]:
    """Path -> (content, media type, headers) of each file in the folder; index.html is `/`."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found[path] = file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream", _HEADERS
    return found
