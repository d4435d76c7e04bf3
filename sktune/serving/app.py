"""The routes of a server: answers, adapters, health, metrics, and a page to try it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from sktune import __version__
from sktune.errors import UserError
from sktune.sections import Section
from sktune.serving.adapters import Served, Shelf
from sktune.serving.metrics import NOBODY, Metrics
from sktune.serving.page import HEADERS, PAGE
from sktune.serving.reading import Item, ask
from sktune.serving.waiting import Full, Gone, NotAnswered, Reader
from sktune.tasks import TASKS


class Limits(Section):
    """What a request may hold."""

    texts: int
    characters: int
    """Of a text, and of its second one."""


class Question(BaseModel):
    """What an adapter is asked."""

    model_config = ConfigDict(extra="forbid")

    adapter: str | None = Field(None, description="Which adapter answers; may be left out where there is one only.")
    texts: list[str | list[str]] = Field(
        min_length=1, description="Texts; for an adapter that tags words, each may be a list of words."
    )
    text_pairs: list[str] | None = Field(None, description="The second text of each, for an adapter that reads pairs.")
    max_new_tokens: int | None = Field(None, ge=1, description="Fewer than the adapter writes by itself.")


class Answers(BaseModel):
    """What it says."""

    adapter: str
    answers: list[dict[str, Any]] = Field(description="In the order of the texts; what is in one is up to the task.")
    notes: list[str] = Field(description="Texts that were cut, or are empty.")


class Described(BaseModel):
    """An adapter."""

    name: str
    task: str
    method: str
    labels: list[str] | None
    reads_pairs: bool
    reads_words: bool
    max_new_tokens: int = Field(description="0 where nothing is written.")
    positions: int = Field(description="In front of every text.")
    size: int = Field(description="Bytes that it holds besides the model's.")


class Place(BaseModel):
    """Where an adapter lies."""

    model_config = ConfigDict(extra="forbid")

    folder: str = Field(min_length=1, description="Of a run or an adapter, in the folder that the server was given.")


def build_app(
    shelf: Shelf,
    reader: Reader,
    metrics: Metrics,
    limits: Limits,
    *,
    asks_token: bool = False,
    adapters_folder: Path | None = None,
) -> FastAPI:
    """The application.

    Args:
        shelf: the adapters.
        reader: reads with them; started by the caller.
        metrics: what is counted.
        limits: of a request.
        asks_token: whether the description says that a token is asked for, which `Guard` does.
        adapters_folder: where adapters that are added lie; None: none can be added or removed. Give it only where a
            token is asked for.
    """
    app = FastAPI(
        title=f"sktune: adapters of {shelf.model_name}", version=__version__, docs_url=None, redoc_url=None,
        description="One frozen model and many adapters; each request says which one answers.",
        dependencies=[Depends(HTTPBearer(auto_error=False))] if asks_token else [],
    )  # fmt: skip

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(found[:3])}, 422)

    @app.exception_handler(UserError)
    async def refused(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.post("/predict", responses=_RESPONSES)
    async def predict(question: Annotated[Question, Body(openapi_examples=_questions())]) -> Answers:
        """Answers of one adapter to one or several texts, in their order."""
        started, name, status = time.perf_counter(), NOBODY, 500
        try:
            served = _chosen(shelf, question.adapter)
            name = served.name
            _refuse_too_much(question, limits)
            items = await run_in_threadpool(_items, shelf, served, question)
            reader.ask(items)
            answers = await _answers(items)
            status = 200
            return Answers(adapter=name, answers=answers, notes=[note for item in items for note in item.notes])
        except HTTPException as error:
            status = error.status_code
            raise
        except UserError:
            status = 422
            raise
        except Full:
            status = 503
            raise HTTPException(503, "too many texts are waiting; come again", {"Retry-After": "1"}) from None
        finally:
            metrics.answered(name, status, time.perf_counter() - started)

    @app.get("/adapters")
    async def adapters() -> list[Described]:
        """The adapters that can be asked."""
        return [_described(served) for served in shelf.values()]

    @app.put("/adapters/{name}", status_code=201, responses=_CHANGES)
    async def add(name: str, place: Place) -> Described:
        """Adds an adapter; texts that came before are answered first."""
        folder = _inside(adapters_folder, place.folder)
        if name in shelf:
            raise HTTPException(409, f"there is an adapter {name!r}; remove it first, or choose another name")
        return _described(await asyncio.wrap_future(reader.do(lambda: shelf.add(name, folder))))

    @app.delete("/adapters/{name}", status_code=204, responses=_CHANGES)
    async def remove(name: str) -> None:
        """Takes an adapter away; texts that came before are answered first."""
        _inside(adapters_folder, ".")
        _chosen(shelf, name)
        await asyncio.wrap_future(reader.do(lambda: shelf.remove(name)))

    @app.get("/health", responses={503: {"description": "The server answers no texts."}})
    async def health() -> JSONResponse:
        """Whether texts are answered, and how many wait."""
        alive = reader.is_alive()
        said = {"status": "ok" if alive else "failed", "adapters": len(shelf), "waiting": reader.waiting}
        return JSONResponse(said, 200 if alive else 503)

    @app.get("/metrics", response_class=Response)
    def counted() -> Response:
        """Counts in the form that Prometheus reads."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers=HEADERS)

    return app


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"examples": {}}}},
    401: {"description": "Without the token of this server."},
    404: {"description": "No adapter of this name."},
    413: {"description": "The body is too large."},
    422: {"description": "The question cannot be answered by this adapter, or is longer than allowed."},
    503: {"description": "Too many texts are waiting."},
}
_CHANGES: dict[int | str, dict[str, Any]] = {
    401: _RESPONSES[401],
    403: {"description": "This server's adapters cannot be changed, or not from that folder."},
    404: _RESPONSES[404],
    409: {"description": "There is one of this name."},
}


