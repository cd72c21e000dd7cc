"""files: complete or not there, readable errors, nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reposer.errors import UserError
from reposer.storage import files, outputs
from reposer.storage.files import (
    DiskError,
    atomic_folder,
    disk_faults,
    free_bytes,
    refuse_foreign,
    remove_temporaries,
    remove_tree,
    replaced_name,
    require_space,
    sha256_bytes,
    sha256_file,
    write_atomic,
    write_new,
)
from reposer.storage.outputs import OUTPUTS, claim_outputs, holds_keys, is_older, remove_output, write_output
from reposer.weights import downloads as hub


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_sha256_of_known_content(tmp_path: Path) -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc": FIPS 180-2, B.1
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == sha256_bytes(b"abc") == expected
    large = bytes(range(256)) * 5000
    (tmp_path / "large").write_bytes(large)
    assert sha256_file(tmp_path / "large") == hashlib.sha256(large).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 3 * (1 << 20) + 7])
def test_write_atomic_writes_every_byte(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    write_atomic(tmp_path / "file", b"earlier content")
    write_atomic(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data
    assert _names(tmp_path) == {"file"}


def test_write_atomic_survives_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    write_atomic(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_write_atomic_gives_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_write_atomic_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "original").write_bytes(b"photo")
    (tmp_path / "link").symlink_to("original")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "original").read_bytes() == b"photo"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_write_new_refuses_what_exists(tmp_path: Path) -> None:
    write_new(tmp_path / "file", b"1")
    with pytest.raises(DiskError, match=r"file: cannot be written .1 bytes needed.: File exists"):
        write_new(tmp_path / "file", b"2")
    assert (tmp_path / "file").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "open", "replace"])
def test_disk_faults_name_path_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, advice: str
) -> None:
    write_atomic(tmp_path / "file", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DiskError) as caught:
        write_atomic(tmp_path / "file", b"x" * 12345)
    monkeypatch.undo()
    assert str(tmp_path / "file") in str(caught.value)
    assert "12,345 bytes needed" in str(caught.value)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert _names(tmp_path) == {"file"}


def test_a_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="the folder is not there"):
        write_atomic(tmp_path / "absent" / "file", b"")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="a part of it is a file"):
        write_atomic(tmp_path / "file" / "below", b"")


def test_programming_errors_are_not_explained_away() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught, disk_faults("somewhere"):
        os.fsync(10**6)
    assert not isinstance(caught.value, DiskError)


def test_atomic_folder_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_bytes(b"a")
        write_new(folder / "b", b"b")
        assert not target.exists()
    assert (target / "deep" / "a").read_bytes() == b"a"
    assert (target / "b").read_bytes() == b"b"
    assert _names(tmp_path) == {"result"}


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is fsynced, in order."""
    names: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def test_write_atomic_fsyncs_the_file_and_then_its_folder(tmp_path: Path, synced: list[str]) -> None:
    write_atomic(tmp_path / "file", b"data")
    assert len(synced) == 2
    assert synced[0].startswith(".file.tmp-")
    assert synced[1] == tmp_path.name


def test_atomic_folder_fsyncs_every_file_and_folder(tmp_path: Path, synced: list[str]) -> None:
    with atomic_folder(tmp_path / "result") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"b")
    assert {"a", "b", "deep", folder.name, tmp_path.name} <= set(synced)
    assert synced[-1] == tmp_path.name  # the rename is made durable last


def test_atomic_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in (b"1", b"2"):
        with atomic_folder(tmp_path / "result", lambda there: None) as folder:
            write_new(folder / "file", content)
    assert (tmp_path / "result" / "file").read_bytes() == b"2"
    assert _names(tmp_path) == {"result"}


def test_atomic_folder_puts_the_old_one_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_folder(tmp_path / "result", lambda there: None) as folder:
        write_new(folder / "file", b"old")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if ".tmp-" in source.name:
            raise OSError(errno.EIO, "broken")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(DiskError), atomic_folder(tmp_path / "result", lambda there: None):
        pass
    assert (tmp_path / "result" / "file").read_bytes() == b"old"
    assert _names(tmp_path) == {"result"}


def test_a_replacement_is_done_even_if_the_old_folder_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    for content in (b"old", b"new"):
        with atomic_folder(tmp_path / "result", lambda there: None) as folder:
            write_new(folder / "file", content)
        monkeypatch.setattr(os, "unlink", fail)
    monkeypatch.undo()
    assert (tmp_path / "result" / "file").read_bytes() == b"new"
    assert len(remove_temporaries(tmp_path)) == 1
    assert _names(tmp_path) == {"result"}


