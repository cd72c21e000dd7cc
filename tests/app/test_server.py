"""The page's server: who is answered, how much is taken, what every answer forbids, what a page can ask."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import augment_runner as runner
import numpy as np
import pytest
from annotate_runner import draw_folder, stubs
from starlette.testclient import TestClient

from reposer.annotation.annotate import annotate
from reposer.app import server
from reposer.app.server import MAX_BODY, Guard, hosts_of, listen, make_app
from reposer.data.records import read_decisions
from reposer.errors import UserError
from reposer.images import encode_png
from reposer.report import report_sections, write_report
from reposer.sections import Picture, Section, Table, write_sections
from reposer.storage.paths import printable
from reposer.workflows.review import Library

TOKEN = "correct-horse"
HOME = "http://127.0.0.1:8765"
OWN = {"origin": HOME}
PAGE = Path(server.__file__).parents[1] / "assets" / "page"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of pictures, and a folder with a report."""
    root = tmp_path_factory.mktemp("served")
    prepared = runner.prepare_drawn(root / ".data", 3)
    runner.write(prepared, root / "set", 2)
    (root / "run").mkdir()
    picture = np.zeros((4, 4, 3), np.uint8)
    (root / "run" / "grid.png").write_bytes(encode_png(picture))
    drawing = "data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciLz4="
    pictures = [Picture("a grid", file="grid.png"), Picture("a curve", data=drawing)]
    write_sections(
        root / "run", [Section("What was found", ["<b>text</b>"], pictures, [Table(["a"], [["1"]])])]
    )
    return root


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    guard: Any = Guard(make_app(Library(folder)), TOKEN, hosts_of("127.0.0.1", 8765))
    with TestClient(guard, base_url=HOME, raise_server_exceptions=False) as client:
        yield client


def library(client: TestClient) -> dict[str, Any]:
    return dict(client.get(f"/{TOKEN}/api/library").json())


def set_of(client: TestClient) -> str:
    return f"/{TOKEN}/api/sets/{library(client)['sets'][0]['id']}"


# ---- who is answered


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "[::1]:8765", "LOCALHOST:8765"])
def test_the_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get(f"/{TOKEN}/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example:8765", "127.0.0.1", "127.0.0.1:80", "127.0.0.1.evil:8765", ""]
)
def test_a_foreign_name_is_refused(client: TestClient, host: str) -> None:
    """DNS rebinding: a stranger's name that leads to this machine."""
    assert client.get(f"/{TOKEN}/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "path", ["/", "/api/library", "/correct-hors/", "/correct-horses/", f"/{TOKEN}", f"//{TOKEN}/"]
)
def test_without_the_token_nothing_is_there(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "reposer serve" in answer.text
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:8765"},
        {"origin": "http://127.0.0.1:8766"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": HOME},
    ],
)
def test_other_pages_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get(f"/{TOKEN}/api/library", headers=headers).status_code == 403
    body = {"rows": [0], "decision": "drop"}
    assert client.post(f"{set_of(client)}/decisions", json=body, headers=headers).status_code == 403


def test_a_change_must_say_where_it_comes_from(client: TestClient, folder: Path) -> None:
    answer = client.post(f"{set_of(client)}/decisions", json={"rows": [0], "decision": "drop"})
    assert answer.status_code == 403
    assert read_decisions(folder / "set") == {}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    assert client.request(method, f"/{TOKEN}/", headers=OWN).status_code == 405


def test_two_names_of_one_host_are_refused(client: TestClient) -> None:
    headers = [("host", "127.0.0.1:8765"), ("host", "evil.example")]
    assert client.get(f"/{TOKEN}/", headers=headers).status_code == 421


# ---- how much is taken


