"""Layouts of the Re-ID data sets other than Market-1501: which files they list, and what the names say.

Each function takes the data set's folder (already extracted; nothing is downloaded) and gives labeled files
and problems. Identities are from 1: data sets that count from 0 are shifted, because 0 is a distractor here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reposer.data.layouts.folder_scan import list_names
from reposer.data.layouts.labeled_files import LabeledFile, Listing, Problems, labeled
from reposer.data.layouts.market1501 import FOLDERS
from reposer.data.records import AnnotationProblem, text_lines
from reposer.errors import UserError
from reposer.storage.bounded import parse_json, read_mat
from reposer.storage.paths import RefusedFileError, printable, read_regular

MSMT17_TRAINING_PEOPLE = 1041
_FLAGS = re.ASCII | re.IGNORECASE
_SUFFIX = r"\.(?:jpe?g|png|bmp|webp)"
_DUKE = re.compile(r"(?P<pid>[0-9]{4})_c(?P<camid>[1-8])_f[0-9]+" + _SUFFIX, _FLAGS)
_CUHK03_NP = re.compile(r"(?P<pid>[0-9]{4})_c(?P<camid>[12])_[0-9]+" + _SUFFIX, _FLAGS)
_VIPER = re.compile(r"([0-9]{3})_[0-9]{1,3}" + _SUFFIX, _FLAGS)
_MSMT17 = re.compile(r"[0-9]{4}/[0-9]{4}_[0-9]{3}_(?P<camid>[0-9]{2})_.+" + _SUFFIX, _FLAGS)
_MSMT17_BOX = re.compile(r"(?P<pid>[0-9]{4,5})_c(?P<camid>[0-9]{1,2})(?:_|s).+" + _SUFFIX, _FLAGS)
_VERI = re.compile(r"(?P<pid>[0-9]{4,5})_c(?P<camid>[0-9]{3})_[0-9]+_[0-9]+" + _SUFFIX, _FLAGS)
_LTCC = re.compile(
    r"(?P<pid>[0-9]{3})_(?P<clothes>[0-9]{1,2})_c(?P<camid>[0-9]{1,2})_[0-9]+" + _SUFFIX, _FLAGS
)


def list_dukemtmc(root: Path) -> Listing:
    """DukeMTMC-reID and sets in its names: bounding_box_train, query, bounding_box_test; PPPP_cC_fFFFFFFF.

    The 408 identities that only the gallery has are its distractors; they keep their numbers. The data set
    was withdrawn by its makers in 2019.
    """
    return _list_boxes(root, _DUKE, "0001_c2_f0046182.jpg")


def list_cuhk03_np(root: Path) -> Listing:
    """CUHK03 in the new protocol's folders (``detected`` or ``labeled``): Market's, with PPPP_cC_N.png."""
    return _list_boxes(root, _CUHK03_NP, "0003_c1_21.png")


def list_msmt17(root: Path) -> Listing:
    """MSMT17, both versions: list_{train,val,query,gallery}.txt and train/ test/ (or mask_{train,test}_v2/).

    Lists without ".txt" are read, and a missing list_val is only listed. Without lists, Market-1501's folders
    with 0000_c1_0030.jpg, as several programs lay the data set out. list_val.txt holds further images of the
    training people, so it is training data here. The lists count people from 0, in training and test each:
    training people are 1 to 1041 here, test people 1042 and up.
    """
    problems: Problems = []
    files: list[LabeledFile] = []
    if (root / "bounding_box_train").is_dir() and not (root / "train").is_dir():
        return _msmt17_boxes(root)
    folders = {kind: _first_folder(root, (kind, f"mask_{kind}_v2")) for kind in ("train", "test")}
    lists = (("train", "train"), ("val", "train"), ("query", "query"), ("gallery", "gallery"))
    for list_name, split in lists:
        path = root / f"list_{list_name}.txt"
        if not path.exists() and path.with_suffix("").exists():
            path = path.with_suffix("")
        if list_name == "val" and not path.exists():
            problems.append(AnnotationProblem(path.name, 0, "file", "no such list", "missing-list"))
            continue
        folder, shift = folders["test"], MSMT17_TRAINING_PEOPLE + 1
        if split == "train":
            folder, shift = folders["train"], 1
        for row, line in enumerate(text_lines(path, root), start=1):
            text = line.decode("utf-8", "backslashreplace").strip()
            if not text:
                continue
            place, _, number = text.rpartition(" ")
            match = _MSMT17.fullmatch(place)
            if match is None or not re.fullmatch("[0-9]{1,5}", number, re.ASCII):
                message = f"{printable(text[:80])}: not a line of this list; left out"
                problems.append(AnnotationProblem(path.name, row, "line", message, "bad-name"))
                continue
            files.append(labeled(f"{folder}/{place}", int(number) + shift, int(match["camid"]), split))
    return files, problems


def _msmt17_boxes(root: Path) -> Listing:
    """Market's folders; people counted from 0 in training and test are numbered apart as by the lists."""
    files, problems = _list_boxes(root, _MSMT17_BOX, "0000_c1_0030.jpg")
    people = {
        training: {file.pid for file in files if (file.split == "train") == training}
        for training in (True, False)
    }
    if 0 in people[True] or people[True] & people[False]:
        shift = {"train": 1}
        files = [
            labeled(f.path, f.pid + shift.get(f.split, MSMT17_TRAINING_PEOPLE + 1), f.camid, f.split)
            for f in files
        ]
    return files, problems


