"""Uploads and poses through the page's server: the whole corpus of bad images, sizes, wrong requests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import CORPUS, SPECIAL_FILES, Case, jpeg
from page_studio import page_studio
from quick import one_in
from starlette.testclient import TestClient

from reposer.app.server import MAX_UPLOAD, Guard, hosts_of, make_app
from reposer.workflows.review import Library

TOKEN = "correct-horse"
HOME = "http://127.0.0.1:8765"
SENT = {"origin": HOME, "content-type": "application/octet-stream"}
_LONG = ("WebP of one color", "PNG text of 100 MB", "PNG profile of 100 MB")  # take seconds to make
FILES = [case for case in CORPUS if case not in SPECIAL_FILES]  # a link or a device cannot be sent


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    app = make_app(Library(tmp_path_factory.mktemp("empty")), cache(page_studio))
    guard: Any = Guard(app, TOKEN, hosts_of("127.0.0.1", 8765))
    with TestClient(guard, base_url=f"{HOME}/{TOKEN}/", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    "case",
    one_in(4, FILES, slow=lambda case: case.label in _LONG, id=lambda case: case.label),
)
def test_every_kind_of_image_is_taken_or_refused_by_its_rule(
    client: TestClient, case: Case, tmp_path: Path
) -> None:
    file = tmp_path / f"image{case.suffix}"
    case.make(file)
    before = len(client.get("api/studio").json()["people"])
    answer = client.post("api/people", content=file.read_bytes(), headers=SENT)
    if case.refused in (None, "wrong-extension"):  # a name is not sent
        assert answer.status_code == 200, answer.text
        return
    assert answer.status_code == 400, answer.text
    assert "\n" not in answer.json()["error"]
    assert answer.json()["error"].startswith("the photo: ")
    assert answer.json()["advice"]
    assert len(client.get("api/studio").json()["people"]) == before


def test_a_photo_may_be_larger_than_other_requests_and_has_an_end(client: TestClient) -> None:
    assert client.post("api/people", content=jpeg() + bytes(100_000), headers=SENT).status_code == 200
    assert client.post("api/people", content=bytes(MAX_UPLOAD + 1), headers=SENT).status_code == 413
    assert client.post("api/people/chosen", content=bytes(100_000), headers=SENT).status_code == 413
    assert client.post("api/people", content=jpeg()).status_code == 403  # does not say where it comes from


def test_nothing_that_is_uploaded_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "shown").mkdir()
    guard: Any = Guard(
        make_app(Library(tmp_path / "shown"), cache(page_studio)), TOKEN, hosts_of("127.0.0.1", 8765)
    )
    with TestClient(guard, base_url=f"{HOME}/{TOKEN}/") as client:
        assert client.post("api/people", content=jpeg(), headers=SENT).status_code == 200
    assert [path.name for path in tmp_path.rglob("*")] == ["shown"]


def test_a_pose_becomes_a_picture(client: TestClient) -> None:
    told = client.get("api/studio").json()
    someone = told["people"][0]
    place = f"api/people/{someone['number']}"
    body = {"joints": someone["poses"]["left"], "background": "source"}
    answer = client.post(f"{place}/picture", json=body, headers=SENT | {"content-type": "application/json"})
    assert answer.headers["content-type"] == "image/png"
    for part in ("image", "map"):
        assert client.get(f"{place}/{part}").headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("people/0/picture", {"joints": [None] * 18}, 400),
        ("people/1/picture", {"joints": [None] * 18}, 400),
        ("people/1/picture", {"joints": [None] * 19}, 422),
        ("people/1/picture", {"joints": [["a", "b"]] * 18}, 422),
        ("people/1/picture", {"joints": "front"}, 422),
        ("people/1/picture", {"joints": [[5, 5]] * 18, "background": "../a"}, 400),
        ("people/1/picture", {"joints": [[5, 5]] * 18, "own": [[1, 2]] * 3}, 400),
        ("people/one/picture", {"joints": [None] * 18}, 422),
        ("people/chosen", {"identity": "../../etc", "row": 0}, 400),
        ("people/chosen", {"identity": "x"}, 422),
    ],
)
def test_what_a_page_would_never_send_is_one_line(
    client: TestClient, path: str, body: Any, status: int
) -> None:
    answer = client.post(f"api/{path}", json=body, headers=SENT | {"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["error"]