def test_a_large_body_is_refused_by_what_it_says_and_by_what_it_is(client: TestClient) -> None:
    place = f"{set_of(client)}/decisions"
    kind = {"content-type": "application/json", **OWN}
    assert client.post(place, content=b"x" * (MAX_BODY + 1), headers=kind).status_code == 413

    def drip() -> Iterator[bytes]:  # no content-length
        for _ in range(MAX_BODY // 1000 + 2):
            yield b"x" * 1000

    assert client.post(place, content=drip(), headers=kind).status_code == 413
    for length in ("-1", "1e3", "9" * 30):
        answer = client.post(place, content=b"", headers=kind | {"content-length": length})
        assert answer.status_code in (400, 413)


def test_a_slow_body_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PATIENCE", 0.05)
    guard: Any = Guard(make_app(Library(folder)), TOKEN, hosts_of("127.0.0.1", 8765))
    scope = {"type": "http", "method": "POST", "path": f"/{TOKEN}/api/sets/x/decisions", "query_string": b""}
    headers = [("host", "127.0.0.1:8765"), ("origin", HOME), ("content-type", "application/json")]
    scope |= {"headers": [(name.encode(), value.encode()) for name, value in headers]}
    said: list[dict[str, Any]] = []

    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    asyncio.run(guard(scope, never, send))
    assert [message["type"] for message in said] == ["http.response.start", "http.response.body"]
    assert said[0]["status"] == 408


def test_a_long_address_is_refused(client: TestClient) -> None:
    assert client.get(f"/{TOKEN}/{'a' * 3000}").status_code == 414


# ---- what every answer forbids


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("", 200),
        ("page.js", 200),
        ("api/library", 200),
        ("api/sets/none", 400),
        ("nothing", 404),
        ("../../etc", 404),
    ],
)
def test_every_answer_carries_the_rules(client: TestClient, path: str, status: int) -> None:
    answer = client.get(f"/{TOKEN}/{path}")
    assert answer.status_code == status
    rules = answer.headers["content-security-policy"].split("; ")
    assert rules[0] == "default-src 'self'"
    assert not {"unsafe-inline", "unsafe-eval", "*"} & set(re.split(r"[ ';]+", " ".join(rules)))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "set-cookie" not in answer.headers
    refused = client.get("/", headers={"host": "evil.example"})
    assert refused.headers["content-security-policy"] == answer.headers["content-security-policy"]


def test_the_page_names_no_other_place_and_holds_no_inline_script() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|wss?:\/\/|[\"'(`]//", text), path.name
        assert "innerHTML" not in text
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script([^>]*)>([^<]*)", page) == [(' type="module" src="page.js"', "")]
    assert not re.search(r"\son\w+=|\sstyle=|<style", page)


def test_no_description_of_the_api_is_served(client: TestClient) -> None:
    for path in ("docs", "redoc", "openapi.json"):
        assert client.get(f"/{TOKEN}/{path}").status_code == 404


# ---- what a page can ask


def test_pictures_are_shown_and_decided_about(client: TestClient, folder: Path) -> None:
    place = set_of(client)
    page = client.get(place, params={"count": 3}).json()
    assert (len(page["rows"]), page["pictures"]) == (3, page["kept"])
    shown = client.get(f"{place}/pictures/1")
    assert shown.headers["content-type"] == "image/jpeg"
    assert shown.content == (folder / "set" / "images" / page["rows"][1]["file"]).read_bytes()
    answer = client.post(f"{place}/decisions", json={"rows": [1], "decision": "drop"}, headers=OWN).json()
    assert answer["changed"] == [{"row": 1, "kept": False, "by_hand": True}]
    (decided,) = read_decisions(folder / "set")
    assert decided == page["rows"][1]["file"]
    assert client.get(place, params={"state": "dropped"}).json()["fitting"] == 1
    client.post(f"{place}/decisions", json={"rows": [1], "decision": "undo"}, headers=OWN)
    assert read_decisions(folder / "set") == {}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("sets/..%2F..%2Fetc%2Fpasswd", None, 404),
        ("sets/../../etc/passwd", None, 404),
        ("sets/{set}/pictures/..%2f..%2fjob.json", None, 404),
        ("sets/{set}/pictures/99999999", None, 400),
        ("sets/{set}/pictures/-1", None, 400),
        ("sets/{set}/pictures/1e0", None, 422),
        ("sets/{set}/pictures/job.json", None, 422),
        ("sets/{set}/maps/0", None, 400),
        ("sets/{set}?count=100000", None, 422),
        ("sets/{set}?start=-1", None, 422),
        ("sets/{set}?state=x", None, 400),
        ("sets/{set}?score=__class__", None, 400),
        ("sets/{set}?score=file", None, 400),
        ("sets/{set}/decisions", {"rows": [99999], "decision": "drop"}, 400),
        ("sets/{set}/decisions", {"rows": [0], "decision": "burn"}, 400),
        ("sets/{set}/decisions", {"rows": ["../a"], "decision": "drop"}, 422),
        ("sets/{set}/decisions", {"rows": [True], "decision": "drop"}, 422),
        ("sets/{set}/decisions", {"rows": ["0"], "decision": "drop"}, 422),
        ("sets/{set}/decisions", {"rows": [0.0], "decision": "drop"}, 422),
        ("sets/{set}/decisions", {"rows": list(range(300)), "decision": "drop"}, 422),
        ("sets/{set}/decisions", [], 422),
        ("reports/{set}", None, 400),
        ("reports/{run}/pictures/7", None, 400),
    ],
)
def test_what_a_page_would_never_ask_is_one_line(
    client: TestClient, folder: Path, path: str, body: Any, status: int
) -> None:
    known = library(client)
    place = f"/{TOKEN}/api/{path.format(set=known['sets'][0]['id'], run=known['reports'][0]['id'])}"
    answer = client.get(place) if body is None else client.post(place, json=body, headers=OWN)
    assert answer.status_code == status
    assert "Traceback" not in answer.text
    if status in (400, 422):
        assert "\n" not in answer.json()["error"]
    assert read_decisions(folder / "set") == {}


