"""``reposer serve``: the page's server. It answers this machine alone, and only who knows the token.

Every address begins with a random token, new at each start. Each request is held against the host names
that lead here (a foreign name that resolves to this machine, DNS rebinding, is refused), against the origin
that it says it comes from, and against a size; each answer forbids the browser everything from elsewhere. A
page asks by ids and numbers: no path of a client's reaches the disk. Nothing that is uploaded is written, or
leaves.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hmac
import logging
import math
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import StrictInt

from reposer.errors import LARGEST, UserError
from reposer.report import report_sections
from reposer.storage.paths import folder_name, no_folder, printable, printable_lines
from reposer.structures import NUM_JOINTS
from reposer.workflows.review import ANNOTATED, AUGMENTED, GENERATED, PAGE, Library, Wanted

if TYPE_CHECKING:  # it needs torch, which takes 500 MB, and is opened when somebody is to be posed
    from reposer.workflows.studio import Studio

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "::")  # every address of this machine
MAX_BODY = 1 << 16  # bytes of a request
MAX_UPLOAD = 20_000_000  # bytes of a photo
_LONGEST_PATH = 2_000  # characters of an address, its query included
_PATIENCE = 30.0  # seconds that a request's body may take
_MOST_AT_ONCE = 32  # connections
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
PAGE_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
    "pose.js": ("pose.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_MAGIC = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png", b"RI": "image/webp", b"BM": "image/bmp"}


class _RefusedBodyError(Exception):
    """A body that is larger, or slower, than is allowed."""


class Guard:
    """Refuses what does not come from our own page; strips the token; bounds bodies; sets the headers.

    Args:
        app: answers what is left.
        token: the first part of every address.
        hosts: values of the header Host that lead here, with the port.
    """

    def __init__(self, app: App, token: str, hosts: frozenset[str]) -> None:
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """An ASGI application; anything but HTTP is closed without a word."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                kept = [pair for pair in message.get("headers", ()) if pair[0].decode() not in HEADERS]
                message = {**message, "headers": [*kept, *ours]}
            await send(message)

        refused = self._refusal(scope)
        if refused is not None:
            await _say(*refused, protected)
            return
        path = scope["path"][len(self._token) + 1 :]
        inner = {**scope, "path": path, "raw_path": path.encode(), "root_path": ""}
        body = _Body(receive, _most(scope))

        async def unless_refused(message: Message) -> None:
            if body.refused is None:
                await protected(message)

        with suppress(_RefusedBodyError):  # where the application lets it through
            await self._app(inner, body.read, unless_refused)
        if body.refused is not None:
            await _say(*body.refused, protected)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Status and reason where a request is not answered."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if len(headers.get("host", ())) != 1 or headers["host"][0].lower() not in self._hosts:
            return 421, "this server answers to the address that it printed, and to no other name"
        origins = headers.get("origin", [])
        own = f"http://{headers['host'][0].lower()}"
        foreign = any(origin.lower() != own for origin in origins)
        if foreign or any(site not in ("same-origin", "none") for site in headers.get("sec-fetch-site", ())):
            return 403, "requests of other pages are not answered"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET, HEAD and POST are answered"
        if scope["method"] == "POST" and not origins:
            return 403, "a request that changes something must say which page it comes from"
        if len(scope["path"]) + len(scope["query_string"]) > _LONGEST_PATH:
            return 414, "the address is too long"
        first, slash, _ = scope["path"].removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(first.encode(), self._token.encode()):
            return 404, "open the whole address that `reposer serve` printed; it is another one at each start"
        lengths = headers.get("content-length", [])
        if any(not (length.isascii() and length.isdigit()) for length in lengths) or len(lengths) > 1:
            return 400, "the length of the request is no number"
        if any(len(length) > 12 or int(length) > _most(scope) for length in lengths):
            return 413, f"larger than the {_most(scope):,} bytes that are taken"
        return None


class _Body:
    """What a request sends, up to a size and for a time."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._taken, self._whole = receive, most, 0, False
        self._ends = asyncio.get_running_loop().time() + _PATIENCE
        self.refused: tuple[int, str] | None = None  # the application, told by an error, answers in vain

    async def read(self) -> Message:
        """The next message of the client's."""
        if self._whole:
            return await self._receive()  # waits for the end of the connection
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._receive()
        except TimeoutError as error:
            self.refused = (408, "the request took too long")
            raise _RefusedBodyError from error
        self._taken += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._taken > self._most:
            self.refused = (413, f"larger than the {self._most:,} bytes that are taken")
            raise _RefusedBodyError
        return message


def _most(scope: Message) -> int:
    return MAX_UPLOAD if scope["path"].partition("/api/")[2] == "people" else MAX_BODY


