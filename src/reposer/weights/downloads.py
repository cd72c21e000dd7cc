"""Fetches one file whose sha256 is known: https, resumable, bounded, complete or not there.

Nothing in this program downloads by itself; a command the user gave calls :func:`fetch`.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, snapshot_download

from reposer.errors import UserError
from reposer.storage.files import disk_faults, require_space, sha256_file, sync_folder
from reposer.storage.lock import try_lock
from reposer.storage.paths import made_folder, printable

_LOOPBACK = ("127.0.0.1", "::1", "localhost")  # plain http is allowed there, for tests
_CHUNK = 1 << 20  # bytes
_LEAST_BYTES_A_SECOND = 1024  # slower than this over a whole stall period counts as stuck
_POLL_SECONDS = 0.1
_TOTAL_SECONDS = 6 * 3600.0  # of one call; half a gigabyte at 24 kB a second


class DownloadError(UserError):
    """A failed download; ``rule``: insecure, redirect, offline, http, too-large, cut, stuck, busy or hash."""

    def __init__(self, url: str, rule: str, problem: str, advice: str) -> None:
        super().__init__(f"{url}: {problem}", advice)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file lies and how to know it."""

    url: str  # https
    sha256: str  # lower-case hexadecimal; may be only its first digits, at least 8
    max_bytes: int  # a larger answer is refused
    redirect_hosts: tuple[str, ...] = ()  # other hosts that the url may lead to