def test_a_nan_bound_shows_nothing_and_breaks_nothing(client: TestClient) -> None:
    answer = client.get(set_of(client), params={"low": "nan", "high": "inf"})
    assert (answer.status_code, answer.json()["fitting"]) == (200, 0)


def test_a_report_is_text_and_pictures(client: TestClient) -> None:
    (place,) = library(client)["reports"]
    where = f"/{TOKEN}/api/reports/{place['id']}"
    report = client.get(where).json()
    assert report["sections"][0]["text"] == ["<b>text</b>"]  # the page makes it text, never markup
    assert report["sections"][0]["tables"][0]["rows"] == [["1"]]
    grid, curve = (client.get(f"{where}/pictures/{number}") for number in (0, 1))
    assert grid.headers["content-type"] == "image/png"
    assert curve.headers["content-type"] == "image/svg+xml"
    assert curve.headers["content-disposition"].startswith("attachment")  # no document of its own


SURROGATE = "t\ud800"
PNG = base64.b64encode(encode_png(np.zeros((1, 1, 3), np.uint8))).decode()
FOREIGN: dict[str, list[dict[str, Any]]] = {
    "pictures": [
        *(
            {"pictures": [{"caption": "c", "data": f"data:image/png;base64,{data}"}]}
            for data in ("A", "AAA", "A===", "=", "AAAA", "", f"{PNG}\n", f"{PNG}!", "PHN2Zy8+")
        ),
        {"pictures": [{"caption": "c", "data": f"data:image/svg+xml;base64,{PNG}"}]},
        {"pictures": [{"caption": "c", "data": f"data:image/gif;base64,{PNG}"}]},
        {"pictures": [{"caption": "c", "data": ["data:image/png;base64,AAAA"]}]},
        *({"pictures": [{"caption": c, "data": f"data:image/png;base64,{PNG}"}]} for c in (1.5, {})),
    ],
    "texts": [
        {"title": None},
        {"text": [1.5]},
        {"folds": [{"title": [], "text": "t"}]},
        {"folds": [{"title": "t", "text": float("nan")}]},
    ],
    "tables": [
        {"tables": [{"columns": [1], "rows": []}]},
        {"tables": [{"columns": ["a"], "rows": [[None]]}]},
        {"tables": [{"columns": ["a"], "rows": [], "caption": {}}]},
        {"tables": [{"columns": ["a"], "rows": [], "plain": float("inf")}]},
        {"tables": [{"columns": ["a"], "rows": [], "plain": {}}]},
    ],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_sections_that_no_page_can_hold_are_refused_in_a_line(tmp_path: Path, kind: str) -> None:
    good: dict[str, Any] = {"title": "t", "text": [], "pictures": [], "tables": [], "folds": []}
    path = tmp_path / "run" / "sections.json"
    path.parent.mkdir()
    with TestClient(make_app(Library(tmp_path)), raise_server_exceptions=False) as client:
        for change in (good, {"pictures": [{"caption": "é", "data": f"data:image/png;base64,{PNG}"}]}):
            path.write_text(json.dumps([good | change]))
            (place,) = client.get("/api/library").json()["reports"]
            assert client.get(f"/api/reports/{place['id']}").status_code == 200
        for change in FOREIGN[kind]:
            path.write_text(json.dumps([good | change]))
            answer = client.get(f"/api/reports/{place['id']}")
            assert 400 <= answer.status_code < 500, change
            with pytest.raises(UserError, match=r"sections\.json: holds no sections of a report") as caught:
                write_report(path.parent)
            assert "\n" not in str(caught.value)


def test_texts_that_are_no_unicode_are_shown_as_in_a_report(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sections.json"
    path.parent.mkdir()
    part = {
        "title": SURROGATE,
        "text": [SURROGATE],
        "pictures": [{"caption": SURROGATE, "data": f"data:image/png;base64,{PNG}"}],
        "tables": [{"columns": [SURROGATE], "rows": [[SURROGATE]], "caption": SURROGATE}],
        "folds": [{"title": SURROGATE, "text": SURROGATE}],
    }
    path.write_text(json.dumps([part]))
    with TestClient(make_app(Library(tmp_path)), raise_server_exceptions=False) as client:
        (place,) = client.get("/api/library").json()["reports"]
        answer = client.get(f"/api/reports/{place['id']}")
    assert answer.status_code == 200
    assert answer.text.count(r"t\\ud800") == 8
    assert write_report(path.parent).read_text().count(r"t\ud800") >= 8


def test_a_folder_whose_name_is_no_text_has_a_report(tmp_path: Path) -> None:
    inner = tmp_path / "run" / os.fsdecode(b"\xff")
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    (inner / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 1}\n')
    with TestClient(make_app(Library(tmp_path)), raise_server_exceptions=False) as client:
        for place in client.get("/api/library").json()["reports"]:
            assert client.get(f"/api/reports/{place['id']}").status_code == 200
    titles = [section.title for section in report_sections(tmp_path / "run")]
    assert "Training curves: \\xff" in titles


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"\xff", "\\xff"), (b"photos\xe9", "photos\\xe9"), ("été".encode(), "été"), (b"a\x1bb", "a\\x1bb")],
)
def test_a_library_of_any_name_is_listed(tmp_path: Path, name: bytes, shown: str) -> None:
    root = tmp_path / os.fsdecode(name)
    for run in (root, root / os.fsdecode(name)):
        run.mkdir()
        (run / "config.json").write_text("{}")
        (run / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n')
    with TestClient(make_app(Library(root)), raise_server_exceptions=False) as client:
        answer = client.get("/api/library")
        assert answer.status_code == 200
        said = answer.json()
        assert said["folder"] == shown
        assert {place["title"] for place in said["reports"]} == {shown}
        for place in said["reports"]:
            assert client.get(f"/api/reports/{place['id']}").json()["title"] == shown


def test_the_folder_of_all_folders_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "places", lambda self: [])
    with TestClient(make_app(Library(Path("/")))) as client:
        assert client.get("/api/library").json()["folder"] == "/"


