"""The page in a real browser: Debian's chromium, driven by Playwright; `make test-slow` installs the latter.

``REPOSER_SCREENSHOTS=FOLDER`` keeps what the tests saw.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import augment_runner as runner
import pytest
import uvicorn
from annotate_runner import draw_folder, stubs
from bad_inputs import CORPUS, SPECIAL_FILES
from page_studio import page_studio

from reposer.annotation.annotate import annotate
from reposer.app.server import Guard, hosts_of, listen, make_app
from reposer.data.records import read_decisions
from reposer.images import decode, encode_png
from reposer.report import _plot
from reposer.sections import Picture, Section, Table, write_sections
from reposer.workflows.review import Library

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")
TOKEN = "correct-horse"
SHOTS = os.environ.get("REPOSER_SCREENSHOTS", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    prepared = runner.prepare_drawn(root / ".data", 4)
    runner.write(prepared, root / "set", 3)
    annotate(draw_folder(root / "people", 30, ((128, 64),)), None, stubs)
    (root / "run").mkdir()
    curve = Picture("a curve", data=_plot({"loss": [(0, 1.0), (1, 0.5), (2, 0.4)]}))
    image = next((root / "set" / "images").iterdir())
    (root / "run" / "grid.png").write_bytes(encode_png(decode(image)))
    table = Table(["method", "mAP"], [["real", "0.61"], ["generated", "0.64"]], "Mean of three seeds.")
    pictures = [Picture("a grid", file="grid.png"), curve]
    write_sections(root / "run", [Section("What was found", ["It helps <b>here</b>."], pictures, [table])])
    return root


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    listening: socket.socket = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    guard: Any = Guard(make_app(Library(folder), cache(page_studio)), TOKEN, hosts_of("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(guard, log_level="warning", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{port}/{TOKEN}/"
    server.should_exit = True
    thread.join(10)
    listening.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (make test-slow)")
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page whose requests all go to the server, and on whose console nothing is complained of."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    watch(opened, address)
    opened.goto(address)
    drawn(opened)
    yield opened
    assert opened.complaints == []
    context.close()


def watch(page: Any, address: str) -> None:
    page.complaints = []
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))

    def heard(message: Any) -> None:
        if message.type == "error" and "status of 4" not in message.text:  # an answer that refuses is told
            page.complaints.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith(address) and not request.url.startswith("blob:"):
            page.complaints.append(request.url)

    page.on("console", heard)
    page.on("request", asked)


def drawn(page: Any, more_than: int = 0) -> int:
    page.wait_for_function(
        "n => Number(document.querySelector('#result').dataset.drawn ?? 0) > n", arg=more_than
    )
    return int(page.evaluate("Number(document.querySelector('#result').dataset.drawn)"))


def settled(page: Any) -> int:
    """The number of pictures so far, once no more come."""
    count = drawn(page)
    while True:
        page.wait_for_timeout(400)
        now = drawn(page)
        if now == count:
            return now
        count = now


def stand(page: Any) -> None:
    """In a pose that has every joint."""
    count = settled(page)
    page.locator("#poses").get_by_role("button", name="front", exact=True).click()
    drawn(page, count)
    settled(page)


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def middle(page: Any, joint: int) -> tuple[float, float]:
    box = page.locator(f"#skeleton [data-joint='{joint}'] .dot").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def joint_of(page: Any, joint: int) -> str:
    return str(page.locator(f"#skeleton [data-joint='{joint}']").get_attribute("aria-label"))


def test_dragging_a_joint_draws_a_picture_within_a_second(page: Any) -> None:
    shot(page, "pose")
    stand(page)
    before, said = settled(page), joint_of(page, 4)
    pixels = page.evaluate("document.querySelector('#result').toDataURL()")
    x, y = middle(page, 4)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y - 60, steps=6)
    page.mouse.up()
    began = time.monotonic()
    drawn(page, before)
    assert time.monotonic() - began < 1
    settled(page)
    assert joint_of(page, 4) != said
    assert page.evaluate("document.querySelector('#result').toDataURL()") != pixels
    assert abs(middle(page, 4)[0] - x - 40) < 2
    shot(page, "pose_dragged")


def test_joints_move_by_the_keyboard_and_by_touch(page: Any, browser: Any, address: str) -> None:
    stand(page)
    page.locator("#skeleton [data-joint='0']").focus()
    said = joint_of(page, 0)
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    across, down = (int(word) for word in said.replace(",", "").split() if word.isdigit())
    assert joint_of(page, 0) == f"nose, {across + 2} across, {down + 5} down"
    page.keyboard.press("Delete")
    page.get_by_role("button", name="nose", exact=True).click()
    assert joint_of(page, 0).startswith("nose, ")

    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone = context.new_page()
    watch(phone, address)
    phone.goto(address)
    stand(phone)
    shot(phone, "pose_phone")
    said, (x, y) = joint_of(phone, 7), middle(phone, 7)
    session = context.new_cdp_session(phone)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x + 10, "y": y + 10}]),
        ("touchMove", [{"x": x + 25, "y": y + 20}]),
        ("touchEnd", []),
    ):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    phone.wait_for_function(
        "said => document.querySelector(\"#skeleton [data-joint='7']\").getAttribute('aria-label') !== said",
        arg=said,
    )
    assert phone.complaints == []
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_canonical_poses_mirror_and_background(page: Any) -> None:
    count = settled(page)
    for name in ("left", "back", "mirrored", "as in the photo"):
        page.locator("#poses").get_by_role("button", name=name, exact=True).click()
        count = drawn(page, count)
    page.select_option("#background", "generated")
    drawn(page, count)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    assert Path(download.value.path()).read_bytes()[:4] == b"\x89PNG"


def test_every_bad_image_is_refused_in_one_line(page: Any, tmp_path: Path) -> None:
    settled(page)
    count = page.locator("#people li").count()
    for number, case in enumerate(case for case in CORPUS if case not in SPECIAL_FILES):
        if case.refused in (None, "wrong-extension"):
            continue
        file = tmp_path / f"{number}{case.suffix}"
        case.make(file)
        page.evaluate("document.querySelector('#told').textContent = ''")
        page.set_input_files("#photo", str(file))
        page.wait_for_function("() => document.querySelector('#told').textContent.startsWith('the photo: ')")
        assert page.locator("#people li").count() == count, case.label
    shot(page, "pose_refused")
    good = tmp_path / "good.png"
    good.write_bytes(encode_png(page_studio().subject(2).person.image))
    page.set_input_files("#photo", str(good))
    page.wait_for_function(f"() => document.querySelectorAll('#people li').length === {count + 1}")
    settled(page)
    assert page.locator("#told").is_hidden()


def test_a_reload_comes_back_to_the_same_place(page: Any) -> None:
    page.locator("#people li").nth(2).click()
    page.reload()
    drawn(page)
    assert page.locator("#people li").nth(2).get_attribute("aria-selected") == "true"
    page.get_by_role("tab", name="Runs and studies").click()
    page.locator("#report h2").first.wait_for()
    assert "<b>here</b>" in page.locator("#report").inner_text()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#report img')].every(i => i.complete && i.naturalWidth)"
    )
    shot(page, "report")
    page.reload()
    page.locator("#report h2").first.wait_for()
    page.go_back()
    page.locator("#pose").wait_for()


def test_pictures_are_kept_and_dropped_by_key_in_two_tabs(page: Any, folder: Path, address: str) -> None:
    page.get_by_role("tab", name="Pictures").click()
    page.select_option("#set", label="set (augmented set)")
    page.locator("#grid li").first.click()
    page.keyboard.press("d")
    page.keyboard.press("k")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("d")
    page.locator("#grid li").nth(3).and_(page.locator(".dropped")).wait_for()
    shot(page, "pictures")
    states = [page.locator("#grid li .state").nth(i).inner_text().strip() for i in range(4)]
    assert states == ["dropped by hand", "kept by hand", "", "dropped by hand"]
    assert sorted(one.keep for one in read_decisions(folder / "set").values()) == [False, False, True]

    other = page.context.new_page()
    watch(other, address)
    other.goto(page.url)
    other.locator("#grid li.dropped").first.wait_for()
    other.locator("#grid li").nth(4).click()
    other.keyboard.press("d")
    other.locator("#grid li").nth(4).and_(other.locator(".dropped")).wait_for()
    page.locator("#grid li").first.click()
    page.keyboard.press("u")
    page.wait_for_function("() => !document.querySelector('#grid li').classList.contains('dropped')")
    other.reload()
    other.locator("#grid li").nth(4).and_(other.locator(".dropped")).wait_for()
    assert sorted(one.keep for one in read_decisions(folder / "set").values()) == [False, False, True]
    assert other.complaints == []


def test_no_key_decides_about_a_set_that_is_not_there_yet(page: Any, folder: Path) -> None:
    before = read_decisions(folder / "people"), read_decisions(folder / "set")
    page.get_by_role("tab", name="Pictures").click()
    page.select_option("#set", label="people (annotated people)")
    page.locator("#counts", has_text="pictures").wait_for()
    page.locator("#grid li").first.click()
    held: list[Any] = []
    page.route("**/api/sets/*\\?*", lambda route: held.append(route))
    page.select_option("#set", label="set (augmented set)")
    assert page.locator("#grid li").count() == 0
    page.keyboard.press("d")
    page.wait_for_timeout(300)
    assert held
    for route in held:
        route.continue_()
    page.locator("#grid li").first.wait_for()
    assert (read_decisions(folder / "people"), read_decisions(folder / "set")) == before


def test_annotated_people_are_filtered_shown_with_joints_and_posed(
    page: Any, browser: Any, address: str
) -> None:
    page.get_by_role("tab", name="Pictures").click()
    page.select_option("#set", label="people (annotated people)")
    page.locator("#person option[value='0002']").wait_for(state="attached")
    page.select_option("#person", "0002")
    page.locator("#counts", has_text="shown by these filters").wait_for()
    page.select_option("#score", "mask_area")
    page.locator("#joints circle").first.wait_for()
    page.locator("#grid li").nth(1).click()
    page.wait_for_timeout(300)
    shot(page, "annotated")
    page.get_by_role("button", name="Pose this person").click()
    page.locator("#pose").wait_for()
    settled(page)
    page.locator("#edit-own").check()
    page.locator("#withlabels").check()
    shot(page, "pose_annotated")
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone = context.new_page()
    watch(phone, address)
    phone.goto(f"{address}#pictures")
    phone.locator("#grid li").nth(2).tap()
    phone.get_by_role("button", name="Drop").tap()
    phone.locator("#grid li.dropped").first.wait_for()
    shot(phone, "pictures_phone")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.complaints == []
    context.close()


def test_an_empty_folder_says_what_to_do(browser: Any, tmp_path: Path) -> None:
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    guard: Any = Guard(make_app(Library(tmp_path), cache(page_studio)), TOKEN, hosts_of("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(guard, log_level="warning", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        context = browser.new_context()
        page = context.new_page()
        watch(page, f"http://127.0.0.1:{port}/{TOKEN}/")
        page.goto(f"http://127.0.0.1:{port}/{TOKEN}/#pictures")
        page.locator("#nothing", has_text="reposer augment").wait_for()
        shot(page, "empty")
        page.get_by_role("tab", name="Runs and studies").click()
        page.locator("#none").wait_for()
        assert page.complaints == []
        context.close()
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