@pytest.mark.parametrize(
    "error", [ValueError("mine"), FileNotFoundError(2, "a source is missing"), KeyboardInterrupt()]
)
def test_atomic_folder_leaves_the_old_one_when_the_block_raises(tmp_path: Path, error: BaseException) -> None:
    with atomic_folder(tmp_path / "result") as folder:
        write_new(folder / "file", b"old")

    def replace() -> None:
        with atomic_folder(tmp_path / "result") as folder:
            write_new(folder / "file", b"new")
            raise error

    with pytest.raises(type(error)) as caught:
        replace()
    assert caught.value is error  # what the block raises about other files is not rewritten
    assert (tmp_path / "result" / "file").read_bytes() == b"old"
    assert _names(tmp_path) == {"result"}


def test_remove_tree_hides_the_folder_before_deleting_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_bytes(b"")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(OSError, match="broken"):
        remove_tree(tmp_path / "old")
    monkeypatch.undo()
    assert not (tmp_path / "old").exists()
    assert len(remove_temporaries(tmp_path)) == 1
    remove_tree(tmp_path / "old")  # it need not exist


def test_remove_temporaries_takes_only_its_own(tmp_path: Path) -> None:
    mine = [".file.tmp-0123abcd", ".step_00000001.tmp-ffffffff"]
    others = [
        "file",
        ".file.tmp",
        "file.tmp-0123abcd",
        ".file.tmp-0123abcd.jpg",
        replaced_name(Path("x")).name,
    ]
    (tmp_path / mine[0]).write_bytes(b"")
    (tmp_path / mine[1]).mkdir()
    (tmp_path / mine[1] / "part").write_bytes(b"")
    for name in others:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in remove_temporaries(tmp_path)] == mine
    assert _names(tmp_path) == set(others)


def test_space_is_checked_on_the_disk_of_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    path = tmp_path / "not" / "there"
    assert 0 < free_bytes(path) <= status.f_blocks * status.f_frsize
    require_space(path, 1)
    with pytest.raises(
        DiskError, match=r"not/there: 1,000,000,000,000,000,000 bytes are needed and [\d,]+ are free"
    ):
        require_space(path, 10**18)


