"""Fetches one file whose sha256 is known: https, resumable, bounded, complete or not there.

Nothing in this program downloads by itself; a command the user gave calls :func:`fetch`.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from reposer.errors import UserError
from reposer.files import require_space, sha256_file, sync_folder

_LOOPBACK = ("127.0.0.1", "::1", "localhost")  # plain http is allowed there, for tests
_CHUNK = 1 << 20  # bytes
_LEAST_BYTES_A_SECOND = 1024  # slower than this over a whole stall period counts as stuck


class DownloadError(UserError):
    """A failed download; ``rule`` is insecure, redirect, offline, http, too-large, cut, stuck or hash."""

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
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Put the file at ``destination`` unless a good one is there; an interrupted download is continued.

    Args:
        stall_seconds: give up when this long brings next to nothing.
        on_progress: called with (bytes there, bytes in all or the limit).

    Raises:
        DownloadError: nothing stands at ``destination`` then; what has come so far waits beside it.
        DiskError: the disk is full or refuses the file.
    """
    _check_url(source.url)
    if destination.is_file() and sha256_file(destination).startswith(source.sha256):
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.part")
    there = part.stat().st_size if part.is_file() and not part.is_symlink() else 0
    require_space(destination.parent, max(source.max_bytes - there, 0))
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    with os.fdopen(descriptor, "r+b") as file:
        _fill(source, file, stall_seconds, on_progress)
        os.fsync(file.fileno())
    found = sha256_file(part)
    if not found.startswith(source.sha256):
        part.unlink()
        problem = f"has sha256 {found}, expected {source.sha256}"
        raise DownloadError(source.url, "hash", problem, "get the file from its official place")
    os.replace(part, destination)
    sync_folder(destination.parent)
    return destination


def _fill(
    source: Source, file: IO[bytes], stall_seconds: float, on_progress: Callable[[int, int], None] | None
) -> None:
    """Bring ``file`` from what it holds to the whole answer."""
    there = file.seek(0, os.SEEK_END)
    if there >= source.max_bytes:  # nothing that can be continued
        there = file.truncate(0)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
    opener = urllib.request.build_opener(_Redirects(source), *_proxies(source.url))
    try:
        request = urllib.request.Request(source.url, headers=headers)
        with opener.open(request, timeout=stall_seconds) as answer:
            if there and answer.headers.get("Content-Range", "").split("-")[0] != f"bytes {there}":
                there = 0  # the server sends the whole file
            file.truncate(there)
            file.seek(there)
            _copy(source, answer, file, there, stall_seconds, on_progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            file.truncate(0)  # what lay there was no beginning of this file
        problem = f"the server answers {error.code} {error.reason}"
        raise DownloadError(source.url, "http", problem, "try again later") from error
    except TimeoutError as error:
        raise _stuck(source, stall_seconds) from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise _cut(source, file.tell()) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _stuck(source, stall_seconds) from error
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
    stall_seconds: float,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    length = answer.headers.get("Content-Length")
    total = there + int(length) if length and length.isdigit() else None
    if total is not None and total > source.max_bytes:
        raise _too_large(source, file)
    start, mark = time.monotonic(), there
    while piece := answer.read1(_CHUNK):
        file.write(piece)
        there += len(piece)
        if there > source.max_bytes:
            raise _too_large(source, file)
        if on_progress is not None:
            on_progress(there, total or source.max_bytes)
        if time.monotonic() - start > stall_seconds:
            if there - mark < _LEAST_BYTES_A_SECOND * stall_seconds:
                raise _stuck(source, stall_seconds)
            start, mark = time.monotonic(), there
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