def fetch(
    source: Source,
    destination: Path,
    *,
    stall_seconds: float = 30.0,
    total_seconds: float = _TOTAL_SECONDS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Put the file at ``destination`` unless a good one is there; an interrupted download is continued.

    Of several calls for one file, in one process or many, one fetches and the others wait and take its file.

    Args:
        stall_seconds: give up when this long brings next to nothing of the file, however its headers, the
            sizes of its chunks or the handshake drip.
        total_seconds: give up after this long in any case; what has come is kept.
        on_progress: called with (bytes there, bytes in all or the limit).

    Raises:
        DownloadError: nothing stands at ``destination`` then; what has come so far waits beside it.
        DiskError: the disk is full or refuses the file.
    """
    _check_url(source.url)
    if _is_good(source, destination):
        return destination
    part = destination.with_name(f".{destination.name}.part")
    with disk_faults(destination):
        made_folder(destination.parent)
        _fetch(source, destination, part, stall_seconds, total_seconds, on_progress)
    return destination


def _fetch(
    source: Source,
    destination: Path,
    part: Path,
    stall_seconds: float,
    total_seconds: float,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    with _sole_writer(source, part, total_seconds) as file:
        if _is_good(source, destination):  # made by the call that this one waited for
            part.unlink()
            return
        if not _is_good(source, part):  # else all has come, and its call was stopped before it was moved
            require_space(destination.parent, max(source.max_bytes - file.seek(0, os.SEEK_END), 0))
            _fill(source, file, _Watch(source, stall_seconds, total_seconds), on_progress)
        file.flush()
        os.fsync(file.fileno())
        found = sha256_file(part)
        if not found.startswith(source.sha256):
            part.unlink()
            problem = f"has sha256 {found}, expected {source.sha256}"
            raise DownloadError(source.url, "hash", problem, "get the file from its official place")
        os.replace(part, destination)
    sync_folder(destination.parent)


def _is_good(source: Source, destination: Path) -> bool:
    return destination.is_file() and sha256_file(destination).startswith(source.sha256)


@contextmanager
def _sole_writer(source: Source, part: Path, seconds: float) -> Iterator[IO[bytes]]:
    """The partial file, open and locked: nobody else fetches into it, moves or deletes it meanwhile.

    The lock is the kernel's and on the file itself, so a killed process leaves none behind.
    """
    end = time.monotonic() + seconds
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            while not try_lock(descriptor):
                if time.monotonic() > end:
                    problem = f"another process has been fetching it for {seconds:g} seconds"
                    raise DownloadError(source.url, "busy", problem, "wait for it or stop it")
                time.sleep(_POLL_SECONDS)
            if _stands_at(part, descriptor):  # else whoever held the lock moved this file to its place
                yield file
                return


def _stands_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


class _Watch:
    """Hangs up when a transfer is too slow: a time limit of single reads is renewed by every byte."""

    def __init__(self, source: Source, stall_seconds: float, total_seconds: float) -> None:
        self.stall_seconds = stall_seconds
        self.received = 0  # bytes of the file
        self.ended: DownloadError | None = None  # why this watch hung up
        self._source, self._total_seconds = source, total_seconds
        self._connections: list[socket.socket] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def handlers(self) -> Sequence[urllib.request.BaseHandler]:
        """For urllib: connections that this watch can end, also while they shake hands."""
        watch = self

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                watch._add(self.sock)

        class Secure(http.client.HTTPSConnection, Plain):
            """Its ``connect`` calls that of Plain, then shakes hands."""

        class PlainHandler(urllib.request.HTTPHandler):
            def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, req)

        class SecureHandler(urllib.request.HTTPSHandler):
            def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Secure, req)

        return [PlainHandler(), SecureHandler()]

    def _add(self, connection: socket.socket) -> None:
        # A descriptor of its own: the first one changes its owner when TLS begins.
        self._connections.append(socket.socket(fileno=os.dup(connection.fileno())))
        if self.ended:
            raise TimeoutError

    def _run(self) -> None:
        start = period = time.monotonic()
        mark = 0
        while not self._done.wait(min(self.stall_seconds, self._total_seconds) / 8):
            now = time.monotonic()
            if now - start > self._total_seconds:
                problem = f"is not here after {self._total_seconds:g} seconds"
                advice = "run the command again, it continues there"
                self.ended = DownloadError(self._source.url, "stuck", problem, advice)
            elif now - period > self.stall_seconds:
                if self.received - mark < _LEAST_BYTES_A_SECOND * self.stall_seconds:
                    self.ended = _stuck(self._source, self.stall_seconds)
                period, mark = now, self.received
            if self.ended:
                for connection in self._connections:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                return


def _fill(
    source: Source, file: IO[bytes], watch: _Watch, on_progress: Callable[[int, int], None] | None
) -> None:
    """Bring ``file`` from what it holds to the whole answer."""
    with watch:
        try:
            _receive(source, file, watch, on_progress)
        except (DownloadError, OSError) as error:
            if watch.ended:  # the error is the watch's own hanging up
                raise watch.ended from error
            raise
    if watch.ended:
        raise watch.ended


def _receive(
    source: Source, file: IO[bytes], watch: _Watch, on_progress: Callable[[int, int], None] | None
) -> None:
    there = file.seek(0, os.SEEK_END)
    if there >= source.max_bytes:  # nothing that can be continued
        there = file.truncate(0)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
    opener = urllib.request.build_opener(_Redirects(source), *watch.handlers(), *_proxies(source.url))
    try:
        request = urllib.request.Request(source.url, headers=headers)
        with opener.open(request, timeout=watch.stall_seconds) as answer:
            if there and answer.headers.get("Content-Range", "").split("-")[0] != f"bytes {there}":
                there = 0  # the server sends the whole file
            file.truncate(there)
            file.seek(there)
            _copy(source, answer, file, there, watch, on_progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            file.truncate(0)  # what lay there was no beginning of this file
        problem = f"the server answers {error.code} {error.reason}"
        raise DownloadError(source.url, "http", problem, "try again later") from error
    except TimeoutError as error:
        raise _stuck(source, watch.stall_seconds) from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise _cut(source, file.tell()) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _stuck(source, watch.stall_seconds) from error
        host = urlsplit(source.url).hostname
        advice = f"get {source.url} on a machine with a network and copy it here"
        raise DownloadError(
            source.url, "offline", f"{host} cannot be reached ({error.reason})", advice
        ) from error


def _copy(
    source: Source,
    answer: http.client.HTTPResponse,
    file: IO[bytes],
    there: int,
    watch: _Watch,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    length = answer.headers.get("Content-Length") or ""
    said = length.isascii() and length.isdigit()
    total = there + int(length[:18]) if said else None  # so many digits are too large whatever follows
    if total is not None and total > source.max_bytes:
        raise _too_large(source, file)
    while piece := answer.read1(_CHUNK):
        file.write(piece)
        there += len(piece)
        watch.received += len(piece)
        if there > source.max_bytes:
            raise _too_large(source, file)
        if on_progress is not None:
            on_progress(there, total or source.max_bytes)
    if total is not None and there < total:
        raise _cut(source, there)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to a host that the source names, never to plain http."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hosts = (urlsplit(source.url).hostname, *source.redirect_hosts)

    def redirect_request(self, req: urllib.request.Request, *args: Any) -> urllib.request.Request | None:
        target = str(args[-1])
        if urlsplit(target).hostname not in self._hosts:
            problem = f"leads to another host, {urlsplit(target).hostname}"
            raise DownloadError(self._source.url, "redirect", problem, "get the file from its official place")
        _check_url(target)
        return super().redirect_request(req, *args)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise DownloadError(url, "insecure", "is not https", "use an https address")


def _proxies(url: str) -> Sequence[urllib.request.BaseHandler]:
    """A proxy of the environment does not know this machine's own servers."""
    return [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in _LOOPBACK else []


def _too_large(source: Source, file: IO[bytes]) -> DownloadError:
    file.truncate(0)
    problem = f"is larger than {source.max_bytes:,} bytes"
    return DownloadError(source.url, "too-large", problem, "get the file from its official place")


def _cut(source: Source, there: int) -> DownloadError:
    problem = f"the connection ended after {there:,} bytes"
    return DownloadError(source.url, "cut", problem, "run the command again, it continues there")


def _stuck(source: Source, seconds: float) -> DownloadError:
    problem = f"next to nothing came for {seconds:g} seconds"
    return DownloadError(source.url, "stuck", problem, "run the command again, it continues there")


# ---- Folders of weights by name: on this disk, or, with ``hub:`` before the name, on the Hugging Face hub.

PREFIX = "hub:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_folder(name: str | Path, files: Sequence[str]) -> Path:
    """The folder of that name; of ``hub:owner/name[@revision]`` ``files`` are fetched into the hub's cache.

    A name without the prefix never touches the network: a folder that is missing is an error, never somebody
    else's repository of that name. The revision is turned into its commit before anything is fetched, and the
    name with the commit, which gives always the same bytes, is printed to stderr.

    Raises:
        UserError: no such folder; no hub name behind the prefix, or the hub does not give it.
    """
    text = str(name)
    if not text.startswith(PREFIX):
        folder = Path(name)
        if folder.is_dir():
            return folder
        hub = f", or write {PREFIX}{text} for the hub's repository" if _HUB_ID.fullmatch(text) else ""
        raise UserError(f"{printable(text)}: no such folder", f"check the path{hub}")
    wanted = text.removeprefix(PREFIX)
    if not _HUB_ID.fullmatch(wanted):
        raise UserError(
            f"{printable(text)}: is no name of the hub",
            f"write {PREFIX}owner/name or {PREFIX}owner/name@commit",
        )
    repository, _, revision = wanted.partition("@")
    try:
        if not _COMMIT.fullmatch(revision):
            revision = str(HfApi().model_info(repository, revision=revision or None).sha)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # requests, httpx and hub errors, by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{text}: the hub does not give it: {printable(reason)}",
            "check the name and the network, or copy the folder here and name it",
        ) from error
    print(f"{PREFIX}{repository}@{revision}: used from {folder}", file=sys.stderr)
    return folder
