"""Layouts of the Re-ID data sets other than Market-1501: which files they list, and what the names say.

Each function takes the data set's folder (already extracted; nothing is downloaded) and gives labeled files
and problems. Identities are from 1: data sets that count from 0 are shifted, because 0 is a distractor here.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from reposer.data.layouts.folder_scan import list_names
from reposer.data.layouts.labeled_files import LabeledFile, Listing, Problems, labeled
from reposer.data.problems import AnnotationProblem, text_lines
from reposer.errors import UserError
from reposer.paths import printable

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
MSMT17_TRAINING_PEOPLE = 1041
_DUKE = re.compile(r"(?P<pid>[0-9]{4})_c(?P<camid>[1-8])_f[0-9]+\.(?:jpg|png)", re.ASCII)
_CUHK03_NP = re.compile(r"(?P<pid>[0-9]{4})_c(?P<camid>[12])_[0-9]+\.(?:jpg|png)", re.ASCII)
_VIPER = re.compile(r"([0-9]{3})_[0-9]{1,3}\.(?:bmp|png|jpg)", re.ASCII)
_MSMT17 = re.compile(r"[0-9]{4}/[0-9]{4}_[0-9]{3}_(?P<camid>[0-9]{2})_.+\.jpg", re.ASCII)


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

    list_val.txt holds further images of the training people, so it is training data here. The lists count
    people from 0, in training and test each: training people are 1 to 1041 here, test people 1042 and up.
    """
    problems: Problems = []
    files: list[LabeledFile] = []
    folders = {kind: _first_folder(root, (kind, f"mask_{kind}_v2")) for kind in ("train", "test")}
    lists = (("train", "train"), ("val", "train"), ("query", "query"), ("gallery", "gallery"))
    for list_name, split in lists:
        path = root / f"list_{list_name}.txt"
        folder, shift = folders["test"], MSMT17_TRAINING_PEOPLE + 1
        if split == "train":
            folder, shift = folders["train"], 1
        for row, line in enumerate(text_lines(path), start=1):
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


def _list_boxes(root: Path, pattern: re.Pattern[str], example: str) -> Listing:
    """Market's three folders with names of another form; labels from the file name alone."""
    problems: Problems = []
    files: list[LabeledFile] = []
    for folder, split in FOLDERS.items():
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
