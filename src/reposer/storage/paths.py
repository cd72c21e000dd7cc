"""Which files may be opened: regular files inside a given root, up to a size, never a FIFO or a device.

Everything that takes a path from a data set, a manifest, a list, a section or a configuration comes through
here, so that a hostile name or link reads, writes and deletes nothing outside the folders that were named:

* a value of a file becomes a path by :func:`contained`, or, to write or delete there, by :func:`unlinked`;
* a folder that is written into is made by :func:`made_folder`, a file is deleted by :func:`delete`;
* a file is read by :func:`read_regular`, a large one by :func:`open_regular`, with its root; both look again
  when they open.

``tests/storage/test_paths.py`` finds code that goes around this.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from reposer.errors import UserError, disk_faults

MAX_PATH = 1024  # characters of a path in a file
CHECKPOINTS = "checkpoints"  # the folder of a run that holds them
_MAX_NAME_BYTES = 255  # what file systems hold
_SHOWN = 120  # characters of a refused path in a message
_HUB_SNAPSHOT = re.compile("(.*/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:")
# C0 and C1 controls, line and paragraph separators, what turns the reading direction, lone surrogates
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.I)


class RefusedFileError(UserError):
    """A file or path that is not used.

    Args:
        file: the file, as the user knows it.
        rule: short id of the rule that refuses it (the tables of docs/reference/rules.md).
        problem: what is wrong with it.
        advice: what to do about it.
    """

    def __init__(self, file: str | os.PathLike[str], rule: str, problem: str, advice: str = "") -> None:
        super().__init__(f"{printable(file)}: {problem}", advice)
        self.file = printable(file)
        self.rule = rule
        self.reason = problem


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that every terminal, CSV and JSON file can hold: bytes that are no UTF-8 and control
    characters become \\x.. escapes."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate, which no name on a disk holds
        text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """:func:`printable` line by line: what is said to a user, whom no name in it can mislead."""
    return "\n".join(map(printable, text.split("\n")))


def check_relative(path: str) -> str:
    """``path`` itself if it is a portable relative path that cannot leave its root; '/' separates.

    Raises:
        ValueError: no text, absolute, or holds '..', '.', '~' at its start, an empty part, a drive, a
            backslash, a control character, a name that Windows keeps for a device, ends in '.' or ' ', or is
            too long.
    """
    if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH:
        raise ValueError(f"a path must be text of 1 to {MAX_PATH} characters")
    if _UNPRINTABLE.search(path):
        raise ValueError("a path must not hold control characters or undecodable bytes")
    if "\\" in path or path.startswith(("/", "~")):
        raise ValueError("a path must be relative, with '/' between its parts")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise ValueError("a path must not hold '.', '..' or empty parts")
        if _DRIVE.match(part):
            raise ValueError("a path must be relative, without a drive")
        if _DEVICE.fullmatch(part) or part[-1] in ". ":
            raise ValueError("a path must not hold a name that Windows keeps for itself or would change")
        if len(part) > _MAX_NAME_BYTES // 4 and len(part.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"a name must have at most {_MAX_NAME_BYTES} bytes")
    return path


def check_name(name: str) -> str:
    """``name`` itself if it is a portable name of one file: :func:`check_relative` without '/'.

    Raises:
        ValueError: as there, or it holds '/'.
    """
    if "/" in check_relative(name):
        raise ValueError("a file name must not hold '/'")
    return name


def contained(root: Path, relative: str) -> Path:
    """``root / relative``, refused where it leaves ``root``, be it by its text or through a link.

    The only way from a value that a file holds to a path. ``root`` itself may be a link: the user named it.

    Raises:
        RefusedFileError: rule ``bad-path`` or ``link-outside``.
    """
    path = root / _checked(relative)
    require_inside(path, root)
    return path


def leads_to(text: str) -> str:
    """Where a text of a stranger's file leads as a path, links followed; "" where it is none."""
    try:
        return os.path.realpath(text)
    except (OSError, ValueError):  # it holds a NUL or half a character
        return ""


def refuse_inputs(out: Path, *inputs: str | Path | None) -> None:
    """Refuse to write over what the same command reads; called before any work.

    Args:
        inputs: files and folders; a name that is none (of a shipped or hub network) is passed over.

    Raises:
        UserError: ``out`` is one of them, or a folder that holds one, whatever links or spellings lead there.
    """
    if not os.path.exists(out):
        return
    for given in inputs:
        if given is None or not os.path.exists(given):
            continue
        real = Path(os.path.realpath(given))
        if any(os.path.samefile(place, out) for place in (real, *real.parents)):
            is_it = "is" if os.path.samefile(real, out) else "holds"
            problem = f"{printable(out)}: {is_it} {printable(given)}, which this command reads"
            raise UserError(problem, "choose another --out")