def list_veri(root: Path) -> Listing:
    """VeRi-776 and sets in its names: image_train/, image_query/, image_test/; PPPP_cCCC_FFFFFFFF_N.jpg."""
    folders = {"image_train": "train", "image_query": "query", "image_test": "gallery"}
    return _list_boxes(root, _VERI, "0001_c001_00016450_0.jpg", folders)


def list_ltcc(root: Path) -> Listing:
    """LTCC (Qian et al., ACCV 2020): train/, query/, test/ with PID_CLOTHES_cCAM_NUMBER.png.

    The outfit's number, from 0, counts the outfits of one person (theirs are from 1; in a set that counts
    from 0 they keep their numbers). Where a person 0 is, 1 is added to every identity, since 0 is a
    distractor here.
    """
    folders = {"train": "train", "query": "query", "test": "gallery"}
    files, problems = _list_boxes(root, _LTCC, "094_1_c9_015833.png", folders)
    outfits = [int(file.name.split("_")[1]) for file in files]
    shift, first = int(any(file.pid == 0 for file in files)), min([1, *outfits])
    return [
        labeled(f.path, f.pid + shift, f.camid, f.split, outfit - first)
        for f, outfit in zip(files, outfits, strict=True)
    ], problems


def list_prcc(root: Path) -> Listing:
    """PRCC (Yang et al., TPAMI 2021): rgb/train/PID/A_*.jpg and rgb/test/{A,B,C}/PID/*.jpg.

    Cameras A, B, C are 1, 2, 3. A person wears outfit 0 before A and B, outfit 1 before C. A of the test
    folder is the gallery; B (same clothes) and C (others) are queries. rgb/val/ holds further images of the
    training people, on which published methods do not train; it is listed as not read.

    Args:
        root: the folder that holds rgb/, or rgb/ itself.
    """
    base = "rgb/" if (root / "rgb").is_dir() else ""
    files: list[LabeledFile] = []
    problems: Problems = []
    places = [(f"{base}train", "train", ""), *((f"{base}test/{c}", _PRCC_SPLITS[c], c) for c in "ABC")]
    for folder, split, camera in places:
        for person in list_names(root, folder):
            pid = int(person) if re.fullmatch("[0-9]{1,5}", person, re.ASCII) else 0
            if not pid or not (root / folder / person).is_dir():
                problems.append(bad_name(f"{folder}/{person}", "001/ (a person's folder)"))
                continue
            for name in list_names(root, f"{folder}/{person}"):
                letter = camera or (name[0] if re.fullmatch("[ABC]_.+" + _SUFFIX, name, _FLAGS) else "")
                if not letter or not re.fullmatch(".+" + _SUFFIX, name, _FLAGS):
                    problems.append(bad_name(f"{folder}/{person}/{name}", "A_cropped_rgb001.jpg"))
                    continue
                camid = "ABC".index(letter.upper()) + 1
                path = f"{folder}/{person}/{name}"
                files.append(labeled(path, pid, camid, split, int(camid == 3)))
    if not files:
        raise UserError(f"{printable(root)}: holds no images of PRCC", "give the folder that holds rgb/")
    return files, problems


_PRCC_SPLITS = {"A": "gallery", "B": "query", "C": "query"}