async def _say(status: int, reason: str, send: Send) -> None:
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


# ---- what is answered


def make_app(library: Library, studio: Callable[[], Studio] | None = None) -> FastAPI:
    """The page and what it asks for, without :class:`Guard`.

    Args:
        library: what can be looked at.
        studio: opens it at the first call, who can be posed; None: nobody.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)  # their pages load scripts from elsewhere
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(Exception, _own_fault)
    _add_page(app)
    _add_sets(app, library)
    _add_reports(app, library)
    if studio is not None:
        _add_studio(app, library, studio)
    return app


def _add_page(app: FastAPI) -> None:
    folder = files("reposer.assets").joinpath("page")
    for name, (file, kind) in PAGE_FILES.items():
        app.get(f"/{name}")(_page(folder.joinpath(file).read_bytes(), kind))


def _page(data: bytes, kind: str) -> Callable[[], Response]:
    return lambda: Response(data, media_type=kind)


def _add_sets(app: FastAPI, library: Library) -> None:
    @app.get("/api/library")
    def everything() -> dict[str, Any]:
        places = [{"id": one.id, "kind": one.kind, "title": one.title} for one in library.places()]
        sets = (AUGMENTED, GENERATED, ANNOTATED)
        return {
            "folder": folder_name(library.root.resolve()),
            "sets": [place for place in places if place["kind"] in sets],
            "reports": [place for place in places if place["kind"] not in sets],
        }

    @app.get("/api/sets/{identity}")
    def pictures(
        identity: str,
        person: str | None = None,
        camera: str | None = None,
        state: str = "all",
        score: str = "",
        low: float = -math.inf,
        high: float = math.inf,
        descending: bool = False,
        start: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
        count: Annotated[int, Query(ge=1, le=PAGE)] = 60,
    ) -> dict[str, Any]:
        wanted = Wanted(person, camera, state, score, low, high, descending, start, count)
        return library.set(identity).page(wanted)

    @app.get("/api/sets/{identity}/pictures/{row}")
    def picture(identity: str, row: int) -> Response:
        return _image(library.set(identity).image(row))

    @app.get("/api/sets/{identity}/maps/{row}")
    def label_map(identity: str, row: int) -> Response:
        return _image(library.set(identity).map(row))

    @app.post("/api/sets/{identity}/decisions")
    def decisions(
        identity: str,
        rows: Annotated[list[StrictInt], Body(max_length=PAGE)],
        decision: Annotated[str, Body()],
    ) -> dict[str, Any]:
        chosen = library.set(identity)
        chosen.decide(rows, decision)
        kept, by_hand = chosen.decided(), chosen.by_hand()
        changed = [{"row": row, "kept": kept[row], "by_hand": by_hand[row]} for row in rows]
        return {"kept": sum(kept), "by_hand": sum(by_hand), "changed": changed}


def _add_reports(app: FastAPI, library: Library) -> None:
    shown: dict[str, list[bytes]] = {}  # pictures of the reports that were opened last

    @app.get("/api/reports/{identity}")
    def report(identity: str) -> dict[str, Any]:
        place = library.place(identity)
        if place.kind in (AUGMENTED, GENERATED, ANNOTATED):
            raise UserError("a set of pictures has no report", "open it under Pictures")
        sections, pictures = report_sections(place.folder), list[bytes]()
        told = []
        for section in sections:
            numbers = enumerate(section.pictures, len(pictures))
            numbered = [{"caption": one.caption, "number": number} for number, one in numbers]
            pictures += [base64.b64decode(one.data.partition(",")[2]) for one in section.pictures]
            told.append(
                {
                    "title": section.title,
                    "text": section.text,
                    "pictures": numbered,
                    "tables": [vars(table) for table in section.tables],
                    "folds": [vars(fold) for fold in section.folds],
                }
            )
        shown[identity] = pictures
        for other in list(shown)[:-3]:
            shown.pop(other, None)  # another request may have been first
        return {"kind": place.kind, "title": place.title, "sections": told}

    @app.get("/api/reports/{identity}/pictures/{number}")
    def picture(identity: str, number: int) -> Response:
        pictures = shown.get(identity, [])
        if not 0 <= number < len(pictures):
            raise UserError("this report was closed", "open it again")
        return _image(pictures[number])


def _add_studio(app: FastAPI, library: Library, studio: Callable[[], Studio]) -> None:
    @app.get("/api/studio")
    def described() -> dict[str, Any]:
        return studio().described()

    @app.post("/api/people")
    async def photo(request: Request) -> list[dict[str, Any]]:
        data = await request.body()
        return [one.described() for one in await run_in_threadpool(lambda: studio().add_photo(data))]

    @app.post("/api/people/chosen")
    def chosen(identity: Annotated[str, Body()], row: Annotated[StrictInt, Body()]) -> dict[str, Any]:
        return studio().add_files(*library.set(identity).files(row)).described()

    @app.get("/api/people/{number}/image")
    def image(number: int) -> Response:
        return _image(studio().image(number))

    @app.get("/api/people/{number}/map")
    def label_map(number: int) -> Response:
        return _image(studio().map(number))

    @app.post("/api/people/{number}/picture")
    def picture(
        number: int,
        joints: Annotated[list[list[float] | None], Body(max_length=NUM_JOINTS)],
        own: Annotated[list[list[float] | None] | None, Body(max_length=NUM_JOINTS)] = None,
        background: Annotated[str, Body()] = "source",
    ) -> Response:
        return _image(studio().picture(number, joints, own, background))


def _image(data: bytes) -> Response:
    """An image by what its first bytes say; a drawing is shown as an image alone, never as a page."""
    kind = _MAGIC.get(data[:2])
    if kind is None and data.lstrip()[:5] in (b"<?xml", b"<svg "):
        headers = {"content-disposition": "attachment; filename=drawing.svg"}
        return Response(data, media_type="image/svg+xml", headers=headers)
    if kind is None:
        raise UserError("this file is no image that is shown here")
    return Response(data, media_type=kind)


def _user_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    problem, advice = printable_lines(error.problem), printable_lines(error.advice)
    return JSONResponse({"error": problem, "advice": advice}, 400)


def _wrong_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    field = ".".join(str(part)[:40] for part in error.errors()[0]["loc"])
    return JSONResponse({"error": f"{field}: is not what is asked for here", "advice": ""}, 422)


def _own_fault(request: Request, error: Exception) -> Response:
    logging.getLogger("reposer.serve").error("a fault of ours", exc_info=error)
    return JSONResponse(
        {"error": "a fault of ours; the terminal of `reposer serve` says more", "advice": ""}, 500
    )


# ---- the server


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0: a free one.

    Raises:
        UserError: the port is taken, or the name is none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_MOST_AT_ONCE)
    except (OSError, ValueError) as error:  # ValueError: of a name that nobody can ask for
        reason = error.strerror if isinstance(error, OSError) else "is no name of a machine"
        of_host = isinstance(error, socket.gaierror | ValueError) or error.errno == errno.EADDRNOTAVAIL
        advice = "an address of this machine as --host" if of_host else "another --port"
        raise UserError(f"{printable(host)}, port {port}: {reason}", f"choose {advice}") from error
    return listening


def hosts_of(host: str, port: int) -> frozenset[str]:
    """The values of the header Host that lead to the server; of every address, also this machine's name."""
    names, host = {host.lower()}, host.lower()
    if host in (LOCAL, "localhost", "::1", *_EVERYWHERE):
        names |= {"localhost", LOCAL, "::1"}
    if host in _EVERYWHERE:
        names |= {socket.gethostname().lower()}
    named = {f"[{name}]" if ":" in name else name for name in names}
    return frozenset(f"{name}:{port}" for name in named) | (frozenset(named) if port == 80 else frozenset())