def _examples() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(task, what is asked, what is answered) for each form of answers of each task."""
    return [(name, dict(asked), dict(shown)) for name in TASKS for asked, shown in TASKS.config(name).shown_as]


def _named(examples: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Examples as OpenAPI names them; a task's second one by a number."""
    found: dict[str, Any] = {}
    for task, value in examples:
        count = sum(key == task or key.startswith(f"{task} ") for key in found)
        found[f"{task} {count + 1}" if count else task] = {"value": value}
    return found


def _questions() -> dict[str, Any]:
    bodies = []
    for task, asked, _ in _examples():
        pair = {"text_pairs": [asked["text_pair"]]} if "text_pair" in asked else {}
        bodies.append((task, {"adapter": "name", "texts": [asked["text"]], **pair}))
    return _named(bodies)


_RESPONSES[200]["content"]["application/json"]["examples"] = _named(
    [(task, {"adapter": "name", "answers": [shown], "notes": []}) for task, _, shown in _examples()]
)


def _chosen(shelf: Shelf, name: str | None) -> Served:
    there = list(shelf)
    if name is None and len(there) == 1:
        (name,) = there
    served = None if name is None else shelf.get(name)
    if served is None:
        said = "name an adapter" if name is None else f"there is no adapter {name!r}"
        raise HTTPException(404, f"{said}; there are: {', '.join(there)}")
    return served


def _refuse_too_much(question: Question, limits: Limits) -> None:
    texts, pairs = question.texts, question.text_pairs
    if len(texts) > limits.texts:
        raise UserError(f"texts: {len(texts)} are too many at once; allowed: {limits.texts} (--max-texts)")
    if pairs is not None and len(pairs) != len(texts):
        raise UserError(f"text_pairs: {len(pairs)} second texts for {len(texts)} texts; give one for each")
    for field, given in (("texts", texts), ("text_pairs", pairs or [])):
        for number, text in enumerate(given):
            length = len(text) if isinstance(text, str) else sum(map(len, text)) + len(text)
            if length > limits.characters:
                allowed = f"allowed: {limits.characters} (--max-characters)"
                raise UserError(f"{field}.{number}: {length} characters are too many; {allowed}")


def _items(shelf: Shelf, served: Served, question: Question) -> list[Item]:
    pairs: Sequence[str | None] = question.text_pairs or [None] * len(question.texts)
    return [
        ask(shelf, served, text, pair, f"texts.{number}", question.max_new_tokens)
        for number, (text, pair) in enumerate(zip(question.texts, pairs, strict=True))
    ]


async def _answers(items: Sequence[Item]) -> list[dict[str, Any]]:
    found = await asyncio.gather(*(asyncio.wrap_future(item.answer) for item in items), return_exceptions=True)
    for one in found:
        if isinstance(one, Gone):
            raise HTTPException(404, str(one))
        if isinstance(one, NotAnswered):
            raise HTTPException(500, "a text was not answered; the server's log says why")
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if isinstance(one, dict)]


def _described(served: Served) -> Described:
    setup = served.setup
    return Described(
        name=served.name,
        task=setup.recipe.task.name,
        method=setup.recipe.method.name,
        labels=None if setup.labels is None else list(setup.labels),
        reads_pairs=served.reads_pairs,
        reads_words=setup.task.reads_words,
        max_new_tokens=setup.task.config.new_tokens,
        positions=setup.model.method.positions,
        size=served.size,
    )


def _inside(allowed: Path | None, folder: str) -> Path:
    """A folder that a request names, where it is in the one that is allowed; links are followed."""
    if allowed is None:
        raise HTTPException(403, "the adapters of this server are fixed; start it with --adapters-folder and a token")
    root = allowed.resolve()
    try:
        found = (root / folder).resolve()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, links in a circle
        raise HTTPException(403, "folder: is no folder of this server's --adapters-folder") from None
    if not found.is_relative_to(root):
        raise HTTPException(403, "folder: is outside of this server's --adapters-folder")
    return found