def unlinked(root: Path, relative: str) -> Path:
    """As :func:`contained`, to write or delete: no part of it below ``root`` may be a link at all.

    Raises:
        RefusedFileError: rule ``bad-path`` or ``link``.
    """
    path = root / _checked(relative)
    if not _plainly_inside(path, root):
        raise RefusedFileError(
            path,
            "link",
            "is a link or lies behind one: nothing is written or deleted there",
            "remove the link",
        )
    return path


def made_folder(root: Path, relative: str = "") -> Path:
    """The folder ``root / relative``, made where it is missing; the only way to one that is written into.

    Raises:
        RefusedFileError: rules ``bad-path``, ``link``; ``not-a-folder``: something else is there.
        DiskError: the disk refuses: it lies below a file, or there is no right to write.
    """
    folder = unlinked(root, relative) if relative else root
    with disk_faults(folder):
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise RefusedFileError(folder, "not-a-folder", "is no folder", "move it away") from error
    return folder


def require_writable(folder: Path) -> None:
    """Refuse, before any work, a folder in which nothing can be written; looks at the nearest existing one.

    Args:
        folder: need not exist.

    Raises:
        DiskError: a part of the path is no folder, or there is no right to write.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    with disk_faults(folder):
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def require_searchable(folder: Path, advice: str) -> None:
    """Refuse a folder that there is no right to look into; it need not exist.

    Raises:
        RefusedFileError: rule ``unreadable``.
    """
    try:
        os.stat(folder / "_")
    except PermissionError as error:
        raise RefusedFileError(folder, "unreadable", "may not be looked into", advice) from error
    except OSError:  # it is not there, or no folder: what needs it says so
        pass


def delete(root: Path, relative: str) -> None:
    """Delete the file ``root / relative``, which need not exist; a link is deleted, never what it leads to.

    Raises:
        RefusedFileError: rule ``bad-path``, or ``link`` where it lies behind a link.
    """
    parts = _checked(relative).split("/")
    with suppress(FileNotFoundError):
        try:
            handle = _open_below(root, parts[:-1])
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):  # a link in the way, whenever it was put there
                unlinked(root, relative)
            raise
        try:
            os.unlink(parts[-1], dir_fd=handle)
        finally:
            os.close(handle)


def folder_name(folder: str | os.PathLike[str]) -> str:
    """What a folder is called, as text; that of "." too, and "/" has the name "/"."""
    path = os.path.abspath(folder)
    return printable(os.path.basename(path) or path)


def _checked(relative: str) -> str:
    try:
        return check_relative(relative)
    except ValueError as error:
        shown = relative if isinstance(relative, str) else repr(relative)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise RefusedFileError(shown, "bad-path", str(error), "correct the path") from error


def _open_below(root: Path, folders: Sequence[str]) -> int:
    """A descriptor of ``root``/folders...; a link among them is not followed (OSError ELOOP or ENOTDIR)."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for folder in folders:
        try:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
        finally:
            os.close(handle)
        handle = below
    return handle


def read_regular(path: Path, *, max_bytes: int, root: Path | None = None) -> bytes:
    """The bytes of a regular file, looked at before it is opened: nothing here can block or run away.

    Args:
        path: the file; a link to a regular file is followed.
        max_bytes: a larger file is refused unread.
        root: where given, a path that leads outside it (through links) is refused.

    Raises:
        RefusedFileError: rules ``missing``, ``not-a-file``, ``link-loop``, ``link-outside``, ``unreadable``,
            ``bad-path``, ``too-large``.
    """
    with open_regular(path, root) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size + 1) if size <= max_bytes else b""  # never a buffer of max_bytes
            if len(data) > size:  # it grew
                data += file.read(max_bytes - size)
        except OSError as error:
            raise _refusal(path, error) from error
    if max(size, len(data)) > max_bytes:
        raise RefusedFileError(path, "too-large", f"larger than {max_bytes:,} bytes", "make it smaller")
    return data


def open_regular(path: Path, root: Path | None = None) -> BufferedReader:
    """A regular file opened for reading, looked at before and after: for files of any size.

    Raises:
        RefusedFileError: as :func:`read_regular`, ``too-large`` aside.
    """
    require_regular(path, root)
    try:
        descriptor = _open_regular(path, root)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error
    file = os.fdopen(descriptor, "rb")
    try:
        _check_kind(path, os.fstat(descriptor).st_mode)
    except RefusedFileError:
        file.close()
        raise
    return file


