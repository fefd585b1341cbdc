"""The routes: OpenAI's endpoints, the page and what a supervisor asks. `gate.py` stands before them."""

import asyncio
import pathlib
import time
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mtnlg.serve import answer, ask, events, metrics, refusal
from mtnlg.serve.answer import Answer
from mtnlg.serve.ask import Asked
from mtnlg.serve.exchange import Exchange
from mtnlg.serve.page_files import page_files
from mtnlg.serve.refusal import Refusal
from mtnlg.serve.service import Service
from mtnlg.serve.writer import Piece, Writer

PAGE = page_files(pathlib.Path(__file__).parent / "page")
OPEN_PATHS = frozenset(["/health", "/ready", *PAGE])  # read without a key
_CLIENT_GONE = 499  # nginx's word for it; nobody receives it


def make(service: Service) -> Starlette:
    """The ASGI application, without its gate."""
    handlers = {Refusal: _refused, HTTPException: _no_route, events.Gone: _gone, ClientDisconnect: _gone, Exception: _failed}
    app = Starlette(routes=_routes(service), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def _routes(service: Service) -> list[Route]:
    born = int(time.time())

    def described(writer: Writer) -> dict:
        about = {"context": writer.context, "can_chat": writer.can_chat}
        return {"id": writer.name, "object": "model", "created": born, "owned_by": "mtnlg", **about}

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [described(service.at_work())]})

    async def model(request: Request) -> Response:
        writer = service.at_work()
        ask.check_model(request.path_params["name"], writer)
        return _json(described(writer))

    async def measured(request: Request) -> Response:
        return Response(service.metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})

    async def health(request: Request) -> Response:
        return _json({"status": "alive"})

    async def ready(request: Request) -> Response:
        service.at_work()
        return _json({"status": "ready"})

    return [
        Route("/v1/completions", _text(service, ask.completion, answer.Completion), methods=["POST"]),
        Route("/v1/chat/completions", _text(service, ask.chat, answer.Chat), methods=["POST"]),
        Route("/v1/embeddings", _embeddings(service), methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/metrics", measured),
        Route("/health", health),
        Route("/ready", ready),
        *(Route(path, _file(*held)) for path, held in PAGE.items()),
    ]


def _text(service: Service, read: Callable[..., Asked], form: type[Answer]) -> Callable:
    """Of an endpoint that writes: whole, or as events."""

    async def prepare(body: bytes) -> Answer:
        asked = await service.read(read, body)
        writer = service.at_work()
        return form(asked, writer.name, await _echoes(service, writer, asked) if asked.echo else ())

    async def whole(told: Answer, exchange: Exchange | None) -> dict:
        if exchange:
            async for deltas in exchange.deltas():
                for delta in deltas:
                    told.take(delta)
        return told.whole()

    async def parts(told: Answer, exchange: Exchange | None) -> AsyncIterator[list[dict]]:
        yield told.first()
        if exchange:
            async for deltas in exchange.deltas():
                yield [told.chunk(delta) for delta in deltas]
        yield told.last()

    async def handle(request: Request) -> Response | events.EventStream:
        body = await _body(request)
        until_secs = asyncio.get_running_loop().time() + service.limits.deadline_secs
        told = await _in_time(prepare(body), request, until_secs)
        exchange = Exchange(service, told.asked.job) if told.asked.job else None
        close = exchange.close if exchange else lambda: None
        if told.asked.stream:
            return events.EventStream(parts(told, exchange), until_secs, close)
        try:
            return _json(await _in_time(whole(told, exchange), request, until_secs))
        finally:
            close()

    return handle


async def _echoes(service: Service, writer: Writer, asked: Asked) -> list[tuple[str, list[Piece]]]:
    """Of each prompt its text, as it was sent if all of it is read, and its tokens if their log-probabilities were asked for."""
    echoes = []
    for prompt in asked.prompts:
        text, pieces = prompt.text if prompt.cut is None else None, []
        if text is None or asked.num_likeliest is not None:
            pieces = await service.call(writer.score, prompt.ids, asked.num_likeliest or 0)
        if text is None:
            text = b"".join(piece.bytes for piece in pieces).decode(errors="replace")
        echoes.append((text, pieces))
    return echoes


def _embeddings(service: Service) -> Callable:
    async def work(body: bytes) -> dict:
        texts, as_base64 = await service.read(ask.embeddings, body)
        writer = service.at_work()
        vectors_TD, num_tokens = await service.call(writer.embed, texts)
        return answer.vectors(vectors_TD, num_tokens, writer.name, as_base64)

    async def handle(request: Request) -> Response:
        body = await _body(request)
        until_secs = asyncio.get_running_loop().time() + service.limits.deadline_secs
        return _json(await _in_time(work(body), request, until_secs))

    return handle


async def _body(request: Request) -> bytes:
    """Raises Refusal. A page of another site cannot send this type without asking first, and is not answered."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the body must be application/json", "unsupported_media_type")
    return await request.body()


async def _in_time(work, request: Request, until_secs: float):
    """What the coroutine returns. Raises Refusal after the deadline, Gone when the client leaves."""
    try:
        async with asyncio.timeout_at(until_secs):
            return await events.unless_gone(work, request.receive)
    except TimeoutError:
        raise events.too_late() from None


def _json(told: dict) -> Response:
    return Response(events.encode(told), media_type="application/json")


def _file(content: bytes, media_type: str, headers: dict[str, str]) -> Callable:
    async def handle(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return handle


async def _refused(request: Request, refused: Refusal) -> Response:
    headers = {name.decode(): value.decode() for name, value in refused.headers}
    return Response(refused.body(), refused.status, headers, "application/json")


async def _no_route(request: Request, error: HTTPException) -> Response:
    refused = Refusal(error.status_code, "there is nothing at this path", "not_found")
    if error.status_code == 405:
        refused = Refusal(405, "use POST" if "POST" in error.headers["Allow"] else "use GET", "method_not_allowed")
    return Response(refused.body(), refused.status, error.headers, "application/json")


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _failed(request: Request, error: Exception) -> Response:
    """Of a fault in this code, which the gate writes into the log."""
    return await _refused(request, refusal.internal())