@pytest.mark.parametrize("text", ["t\ud800", "name\udcff", "t\x1b[2J", "t\u202e"])
def test_a_refusal_names_what_is_no_text(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def refused(self: Library) -> None:
        raise UserError(f"{text}: is damaged\nline 2", f"move {text} away")

    monkeypatch.setattr(Library, "places", refused)
    answer = client.get(f"/{TOKEN}/api/library")
    said = {"error": f"{printable(text)}: is damaged\nline 2", "advice": f"move {printable(text)} away"}
    assert (answer.status_code, answer.json()) == (400, said)


@pytest.mark.parametrize("name", ["nosuch", "page.js"])
def test_a_page_is_what_its_address_says_whatever_follows(client: TestClient, name: str) -> None:
    answer, plain = client.get(f"/{TOKEN}/?name={name}"), client.get(f"/{TOKEN}/")
    assert (answer.status_code, answer.text) == (200, plain.text)


def test_a_fault_of_ours_shows_no_trace(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Library) -> None:
        raise RuntimeError("/a/secret/path")

    monkeypatch.setattr(Library, "places", broken)
    answer = client.get(f"/{TOKEN}/api/library")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"]


# ---- where it listens


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}.*--port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["nosuchhost.invalid", "192.0.2.1", "2001:db8::1", "a..b", "x" * 70, "a\0b"])
def test_a_host_that_is_not_here_is_named_with_what_to_do(host: str) -> None:
    with pytest.raises(UserError) as told:
        listen(host, 0)
    assert told.value.problem.startswith(f"{printable(host)}, port 0: ")
    assert told.value.advice == "choose an address of this machine as --host"