def list_viper(root: Path, split: int = 0) -> Listing:
    """VIPeR: cam_a/ and cam_b/ with PPP_ANGLE.bmp; half of the people train, the others' cam_a is the query.

    The published protocol is the mean over ten random halves; ``split`` is the seed of the half.
    """
    problems: Problems = []
    found: list[tuple[str, int, int]] = []
    for camid, folder in enumerate(("cam_a", "cam_b"), start=1):
        for name in list_names(root, folder):
            match = _VIPER.fullmatch(name)
            if match is None:
                problems.append(bad_name(f"{folder}/{name}", "000_45.bmp"))
            else:
                found.append((f"{folder}/{name}", int(match[1]) + 1, camid))
    people = np.unique([pid for _, pid, _ in found]).astype(np.int64)
    train = set(np.random.default_rng([split]).permutation(people)[: len(people) // 2].tolist())
    tests = {1: "query", 2: "gallery"}
    return [labeled(path, pid, c, "train" if pid in train else tests[c]) for path, pid, c in found], problems


def bad_name(path: str, example: str) -> AnnotationProblem:
    """The problem of a file whose name is not of the layout."""
    message = f"not a name of this data set; left out: rename it like {example}"
    return AnnotationProblem(printable(path), 0, "name", message, "bad-name")


def _list_boxes(
    root: Path, pattern: re.Pattern[str], example: str, folders: Mapping[str, str] = FOLDERS
) -> Listing:
    """Three folders, Market's or others, with names of another form; labels from the file name alone."""
    problems: Problems = []
    files: list[LabeledFile] = []
    if not any((root / folder).is_dir() for folder in folders):
        advice = "give the folder that holds them, or use another layout (reposer prepare --help)"
        raise UserError(f"{printable(root)}: holds none of {', '.join(folders)}", advice)
    for folder, split in folders.items():
        for name in list_names(root, folder):
            match = pattern.fullmatch(name)
            if match is None:
                problems.append(bad_name(f"{folder}/{name}", example))
            else:
                pid, camid = int(match["pid"]), int(match["camid"])
                files.append(LabeledFile(f"{folder}/{name}", name, pid, camid, split))
    return files, problems


def _first_folder(root: Path, names: tuple[str, ...]) -> str:
    found = next((name for name in names if (root / name).is_dir()), None)
    if found is None:
        raise UserError(f"{printable(root)}: holds no folder {' or '.join(names)}", "check the path")
    return found


# ---- CUHK03 from its extracted images, by the new and by the classic protocol.

_NAME = re.compile(r"([1-9])_([0-9]{3})_([12])_([0-9]{2})\.(?:png|jpe?g|bmp|webp)", re.ASCII | re.IGNORECASE)
_VARIABLES = ("filelist", "train_idx", "query_idx", "gallery_idx")
_MAX_FILE_BYTES = 200_000_000


def list_cuhk03(root: Path, kind: str = "detected", protocol: str = "new", split: int = 0) -> Listing:
    """CUHK03 from its extracted images, images_{detected,labeled}/P_NNN_V_II.png (pair, person, view, image).

    Identity = 1000 x pair of cameras + person, camera = view.

    Args:
        root: the folder.
        kind: "detected" or "labeled" boxes.
        protocol: "new" (767/700 people, Zhong et al. 2017) reads cuhk03_new_protocol_config_{kind}.mat, as
            published; "classic" (100 test people, 20 splits) reads the test people from
            splits_classic_{kind}.json, as torchreid writes it, since the original list lies in a MATLAB 7.3
            file: queries are their images of view 1, the gallery those of view 2.
        split: number of the classic split, 0 to 19.

    Raises:
        UserError: an unknown kind or protocol, or a missing or damaged list.
    """
    if kind not in ("detected", "labeled") or protocol not in ("new", "classic"):
        raise UserError(
            f"kind {kind}, protocol {protocol}: unknown", "use detected or labeled, new or classic"
        )
    folder = f"images_{kind}"
    if protocol == "new":
        assigned = _new_protocol(root / f"cuhk03_new_protocol_config_{kind}.mat")
    else:
        tested = _classic_test_names(root / f"splits_classic_{kind}.json", split)
        views = {"1": "query", "2": "gallery"}
        names = [name for name in list_names(root, folder) if _NAME.fullmatch(name)]
        assigned = {name: views[name.split("_")[2]] if name in tested else "train" for name in names}
    files: list[LabeledFile] = []
    problems: Problems = []
    for name in list_names(root, folder):
        match = _NAME.fullmatch(name)
        if match is None:
            problems.append(bad_name(f"{folder}/{name}", "1_001_1_01.png"))
        elif name in assigned:  # the new protocol leaves some images out
            pid = 1000 * int(match[1]) + int(match[2])
            files.append(labeled(f"{folder}/{name}", pid, int(match[3]), assigned[name]))
    return files, problems


def _new_protocol(path: Path) -> dict[str, str]:
    """File name -> split of the published configuration (MATLAB 5; indices from 1)."""
    data = read_regular(path, max_bytes=_MAX_FILE_BYTES, root=path.parent)
    try:
        content = read_mat(path, data, _VARIABLES)
        names = [str(cell) for cell in content["filelist"].ravel()]
        keys = {"train": "train_idx", "query": "query_idx", "gallery": "gallery_idx"}
        places = {split: np.asarray(content[key]).ravel().astype(np.int64) for split, key in keys.items()}
        if any(len(p) and not (p.min() >= 1 and p.max() <= len(names)) for p in places.values()):
            raise ValueError("an index outside the list")
    except (RefusedFileError, KeyError, ValueError, TypeError, OverflowError) as error:
        reason = error.reason if isinstance(error, RefusedFileError) else str(error)
        raise UserError(
            f"{printable(path)}: not CUHK03's new protocol ({reason})", "get the file again"
        ) from error
    return {names[place - 1]: split for split, rows in places.items() for place in rows.tolist()}


def _classic_test_names(path: Path, split: int) -> set[str]:
    """Names of all images of the test people of one classic split."""
    data = read_regular(path, max_bytes=_MAX_FILE_BYTES, root=path.parent)
    try:
        splits = parse_json(data)
        if not 0 <= split < len(splits):
            raise UserError(f"{printable(path)}: holds {len(splits)} splits, {split} is wanted")
        rows = [*splits[split]["query"], *splits[split]["gallery"]]
        return {re.split(r"[/\\]", row[0])[-1] for row in rows}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{printable(path)}: not a list of splits", "get the file again") from error
