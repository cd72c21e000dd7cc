"""Licenses are shown, accepted once, asked again when they change; pinned downloads of licensed files."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reposer.errors import MissingWeightsError, UserError
from reposer.weights import files as licenses
from reposer.weights import files as weights
from reposer.weights.downloads import DownloadError
from reposer.weights.files import (
    ACCEPTED_FILE,
    LicenseError,
    cache_folders,
    find_weights,
    licensed_weights,
    require_license,
)

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPOSER_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_acceptance_is_asked_once_for_each_text(folder):
    with pytest.raises(
        LicenseError, match=r"license of net: terms \[NOT FOR COMMERCIAL USE\].*--accept-license"
    ):
        require_license("net", "terms", non_commercial=True)
    assert not folder.exists()
    require_license("net", "terms", non_commercial=True, accept=True)
    require_license("net", "terms", non_commercial=True)
    assert list(json.loads((folder / ACCEPTED_FILE).read_text())) == ["net"]
    for changed in ({"name": "other"}, {"terms": "new terms"}, {"non_commercial": False}):
        with pytest.raises(LicenseError):
            require_license(**({"name": "net", "terms": "terms", "non_commercial": True} | changed))
    require_license("free", "")
    assert list(json.loads((folder / ACCEPTED_FILE).read_text())) == ["net"]


def test_a_damaged_record_is_named(folder):
    folder.mkdir()
    (folder / ACCEPTED_FILE).write_text("yes")
    with pytest.raises(UserError, match=ACCEPTED_FILE):
        require_license("net", "terms", accept=True)


@pytest.mark.parametrize("inside", ["weights", "weights/below", "weights/a/b"])
def test_weights_folder_below_a_file_is_named_when_the_license_is_recorded(inside, folder, monkeypatch):
    folder.write_text("mine")
    monkeypatch.setenv("REPOSER_WEIGHTS", str(folder.parent / inside))
    with pytest.raises(UserError, match=f"{inside}: (is no folder|cannot be written: Not a directory)"):
        require_license("net", "terms", accept=True)


def test_a_folder_that_may_not_be_looked_into_is_named(folder, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", fail)
    for call in (
        partial(require_license, "net", "terms", accept=True),
        partial(find_weights, "alexnet"),
        cache_folders,
    ):
        with pytest.raises(UserError, match="weights: may not be looked into: give yourself"):
            call()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.starts.append(start)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.stop_at])

    def log_message(self, *_):
        """Be quiet."""


@pytest.fixture
def server(monkeypatch):
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.starts, found.stop_at = [], None
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    known = weights.WeightFile(
        "net.pth",
        f"http://127.0.0.1:{found.server_port}/net.pth",
        hashlib.sha256(CONTENT).hexdigest(),
        len(CONTENT) / 2**20,
        "for research",
        non_commercial=True,
    )
    monkeypatch.setitem(weights.KNOWN, "net", known)
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_nothing_is_fetched_before_the_license_is_accepted(server, folder):
    with pytest.raises(LicenseError, match="for research"):
        licensed_weights("net", may_download=True)
    with pytest.raises(MissingWeightsError, match=rf"net\.pth.*put it into {folder}"):
        licensed_weights("net", accept_license=True)
    assert server.starts == []


def test_a_cut_download_goes_on(server, folder):
    server.stop_at = 100_000
    with pytest.raises(DownloadError, match="continues there"):
        licensed_weights("net", accept_license=True, may_download=True)
    assert not (folder / "net.pth").exists()
    server.stop_at = None
    path = licensed_weights("net", may_download=True)
    assert path.read_bytes() == CONTENT
    assert server.starts == [0, 100_000]
    assert licensed_weights("net") == path  # from the disk
    assert len(server.starts) == 2
    path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match="not the official weights"):
        licensed_weights("net", may_download=True)


def test_what_is_known_of_the_annotators():
    """Pins are whole hashes, or torchvision's eight digits; the non-commercial ones say so."""
    for name in ("maskrcnn_v2", "maskrcnn", "keypointrcnn", "schp_lip", "schp_atr"):
        known = weights.KNOWN[name]
        assert known.url.startswith("https://")
        assert known.url.endswith(known.file)
        assert len(known.sha256) in (8, 64)
        assert known.license
        assert known.non_commercial == name.startswith("schp")
    assert "NOT FOR COMMERCIAL USE" in licenses.license_text(weights.KNOWN["schp_lip"].license, True)