def test_the_light_modules_import_no_torch() -> None:
    modules = "reposer.storage.files, reposer.config, reposer.storage.runs, reposer.progress"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def build() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "ours").write_text("ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "notes.txt").write_text("yours")

    with pytest.raises(UserError, match="was not there before"):
        build()
    assert (tmp_path / "out" / "notes.txt").read_text() == "yours"
    assert _names(tmp_path) == {"out"}


def test_the_second_writer_of_a_folder_is_refused_and_the_first_ends(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "first").write_text("")
        with pytest.raises(UserError, match="another process is writing"), atomic_folder(tmp_path / "out"):
            pass
    assert _names(tmp_path) == {"out"}
    assert _names(tmp_path / "out") == {"first"}


def test_a_replaced_folder_whose_deletion_was_killed_goes_at_the_next_start(tmp_path: Path) -> None:
    """A kill between the renames and the last file deleted: what is left of the old folder has a name of its
    own, which nobody would look for."""
    for _ in range(2):
        with atomic_folder(tmp_path / "out", check=lambda path: None) as folder:
            (folder / "a.txt").write_text("x")
    grave = tmp_path / "..out.replaced.tmp-0123abcd"
    grave.mkdir()
    (grave / "old.txt").write_text("x")
    other = tmp_path / "..outer.replaced.tmp-0123abcd"
    other.mkdir()
    with atomic_folder(tmp_path / "out", check=lambda path: None) as folder:
        (folder / "a.txt").write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out"]


def test_what_a_killed_writer_left_goes_at_the_next_start(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; import reposer.storage.files as f\n"
        "out = Path(sys.argv[1])\n"
        "os.replace = lambda *a: os.kill(os.getpid(), 9)\n"
        "with f.atomic_folder(out / 'folder') as made:\n"
        "    (made / 'person.png').write_bytes(b'person')\n"
        "    f.write_atomic(out / 'table.csv', b'person')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert done.returncode == -9
    assert len(_names(tmp_path)) == 2  # both hidden
    (tmp_path / ".other.txt.tmp-0123abcd").write_text("of another file")
    files._looked_through.clear()
    write_atomic(tmp_path / "table.csv", b"whole")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert _names(tmp_path) == {"table.csv", "folder", ".other.txt.tmp-0123abcd"}


def test_a_living_writers_temporary_stays(tmp_path: Path) -> None:
    with files._writing(tmp_path / ".table.csv.tmp-0123abcd", b"of a living process"):
        files._looked_through.clear()
        write_atomic(tmp_path / "table.csv", b"whole")
        assert _names(tmp_path) == {"table.csv", ".table.csv.tmp-0123abcd"}


def test_foreign_files_are_named(tmp_path: Path) -> None:
    for name in ("own.txt", "notes.txt", "runs/a/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=r"holds what is not of a table: notes\.txt, runs"):
        refuse_foreign(tmp_path, lambda name: name == "own.txt", "a table")
    refuse_foreign(tmp_path, lambda name: True, "a table")


def test_a_missing_folder_is_never_a_repository_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, **how: asked.append((name, how["revision"])) or tmp_path
    )
    with pytest.raises(UserError, match=r"runs/san: no such folder: .*hub:runs/san"):
        hub.fetch_folder("runs/san", ["config.json"])
    with pytest.raises(UserError, match="is no name of the hub"):
        hub.fetch_folder("hub:../runs", ["config.json"])
    assert asked == []
    assert hub.fetch_folder(f"hub:runs/san@{'a' * 40}", ["config.json"]) == tmp_path
    assert asked == [("runs/san", "a" * 40)]


def test_an_output_replaces_what_a_command_wrote_and_nothing_else(tmp_path: Path) -> None:
    table, mine = tmp_path / "table.md", tmp_path / "notes.md"
    mine.write_text("mine")
    write_output(table, b"1")
    write_output(table, b"2")
    assert json.loads((tmp_path / OUTPUTS).read_text())["table.md"][0] == sha256_bytes(b"2")
    with pytest.raises(UserError, match=r"notes\.md: is there already"):
        write_output(mine, b"")
    table.write_text("2, and a remark")  # the user's now
    for refused in (
        lambda: write_output(table, b"3"),
        lambda: claim_outputs(tmp_path, ["table.md"], older=True),
    ):
        with pytest.raises(UserError, match=r"table\.md: is there already"):
            refused()
    remove_output(table)
    assert (table.read_text(), mine.read_text()) == ("2, and a remark", "mine")
    table.unlink()
    table.symlink_to(mine)
    with pytest.raises(UserError, match=r"table\.md: is there already"):
        write_output(table, b"3")
    table.unlink()
    write_output(table, b"3")
    remove_output(table)
    assert _names(tmp_path) == {"notes.md", OUTPUTS}
    claim_outputs(tmp_path / "absent", ["table.md"])
    for damaged in (b"[]", b"{", b'{"table.md": 1}', b"\xff", b"[" * 100_000):
        (tmp_path / OUTPUTS).write_bytes(damaged)
        with pytest.raises(UserError, match="is no list of outputs"):
            write_output(table, b"3")


def test_a_kill_between_list_and_file_leaves_an_output_that_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_output(tmp_path / "table.md", b"1")
    real = files.write_atomic

    def stop(path: Path, data: bytes) -> None:
        if Path(path).name == "table.md":
            raise KeyboardInterrupt
        real(path, data)

    for content in (b"2", b"2", b"3"):
        monkeypatch.setattr(outputs, "write_atomic", stop)
        with pytest.raises(KeyboardInterrupt):
            write_output(tmp_path / "table.md", content)
        monkeypatch.undo()
        assert (tmp_path / "table.md").read_bytes() == b"1"
    write_output(tmp_path / "table.md", b"4")


def test_outputs_of_versions_without_lists_are_known_by_their_form(tmp_path: Path) -> None:
    report, picture = tmp_path / "report.json", tmp_path / "people.png"
    form = holds_keys("rows", "metrics")
    picture.write_bytes(b"a picture")
    for text, known in (
        ('{"rows": 1}', False),
        ("[]", False),
        ("{", False),
        ('{"rows": 1, "metrics": 2}', True),
    ):
        report.write_text(text)
        assert is_older(report, form) is known
    claim_outputs(tmp_path, ["people.png", "report.json"], older=True)
    write_output(picture, b"another")
    write_output(report, b'{"rows": 1, "metrics": 2}')
    assert not is_older(report, form)  # listed: what else bears these names is somebody's


def test_writers_side_by_side_lose_no_entry_of_the_list(tmp_path: Path) -> None:
    """Processes that write other files, and the same one, of a folder at once: each is still known after."""
    program = (
        "import sys; from pathlib import Path; from reposer.storage.outputs import write_output\n"
        "for n in range(25):\n"
        "    write_output(Path(sys.argv[1]) / f'{sys.argv[2]}_{n}', b'x')\n"
        "    write_output(Path(sys.argv[1]) / 'both', f'{sys.argv[2]} {n}'.encode())\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    names = [f"{name}_{n}" for name in "abc" for n in range(25)]
    assert _names(tmp_path) == {*names, "both", OUTPUTS}
    claim_outputs(tmp_path, [*names, "both"])
    listed = json.loads((tmp_path / OUTPUTS).read_text())
    assert listed["both"][0] == sha256_file(tmp_path / "both")