def serve(
    folder: Path,
    studio: Callable[[], Studio] | None = None,
    *,
    host: str = LOCAL,
    port: int = 8765,
    say: Callable[[str], None] = print,
) -> None:
    """Answer until Ctrl-C.

    Args:
        folder: what can be looked at.
        studio: as for :func:`make_app`.
        host: name or address to listen on; any other than this machine's own shows the page to a network.
        port: 0: a free one.
        say: prints.

    Raises:
        UserError: no such folder, or the port is taken.
    """
    if not folder.is_dir():
        raise no_folder(folder, "give one with sets, runs or studies, or an empty one")
    token = secrets.token_urlsafe(24)
    listening = listen(host, port)
    with listening:
        bound, port = listening.getsockname()[:2]
        app = Guard(make_app(Library(folder), studio), token, hosts_of(host, port) | hosts_of(bound, port))
        if bound not in (LOCAL, "::1"):
            say(f"note: {host} is not this machine alone: who learns the address sees the folder's pictures")
        ours = [LOCAL, socket.gethostname().lower()]  # of hosts_of: other machines ask by the latter
        names = ours if bound in _EVERYWHERE else [f"[{host}]" if ":" in host else host]
        shown = " or ".join(f"http://{name}:{port}/{token}/" for name in names)
        say(f"open {shown}\nCtrl-C ends it; nothing leaves this machine")
        config = uvicorn.Config(
            app,
            access_log=False,  # addresses hold the token
            log_level="warning",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            limit_concurrency=_MOST_AT_ONCE,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=1 << 14,
        )
        uvicorn.Server(config).run(sockets=[listening])