def served(folder: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> tuple[list[str], Any]:
    """What ``serve`` says of a free port, and the application that would answer."""
    said: list[str] = []
    apps: list[Any] = []
    monkeypatch.setattr(server.uvicorn, "Config", lambda app, **how: apps.append(app))
    monkeypatch.setattr(server.uvicorn, "Server", lambda config: SimpleNamespace(run=lambda sockets: None))
    server.serve(folder, host=host, port=0, say=said.append)
    return said, apps[0]


@pytest.mark.parametrize("host", ["LOCALHOST", "Localhost", "127.0.0.1", "127.1"])
def test_a_host_in_any_spelling_is_answered(folder: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    (line,), app = served(folder, monkeypatch, host)
    assert line.count("http://") == 1
    address = line.split()[1]
    port = address.split("/")[2].rpartition(":")[2]
    for name in (host.lower(), "127.0.0.1"):  # in the header as a browser writes it
        with TestClient(app) as client:
            assert client.get(address, headers={"host": f"{name}:{port}"}).status_code == 200
            assert client.get(address, headers={"host": f"evil.example:{port}"}).status_code == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0"])
@pytest.mark.parametrize("name", ["workstation", "Lab-7.Example.ORG"])
def test_everywhere_prints_an_address_for_other_machines_and_answers_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, host: str, name: str
) -> None:
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    monkeypatch.setattr(server.socket, "gethostname", lambda: name)
    (note, line), app = served(folder, monkeypatch, host)
    assert "sees the folder's pictures" in note
    addresses = re.findall(r"http://\S+", line)
    asked = [address.split("/")[2] for address in addresses]
    assert [one.rpartition(":")[0] for one in asked] == ["127.0.0.1", name.lower()]
    port = asked[0].rpartition(":")[2]
    with TestClient(app) as client:
        for address, own in zip(addresses, asked, strict=True):
            assert client.get(address, headers={"host": own}).status_code == 200
        for other in ("192.0.2.7", "evil.example", f"{name}.evil.example"):
            assert client.get(addresses[0], headers={"host": f"{other}:{port}"}).status_code == 421


def test_the_default_is_this_machine_alone() -> None:
    assert inspect.signature(server.serve).parameters["host"].default == "127.0.0.1"
    with listen("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
    assert hosts_of("127.0.0.1", 1) == {"127.0.0.1:1", "localhost:1", "[::1]:1"}
    assert hosts_of("photos.lan", 1) == {"photos.lan:1"}
    assert hosts_of("LOCALHOST", 1) == hosts_of("localhost", 1) == hosts_of("127.0.0.1", 1)
    assert hosts_of("Photos.LAN", 80) == {"photos.lan:80", "photos.lan"}
    everywhere = {"0.0.0.0:1", "127.0.0.1:1", "localhost:1", "[::1]:1", f"{socket.gethostname().lower()}:1"}
    assert hosts_of("0.0.0.0", 1) == everywhere


# ---- what it takes

_NEEDLESS = (
    "torch._dynamo",
    "sympy",
    "torchvision",
    "scipy",
    "sklearn",
    "onnxruntime",
    "transformers",
    "ai_edge_litert",
)


@pytest.mark.slow
def test_the_page_waits_without_what_only_photos_and_trainings_need() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from reposer.app.server import make_app\n"
        "from reposer.workflows.review import Library\n"
        "from reposer.workflows.studio import open_studio\n"
        "studio = open_studio(threads=1)\n"
        "make_app(Library(Path()), lambda: studio)\n"
        f"print([name for name in {_NEEDLESS} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


_BROWSED = r"""
import contextlib, io, json, re, sys, threading, time, urllib.request
from reposer.cli.main import main

sys.argv = ["reposer", "serve", sys.argv[1], "--port", "0"]
said = io.StringIO()
with contextlib.redirect_stdout(said):
    threading.Thread(target=main, daemon=True).start()
    for _ in range(600):
        if found := re.search("http://[^ \n]+", said.getvalue()):
            break
        time.sleep(0.1)


def get(place):
    return urllib.request.urlopen(found[0] + place).read()


pages = [get(name) for name in ("", "page.js", "pose.js", "review.js")]
library = json.loads(get("api/library"))
shown = {}
for one in library["sets"]:
    place = f"api/sets/{one['id']}"
    shown[one["kind"]] = json.loads(get(place))["pictures"]
    pages.append(get(f"{place}/pictures/0"))
    if one["kind"] == "annotated people":
        pages.append(get(f"{place}/maps/0"))
assert all(pages)
browsed = "torch" in sys.modules
people = json.loads(get("api/studio"))["people"]
print(json.dumps([shown, browsed, "torch" in sys.modules, len(people)]))
sys.stdout.flush()
"""


def test_folders_are_browsed_without_torch_and_the_studio_opens_when_it_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "set", tmp_path / "set")
    annotate(draw_folder(tmp_path / "people", 3), None, stubs)
    done = subprocess.run([sys.executable, "-c", _BROWSED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, browsed, posed, people = json.loads(done.stdout.splitlines()[-1])
    assert (browsed, posed) == (False, True)
    assert shown.pop("annotated people") == 3
    assert min(shown.values()) > 0
    assert people > 0
