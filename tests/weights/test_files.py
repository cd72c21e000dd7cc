"""Outside weights: found, verified, fetched from a hostile server, read without running code."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from bad_inputs import mutate
from safetensors.torch import save, save_file

from reposer.errors import MissingWeightsError, UserError
from reposer.storage.files import DiskError
from reposer.weights import files as weights
from reposer.weights.downloads import DownloadError, Source, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
GOOD = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers by ``behavior``; remembers the Range headers that it was sent."""

    behavior: Callable[[BaseHTTPRequestHandler], None]
    ranges: list[str | None]
    stop: threading.Event

    def source(self, sha256: str = GOOD, max_bytes: int = 400_000) -> Source:
        return Source(f"http://127.0.0.1:{self.server_port}/file.pth", sha256, max_bytes)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        with suppress(ConnectionError):  # the client may hang up
            self.server.behavior(self)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def answer(
    content: bytes = CONTENT, *, sent: int | None = None, ranges: bool = True, length: int | None = -1
) -> Callable[[BaseHTTPRequestHandler], None]:
    """A server that sends the first ``sent`` bytes of ``content`` and says ``length`` (-1: the truth)."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        start = int(asked[6:-1]) if asked and ranges else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if length is not None:
            handler.send_header("Content-Length", str(len(content) - start if length == -1 else length))
        handler.end_headers()
        handler.wfile.write(content[start:][:sent])

    return behave


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.behavior, found.ranges, found.stop = answer(), [], threading.Event()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.stop.set()
    found.shutdown()
    thread.join()
    found.server_close()


def refused(source: Source, place: Path, **options: float) -> str:
    with pytest.raises(DownloadError) as error:
        fetch(source, place, **options)
    assert not place.exists()
    assert error.value.advice
    return error.value.rule


def test_a_good_file_arrives_once(server: Server, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    place = tmp_path / "deep" / "file.pth"
    assert fetch(server.source(), place, on_progress=lambda *n: seen.append(n)) == place
    assert place.read_bytes() == CONTENT
    assert [p.name for p in place.parent.iterdir()] == ["file.pth"]
    assert seen[-1] == (300_000, 300_000)
    fetch(server.source(), place)
    assert len(server.ranges) == 1  # a good file is not fetched again


def test_a_prefix_of_the_hash_is_enough(server: Server, tmp_path: Path):
    fetch(server.source(GOOD[:8]), tmp_path / "file.pth")
    wrong = server.source(("0" if GOOD[0] != "0" else "1") + GOOD[1:8])
    assert refused(wrong, tmp_path / "other.pth") == "hash"


def test_a_wrong_file_is_deleted(server: Server, tmp_path: Path):
    server.behavior = answer(CONTENT[:-1] + b"x")
    assert refused(server.source(), tmp_path / "file.pth") == "hash"
    assert list(tmp_path.iterdir()) == []


def test_a_cut_download_continues(server: Server, tmp_path: Path):
    server.behavior = answer(sent=100_000)
    assert refused(server.source(), tmp_path / "file.pth") == "cut"
    server.behavior = answer()
    assert fetch(server.source(), tmp_path / "file.pth").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path):
    server.behavior = answer(sent=100_000)
    refused(server.source(), tmp_path / "file.pth")
    server.behavior = answer(ranges=False)
    assert fetch(server.source(), tmp_path / "file.pth").read_bytes() == CONTENT


def test_a_wrong_beginning_is_found_by_the_hash(server: Server, tmp_path: Path):
    (tmp_path / ".file.pth.part").write_bytes(bytes(5000))
    assert refused(server.source(), tmp_path / "file.pth") == "hash"
    assert fetch(server.source(), tmp_path / "file.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("max_bytes", [len(CONTENT), 400_000])
@pytest.mark.parametrize("digits", [8, 64])
def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path, max_bytes: int, digits: int):
    (tmp_path / ".file.pth.part").write_bytes(CONTENT)
    server.behavior = lambda handler: handler.send_error(416)
    place = tmp_path / "file.pth"
    assert fetch(server.source(GOOD[:digits], max_bytes), place).read_bytes() == CONTENT
    assert server.ranges == []
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


def test_a_part_longer_than_the_file_starts_again(server: Server, tmp_path: Path):
    (tmp_path / ".file.pth.part").write_bytes(bytes(350_000))
    server.behavior = lambda handler: handler.send_error(416)
    assert refused(server.source(), tmp_path / "file.pth") == "http"
    server.behavior = answer()
    assert fetch(server.source(), tmp_path / "file.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("said", [10**10, None, 1000])
def test_too_much_is_refused(server: Server, tmp_path: Path, said: int | None):
    server.behavior = answer(CONTENT * 3, length=said)
    rule = refused(server.source(max_bytes=400_000), tmp_path / "file.pth")
    assert rule == ("hash" if said == 1000 else "too-large")  # a client reads no more than was promised
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) == 0


@pytest.mark.parametrize("said", ["\u00b2", "9" * 5000, "+5", "-1", "", "1e3"])
def test_a_length_that_is_no_number_is_no_fault_of_ours(server: Server, tmp_path: Path, said: str):
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", said)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    server.behavior = behave
    if said.isascii() and said.isdigit():
        assert refused(server.source(), tmp_path / "file.pth") == "too-large"
    else:
        with suppress(DownloadError):
            assert fetch(server.source(), tmp_path / "file.pth").read_bytes() == CONTENT


def test_a_slow_server_is_left(server: Server, tmp_path: Path):
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "300000")
        handler.end_headers()
        for byte in CONTENT:  # a byte now and then: no single read ever waits long
            handler.wfile.write(bytes([byte]))
            if server.stop.wait(0.02):
                return

    server.behavior = drip
    assert refused(server.source(), tmp_path / "file.pth", stall_seconds=0.3) == "stuck"


def test_a_silent_server_is_left(server: Server, tmp_path: Path):
    server.behavior = lambda _: time.sleep(0) if server.stop.wait(5) else None
    assert refused(server.source(), tmp_path / "file.pth", stall_seconds=0.3) == "stuck"


def _drip(head: bytes, drop: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        for _ in range(500):  # no single read ever waits long
            handler.wfile.write(drop)
            if handler.server.stop.wait(0.02):
                return

    return behave


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 O", b"K"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"extension"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    ],
    ids=["status", "header", "chunk-size", "chunk-extension", "no-length"],
)
def test_a_server_that_drips_is_left_in_time(server: Server, tmp_path: Path, head: bytes, drop: bytes):
    server.behavior = _drip(head, drop)
    start = time.monotonic()
    assert refused(server.source(), tmp_path / "file.pth", stall_seconds=0.3) == "stuck"
    assert time.monotonic() - start < 2


def test_a_server_that_keeps_the_least_speed_meets_the_deadline(server: Server, tmp_path: Path):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"
    server.behavior = _drip(head, CONTENT[:100])  # 5 kB a second
    start = time.monotonic()
    assert refused(server.source(), tmp_path / "file.pth", stall_seconds=9, total_seconds=0.4) == "stuck"
    assert time.monotonic() - start < 2
    assert (tmp_path / ".file.pth.part").stat().st_size > 500  # kept, to go on there


def test_a_silent_handshake_meets_the_deadline(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 kB that never gets whole
                while not stop.wait(0.02):
                    connection.sendall(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        source = Source(f"https://127.0.0.1:{listener.getsockname()[1]}/file.pth", GOOD, 400_000)
        start = time.monotonic()
        assert refused(source, tmp_path / "file.pth", stall_seconds=0.3) == "stuck"
        assert time.monotonic() - start < 2
        stop.set()
        thread.join()


def _fetch_at_once(source: Source, place: Path, count: int) -> list[Path | DownloadError]:
    together = threading.Barrier(count)

    def one(_: int) -> Path | DownloadError:
        together.wait()
        try:
            return fetch(source, place)
        except DownloadError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_calls_at_once_share_one_download(server: Server, tmp_path: Path):
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        server.stop.wait(0.2)  # the others come meanwhile
        answer()(handler)

    server.behavior = slowly
    place = tmp_path / "file.pth"
    assert _fetch_at_once(server.source(), place, 6) == [place] * 6
    assert place.read_bytes() == CONTENT
    assert server.ranges == [None]  # one of them fetched
    assert list(tmp_path.iterdir()) == [place]


def test_when_the_first_of_two_fails_the_second_goes_on_with_its_part(server: Server, tmp_path: Path):
    answers = iter([answer(sent=100_000), answer()])

    def behave(handler: BaseHTTPRequestHandler) -> None:
        server.stop.wait(0.2)
        next(answers)(handler)

    server.behavior = behave
    place = tmp_path / "file.pth"
    ends = _fetch_at_once(server.source(), place, 2)
    assert place in ends
    assert [end.rule for end in ends if isinstance(end, DownloadError)] == ["cut"]
    assert place.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_waiting_for_another_process_ends_too(server: Server, tmp_path: Path):
    with open(tmp_path / ".file.pth.part", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert refused(server.source(), tmp_path / "file.pth", total_seconds=0.2) == "busy"


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("http://localhost:1/file.pth", "redirect"),  # another name, be it the same machine
        ("http://example.org/file.pth", "redirect"),
        ("https://example.org/file.pth", "redirect"),
        ("file:///etc/passwd", "http"),  # urllib itself refuses it
        ("ftp://127.0.0.1/file.pth", "insecure"),
    ],
)
def test_redirects_are_not_followed_elsewhere(server: Server, tmp_path: Path, target: str, rule: str):
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.behavior = redirect
    assert refused(server.source(), tmp_path / "file.pth") == rule


def test_a_named_host_may_be_redirected_to_but_only_by_https(server: Server, tmp_path: Path):
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "http://example.org/file.pth")
        handler.end_headers()

    server.behavior = redirect
    plain = server.source()
    source = Source(plain.url, plain.sha256, plain.max_bytes, ("example.org",))
    assert refused(source, tmp_path / "file.pth") == "insecure"


def test_a_redirect_on_the_same_host_is_followed(server: Server, tmp_path: Path):
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/moved":
            return answer()(handler)
        handler.send_response(302)
        handler.send_header("Location", "/moved")
        handler.send_header("Content-Length", "0")
        return handler.end_headers()

    server.behavior = redirect
    assert fetch(server.source(), tmp_path / "file.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "url", ["http://example.org/a", "file:///etc/passwd", "ftp://example.org/a", "a.pth"]
)
def test_plain_addresses_are_refused_before_anything_is_opened(tmp_path: Path, url: str):
    assert refused(Source(url, GOOD, 1000), tmp_path / "file.pth") == "insecure"
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_do(server: Server, tmp_path: Path):
    source = server.source()
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="on a machine with a network"):
        fetch(source, tmp_path / "file.pth", stall_seconds=1)


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_errors_of_the_server_are_named(server: Server, tmp_path: Path, status: int):
    server.behavior = lambda handler: handler.send_error(status)
    with pytest.raises(DownloadError, match=str(status)):
        fetch(server.source(), tmp_path / "file.pth")


class _SmallDisk(io.FileIO):
    """Of 100,000 bytes."""

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_disk_that_gets_full_on_the_way_is_named(server: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("reposer.weights.downloads._CHUNK", 30_000)
    with monkeypatch.context() as small:
        small.setattr(os, "fdopen", lambda descriptor, mode: _SmallDisk(descriptor, "r+"))
        with pytest.raises(DiskError, match="No space left") as error:
            fetch(server.source(), tmp_path / "file.pth")
    assert "free some space" in error.value.advice
    (part,) = tmp_path.iterdir()
    assert part.name == ".file.pth.part"
    came = part.stat().st_size
    assert CONTENT.startswith(part.read_bytes())
    assert fetch(server.source(), tmp_path / "file.pth").read_bytes() == CONTENT  # goes on where it stopped
    assert server.ranges == [None, f"bytes={came}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


def test_a_disk_without_room_is_refused_before_anything_is_asked(server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("reposer.storage.files.free_bytes", lambda path: 1000)
    with pytest.raises(DiskError, match="1,000 are free"):
        fetch(server.source(), tmp_path / "file.pth")
    assert server.ranges == []


def test_a_cache_that_is_mounted_read_only_is_named(server: Server, tmp_path: Path, monkeypatch):
    def refuse(path: object, flags: int, *rest: int) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *rest)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DiskError, match="Read-only file system"):
        fetch(server.source(), tmp_path / "file.pth")
    (tmp_path / "file.pth").write_bytes(CONTENT)
    assert fetch(server.source(), tmp_path / "file.pth").read_bytes() == CONTENT  # what is there will do
    assert server.ranges == []


def test_two_processes_at_once_fetch_once(server: Server, tmp_path: Path):
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        server.stop.wait(0.5)
        answer()(handler)

    server.behavior = slowly
    source, place = server.source(), tmp_path / "file.pth"
    code = (
        "import sys; from pathlib import Path; from reposer.weights.downloads import Source, fetch\n"
        "fetch(Source(sys.argv[1], sys.argv[2], 400_000), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, source.url, source.sha256, str(place)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert place.read_bytes() == CONTENT
    assert len(server.ranges) == 1
    assert list(tmp_path.iterdir()) == [place]


def test_a_link_in_the_place_of_the_part_is_not_followed(server: Server, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"keep")
    (tmp_path / ".file.pth.part").symlink_to(precious)
    with pytest.raises((UserError, OSError)):
        fetch(server.source(), tmp_path / "file.pth")
    assert precious.read_bytes() == b"keep"


# ---- finding


def test_known_files_are_pinned():
    for known in weights.KNOWN.values():
        assert known.url.startswith("https://")
        assert known.url.endswith(known.file)
        if known.file.endswith((".onnx", ".tflite")):  # has no digits of the hash in its name
            assert len(known.sha256) == 64
            continue
        digits = known.file.rpartition("-")[2].removesuffix(".pth")
        assert len(digits) == 8
        assert known.sha256.startswith(digits)
        assert len(known.sha256) in (8, 64)
    urls = {
        w.url: w.meta["_file_size"]
        for m in torchvision.models.list_models()
        for w in torchvision.models.get_model_weights(m)
    }
    for known in weights.KNOWN.values():
        if "pytorch.org" in known.url:
            assert urls[known.url] == pytest.approx(known.mebibytes, abs=0.001)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> weights.WeightFile:
    """A known file of 300,000 bytes, and caches in tmp_path."""
    known = weights.WeightFile(
        "tiny-1.pth", "https://example.org/tiny-1.pth", GOOD, 0.3, "none", ("other.pth",)
    )
    monkeypatch.setitem(weights.KNOWN, "tiny", known)
    monkeypatch.setenv("REPOSER_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return known


def test_finding(tiny: weights.WeightFile, tmp_path: Path):
    with pytest.raises(MissingWeightsError, match=r"https://example.org/tiny-1.pth .*put it into .*own"):
        weights.find_weights("tiny")
    later = tmp_path / "torch" / "hub" / "checkpoints" / "other.pth"
    later.parent.mkdir(parents=True)
    later.write_bytes(CONTENT)
    assert weights.find_weights("tiny") == later
    first = tmp_path / "own" / "tiny-1.pth"
    first.parent.mkdir()
    first.write_bytes(CONTENT)
    assert weights.find_weights("tiny") == first
    assert weights.find_weights("tiny", later) == later
    assert weights.find_weights("tiny", later.parent) == later
    with pytest.raises(MissingWeightsError):
        weights.find_weights("tiny", tmp_path / "nothing.pth")
    first.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="not the official weights"):
        weights.find_weights("tiny")
    with pytest.raises(UserError, match="vgg19"):
        weights.find_weights("vgg-19")


def test_download_puts_the_file_where_it_is_found(
    tiny: weights.WeightFile, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    known = weights.WeightFile(tiny.file, server.source().url, GOOD, 0.3, "none")
    monkeypatch.setitem(weights.KNOWN, "tiny", known)
    assert weights.download("tiny") == tmp_path / "own" / "tiny-1.pth" == weights.find_weights("tiny")
    assert weights.download("tiny", tmp_path).parent == tmp_path


# ---- reading

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "half": torch.randn(5, generator=generator).half(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "ordered"])
def test_good_files(tmp_path: Path, kind: str):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(tensors(), path)
    else:
        value = OrderedDict(tensors()) if kind == "ordered" else tensors()
        path.write_bytes(saved(value, _use_new_zipfile_serialization=kind != "legacy"))
    found = weights.load_state_dict_file(path)
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_module_state_dict_with_parameters(tmp_path: Path):
    layer = torch.nn.Linear(3, 2)
    (tmp_path / "a.pth").write_bytes(saved({"w": layer.weight}))
    found = weights.load_state_dict_file(tmp_path / "a.pth")["w"]
    assert torch.equal(found, layer.weight)
    assert not found.requires_grad


class Marker:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def _compressed(value: object) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(value))) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


HOSTILE: dict[str, Callable[[], object]] = {
    "expanded view": lambda: {"a": torch.zeros(1).expand(10**9)},
    "transposed view": lambda: {"a": torch.zeros(3, 4).T},
    "many views of one storage": lambda: dict.fromkeys(map(str, range(1000)), torch.zeros(1000)),
    "sparse": lambda: {"a": torch.eye(3).to_sparse()},
    "sparse csr": lambda: {"a": torch.eye(3).to_sparse_csr()},
    "quantized": lambda: {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
    "NaN": lambda: {"a": torch.tensor([1.0, float("nan")])},
    "infinite": lambda: {"a": torch.tensor([float("inf")])},
    "list": lambda: [torch.ones(2)],
    "one tensor": lambda: torch.ones(2),
    "empty": dict,
    "nested": lambda: {"state_dict": tensors()},
    "number": lambda: {"a": 3},
    "text": lambda: {"a": "b"},
    "numbered": lambda: {0: torch.ones(2)},
    "module": lambda: torch.nn.Linear(2, 2),
    "numpy": lambda: {"a": np.float64(3)},
    "path": lambda: {"a": Path("x")},
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_everything_but_plain_tensors_is_refused(tmp_path: Path, kind: str, new: bool):
    path = tmp_path / "a.pth"
    path.write_bytes(saved(HOSTILE[kind](), _use_new_zipfile_serialization=new))
    with pytest.raises(UserError) as error:
        weights.load_state_dict_file(path)
    assert "a.pth" in str(error.value)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle", "safetensors name"])
def test_no_code_runs(tmp_path: Path, container: str):
    mark, path = tmp_path / "mark", tmp_path / "a.pth"
    bomb = {"a": torch.ones(2), "b": Marker(mark)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(Marker(mark)))
    elif container == "safetensors name":
        path = tmp_path / "a.safetensors"
        path.write_bytes(pickle.dumps(Marker(mark)))
    else:
        path.write_bytes(saved(bomb, _use_new_zipfile_serialization=container == "zip"))
    with pytest.raises(UserError):
        weights.load_state_dict_file(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_names_of_one_tensor_count_once_for_those_who_ask(tmp_path: Path):
    """Networks of others keep a layer under two names; a thousand names would ask for a large memory."""
    path, layer = tmp_path / "file.pth", torch.rand(10_000)
    torch.save({"layer": layer, "again": layer, "third": layer}, path)
    with pytest.raises(UserError, match="larger than the file"):
        weights.load_state_dict_file(path)
    found = weights.load_state_dict_file(path, shared=True)
    assert all(torch.equal(tensor, layer) for tensor in found.values())
    torch.save({"view": torch.rand(1).expand(10_000)}, path)
    with pytest.raises(UserError, match="view"):
        weights.load_state_dict_file(path, shared=True)


def test_a_torchscript_file_is_refused(tmp_path: Path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(UserError):
        weights.load_state_dict_file(tmp_path / "a.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path):
    (tmp_path / "a.pth").write_bytes(_compressed({"a": torch.zeros(10**6)}))
    with pytest.raises(UserError, match="compressed"):
        weights.load_state_dict_file(tmp_path / "a.pth")


def pickled(body: bytes) -> bytes:
    """A pickle of a dictionary whose value "a" is made by ``body``."""
    return b"\x80\x02}q\x00X\x01\x00\x00\x00a" + body + b"s."


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def storage(kind: str, count: int, key: bytes = b"0") -> bytes:
    names = b"(X\x07\x00\x00\x00storage" + f"ctorch\n{kind}\n".encode() + b"X\x01\x00\x00\x00" + key
    return names + b"X\x03\x00\x00\x00cpu" + number(count) + b"tQ"


def rebuilt(count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides)]
    head = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage("FloatStorage", count) + number(offset)
    return head + b"".join(numbers) + b"\x89ccollections\nOrderedDict\n)RtR"


def in_zip(data: bytes, name: str = "archive/data.pkl", before: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(16))
        if before:
            archive.writestr("archive/data.pkl", before)
        archive.writestr(name, data)
    return buffer.getvalue()


def in_legacy(data: bytes) -> bytes:
    return saved({}, _use_new_zipfile_serialization=False).replace(b"\x80\x02}q\x00.", data)


LARGE = 3 * 2**30
TAKES_MEMORY = {
    "bytearray": b"cbuiltins\nbytearray\n" + number(LARGE) + b"\x85R",
    "bytearray of Python 2": b"c__builtin__\nbytearray\n" + number(LARGE) + b"\x85R",
    "bytearray from the memo": b"cbuiltins\nbytearray\nq\x07h\x07" + number(LARGE) + b"\x85R",
    "bytearray as an object": b"cbuiltins\nbytearray\n" + number(LARGE) + b"\x85\x81",
    "tensor": b"ctorch\nFloatTensor\n" + number(LARGE // 4) + b"\x85R",
    "tensor as an object": b"ctorch\nFloatTensor\n" + number(LARGE // 4) + b"\x85\x81",
    "storage": b"ctorch.storage\nUntypedStorage\n" + number(LARGE) + b"\x85R",
    "called twice": b"ccollections\nOrderedDict\n)RcTorch\nx\n\x85R",
    "numbers": storage("FloatStorage", LARGE // 4),
    "fewer than none": storage("FloatStorage", -4) + b"0" + storage("FloatStorage", LARGE // 4),
    "another storage": storage("QInt8Storage", 4),
    "tensor larger than its storage": rebuilt(4, (LARGE,), (1,)),
    "strides beyond its storage": rebuilt(4, (2, 2), (LARGE, 1)),
    "offset beyond its storage": rebuilt(4, (1,), (1,), offset=4),
    "fewer than no numbers": rebuilt(4, (-LARGE, -1), (1, 1)),
    "set up": b"cbuiltins\nbytearray\n" + number(LARGE) + b"\x85b",
    "set": b"\x8f",
}


@pytest.mark.parametrize("kind", TAKES_MEMORY)
@pytest.mark.parametrize("container", ["zip", "zip, two pickles", "legacy", "pickle"])
def test_a_pickle_that_takes_memory_is_refused_before_it_does(
    tmp_path: Path, kind: str, container: str, monkeypatch: pytest.MonkeyPatch
):
    good, data = pickled(b"K\x01"), pickled(TAKES_MEMORY[kind])
    content = {
        "zip": lambda: in_zip(data),
        "zip, two pickles": lambda: in_zip(data, "archive/DATA.PKL", before=good),
        "legacy": lambda: in_legacy(data),
        "pickle": lambda: data,
    }
    (tmp_path / "a.pth").write_bytes(content[container]())
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch has begun to read it"))
    for read in (weights.load_state_dict_file, weights.load_arrays_file):
        with pytest.raises(UserError, match=r"a\.pth: damaged, or holds more than tensors"):
            read(tmp_path / "a.pth")


def test_published_files_of_old_versions_of_torch_are_read():
    """Networks that other packages bring, as torch of 2018 wrote them."""
    packages = Path(torchvision.__file__).parents[1]
    files = [
        *packages.glob("lpips/weights/*/*.pth"),
        *packages.glob("torchmetrics/functional/image/*/*.p*t*"),
    ]
    for path in (file for file in files if file.suffix in (".pt", ".pth")):
        found, wanted = weights.load_state_dict_file(path), torch.load(path, "cpu", weights_only=True)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_archive_of_two_lists_of_files_is_refused(tmp_path: Path):
    """Python goes by the list before the last record, torch by the place that the record names."""
    hidden, shown = in_zip(pickled(TAKES_MEMORY["bytearray"])), in_zip(pickled(b"K\x01"))
    (tmp_path / "a.pth").write_bytes(hidden + shown[:-22] + hidden[-22:])
    with pytest.raises(UserError, match="damaged, or holds more than tensors"):
        weights.load_state_dict_file(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((4,), (1,), 0), ((2, 2), (2, 1), 0), ((2, 1), (1, 1), 2), ((), (), 3), ((0, 5), (5, 1), 0)],
)
def test_a_tensor_that_its_storage_holds_is_read(tmp_path: Path, shape, strides, offset):
    (tmp_path / "a.pth").write_bytes(in_zip(pickled(rebuilt(4, shape, strides, offset))))
    assert weights.load_state_dict_file(tmp_path / "a.pth")["a"].shape == shape


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_a_pickle_of_another_kind_is_refused_without_a_warning(tmp_path: Path, protocol: int, recwarn):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": [1.0]}, protocol))
    with pytest.raises(UserError, match="damaged, or holds more than tensors"):
        weights.load_arrays_file(tmp_path / "a.pth")
    assert not recwarn.list


KINDS = (
    *("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"),
    *("complex64", "complex128"),
)


@pytest.mark.parametrize(
    ("kind", "new"), [*((kind, new) for kind in KINDS for new in (True, False)), ("uint16", True)]
)
def test_tensors_of_all_kinds_are_read(tmp_path: Path, kind: str, new: bool):
    value = torch.ones(2, 3, dtype=getattr(torch, kind))
    layer = torch.nn.BatchNorm2d(3)
    for values in ({"a": value, "b": value[1]}, {**layer.state_dict(), "a": value}):
        content = saved(values, _use_new_zipfile_serialization=new)
        (tmp_path / "a.pth").write_bytes(content)
        assert torch.equal(weights.load_state_dict_file(tmp_path / "a.pth")["a"], value)
    (tmp_path / "a.pth").write_bytes(saved(layer.state_dict(), _use_new_zipfile_serialization=new))
    assert weights.load_state_dict_file(tmp_path / "a.pth").keys() == layer.state_dict().keys()


def safetensors_bytes(header: bytes, data: bytes = bytes(16)) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


ENTRY = '"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        bytes(8),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999_999) + b"{}",
        safetensors_bytes(b""),
        safetensors_bytes(b"[]"),
        safetensors_bytes(b"{}"),
        safetensors_bytes(b"\xff\xfe"),
        safetensors_bytes(("{" + ENTRY + "," + ENTRY + "}").encode()),  # a name twice
        safetensors_bytes(("{" + ENTRY + "}").encode(), bytes(15)),  # short
        safetensors_bytes(("{" + ENTRY + "}").encode(), bytes(17)),  # long
        safetensors_bytes(("{" + ENTRY.replace("[4]", "[5]") + "}").encode()),
        safetensors_bytes(("{" + ENTRY.replace("[4]", "[-4]") + "}").encode()),
        safetensors_bytes(("{" + ENTRY.replace("[4]", "[4.5]") + "}").encode()),
        safetensors_bytes(("{" + ENTRY.replace("[4]", f"[{2**62},4]") + "}").encode()),
        safetensors_bytes(("{" + ENTRY.replace("F32", "F31") + "}").encode()),
        safetensors_bytes(("{" + ENTRY.replace("[0,16]", "[16,0]") + "}").encode()),
        safetensors_bytes(("{" + ENTRY.replace("[0,16]", f"[0,{2**60}]") + "}").encode()),
        safetensors_bytes(("{" + ENTRY + "," + ENTRY.replace('"a"', '"b"') + "}").encode()),  # overlap
        safetensors_bytes(b"[" * 100_000),
        safetensors_bytes(b'{"a":' * 100_000),
        safetensors_bytes(("{" + ENTRY + "}").encode(), np.full(4, np.nan, np.float32).tobytes()),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_malformed_safetensors(tmp_path: Path, content: bytes):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError):
        weights.load_state_dict_file(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_mutated_files_are_refused_or_stay_bounded(tmp_path: Path, suffix: str):
    """Damage in the numbers themselves is found by the sha256 only; the rest must not crash."""
    good = save(tensors()) if suffix == ".safetensors" else saved(tensors())
    path, rng = tmp_path / f"a{suffix}", np.random.default_rng(0)
    refusals = 0
    for _ in range(500):
        path.write_bytes(mutate(good, rng))
        try:
            found = weights.load_state_dict_file(path)
        except UserError:
            refusals += 1
        else:
            assert sum(t.numel() * t.element_size() for t in found.values()) <= path.stat().st_size
    assert refusals > 250


def test_headers_of_mutated_json_are_refused_or_exact(tmp_path: Path):
    """Random edits of the header: what loads has the shape and bytes that the header then says."""
    path, rng = tmp_path / "a.safetensors", np.random.default_rng(1)
    good = save(tensors())
    length = int.from_bytes(good[:8], "little")
    for _ in range(500):
        header = mutate(good[8 : 8 + length], rng)
        path.write_bytes(safetensors_bytes(header, good[8 + length :]))
        with suppress(UserError):
            found = weights.load_state_dict_file(path)
            said = json.loads(header)
            assert all(list(t.shape) == said[name]["shape"] for name, t in found.items())


def test_other_things_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.pth")
    (tmp_path / "a.ckpt").write_bytes(saved(tensors()))
    (tmp_path / "folder.pth").mkdir()
    for name in ("fifo.pth", "a.ckpt", "folder.pth", "nothing.safetensors"):
        with pytest.raises(UserError, match=name):
            weights.load_state_dict_file(tmp_path / name)