def _open_regular(path: Path, root: Path | None) -> int:
    """Open for reading what was looked at a moment ago; a link below ``root`` that came since is refused."""
    # O_NONBLOCK: should the file be swapped for a FIFO between the two looks, open returns at once
    flags = os.O_RDONLY | os.O_NONBLOCK
    if root is None:
        return os.open(path, flags)
    if not _plainly_inside(path, root):  # a link inside the root: where it leads to, without it
        path, root = _resolved(path, root)
    parts = path.parts[len(root.parts) :]
    handle = _open_below(root, parts[:-1])
    try:
        return os.open(parts[-1], flags | os.O_NOFOLLOW, dir_fd=handle)
    finally:
        os.close(handle)


def require_regular(path: Path, root: Path | None = None) -> None:
    """Refuse, without opening it, what is no regular file, or lies outside ``root`` where that is given.

    Raises:
        RefusedFileError: as :func:`read_regular`, ``too-large`` aside.
    """
    require_inside(path, root)
    try:
        _check_kind(path, os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error


def require_inside(path: Path, root: Path | None) -> None:
    """Refuse a path which, links followed, is not inside ``root`` (None: anywhere will do).

    Raises:
        RefusedFileError: rule ``link-outside``.
    """
    try:
        if root is not None and not _plainly_inside(path, root):
            _resolved(path, root)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error


def foreign_names(folder: Path, own: Callable[[str], bool]) -> list[str]:
    """Relative paths of what is not a folder's own, sorted; a foreign folder's name stands for all in it.

    Args:
        own: whether a relative path, '/' between its parts, belongs there. A link never does.
    """
    foreign = []
    for place, folders, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        for name in sorted(names + folders):
            inside = name if below == "." else f"{below.replace(os.sep, '/')}/{name}"
            if not own(inside) or os.path.islink(os.path.join(place, name)):
                foreign.append(inside)
                folders[:] = [one for one in folders if one != name]
    return sorted(foreign)


def _resolved(path: Path, root: Path) -> tuple[Path, Path]:
    """Where ``path`` really leads, and the folder that holds this: what ``root`` really is, or, of a snapshot
    in a cache of huggingface_hub, whose files are links, the blobs of the same repository.

    Raises:
        RefusedFileError: rule ``link-outside``.
    """
    real, base = os.path.realpath(path), os.path.realpath(root)
    snapshot = _HUB_SNAPSHOT.fullmatch(base)
    for folder in (base, *([f"{snapshot[1]}/blobs"] if snapshot else [])):
        if os.path.commonpath((real, folder)) == folder:
            return Path(real), Path(folder)
    advice = "copy the file into the data set"
    raise RefusedFileError(path, "link-outside", f"leads outside {printable(root)}", advice)


def _plainly_inside(path: Path, root: Path) -> bool:
    """Whether ``path`` goes down from ``root`` without '..' and without a link."""
    parts = path.parts[len(root.parts) :]
    if path.parts[: len(root.parts)] != root.parts or ".." in parts:
        return False
    place = str(root)
    for part in parts:  # text: a Path for each would take longer than the looks at the disk
        place = os.path.join(place, part)
        if os.path.islink(place):
            return False
    return True


_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name says that it is an archive, or compressed."""
    return os.fspath(path).lower().endswith(_ARCHIVES)


def no_folder(path: str | os.PathLike[str], advice: str = "check the path") -> UserError:
    """What is said of a path where a folder is wanted: nothing is there, or a file, perhaps a packed one."""
    place = printable(path)
    if not os.path.isfile(path):
        return UserError(f"{place}: no such folder", advice)
    if is_packed(path):
        return UserError(f"{place}: is a packed file, not a folder", "unpack it and give the folder")
    return UserError(f"{place}: is a file, not a folder", "give the folder that holds it")


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        names = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a FIFO",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        kind = names.get(stat.S_IFMT(mode), "something special")
        raise RefusedFileError(
            path, "not-a-file", f"is {kind}, not a regular file", "give a file, or move it away"
        )


def _refusal(path: Path, error: OSError | ValueError) -> RefusedFileError:
    if isinstance(error, ValueError):  # an embedded NUL
        return RefusedFileError(path, "bad-path", str(error), "rename the file")
    rule, problem, advice = {
        errno.ENOENT: ("missing", "no such file", "check the path"),
        errno.ENOTDIR: ("missing", "no such file", "check the path"),
        errno.ELOOP: ("link-loop", "is a link that leads to itself", "remove the link"),
        errno.ENAMETOOLONG: ("bad-path", "the name is too long", "shorten it"),
        errno.EACCES: ("unreadable", "may not be read", "give yourself the right to read it"),
        errno.EPERM: ("unreadable", "may not be read", "give yourself the right to read it"),
    }.get(error.errno or 0, ("unreadable", f"cannot be read ({error.strerror})", "check the disk"))
    return RefusedFileError(path, rule, problem, advice)
