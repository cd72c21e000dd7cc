"""A trained network as a folder to share: model.safetensors, config.json, a model card and a seal.

The layout is that of the Hugging Face hub (and of its PyTorchModelHubMixin), so such a folder can be
uploaded as it is; safetensors and JSON are read by any program. Loading is strict: the file's sha256, every
key, shape and value are checked before a weight is used, and no code ever comes out of a folder.

A user calls it by its path, by ``hub:owner/name``, or by an address with a hash,
``https://PLACE/config.json#sha256=HEX``, as ``reposer export-run`` prints it. The hash is that of
config.json, which holds that of the weights: whoever serves the files can change neither. They are kept in
the weights folder, so a second call needs no network.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urldefrag, urljoin

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reposer.config import Config, canonical_json, load_config, read_json, save_config
from reposer.errors import UserError
from reposer.storage.files import sha256_bytes, write_atomic
from reposer.storage.outputs import write_seal
from reposer.storage.paths import RefusedFileError, made_folder, printable, read_regular
from reposer.weights.downloads import Source, fetch, fetch_folder
from reposer.weights.files import cache_folders

WEIGHTS, CONFIG, CARD = FILES = "model.safetensors", "config.json", "README.md"
MAX_WEIGHTS_BYTES = 4_000_000_000
ADDRESSES = "addresses"  # in the weights folder
_CARD_START = b"---\nlibrary_name: reposer\n"  # every card of an export starts with it
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_CONFIG, _MOST_WEIGHTS = 1_000_000, 1_000_000_000  # bytes, from an address

C = TypeVar("C", bound=Config)  # what a network is; has the field ``weights_sha256``
N = TypeVar("N", bound=nn.Module)


def save_network(
    folder: str | Path, network: nn.Module, config: C, card: Callable[[C], str], *, half: bool = False
) -> None:
    """Write the folder; config.json last, since it holds the hash of the weights.

    Args:
        folder: made if missing.
        network: its state dict is stored.
        config: what it is; ``weights_sha256`` is filled in here.
        card: the whole README.md, written from the completed configuration.
        half: store weights as float16: half the size, rounded to 11 bits.

    Raises:
        UserError: a weight is not finite, or too large for float16; the folder holds something else; or the
            disk refuses.
    """
    folder = Path(folder)
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    _refuse_non_finite(tensors, f"{folder / WEIGHTS}" + (" as float16" if half else ""))
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    config = config.changed(weights_sha256=sha256_bytes(data))
    made_folder(folder)
    _refuse_other_export(type(config), folder)
    write_atomic(folder / WEIGHTS, data)
    write_atomic(folder / CARD, card(config).encode())
    save_config(config, folder / CONFIG)
    write_seal(folder, FILES)


def open_folder(name: str | Path, files: Sequence[str]) -> Path:
    """The folder of that name, fetched where it is not on this machine.

    Args:
        name: a folder, ``hub:owner/name[@commit]``, or ``https://.../config.json#sha256=HEX``.
        files: that the hub is asked for.

    Raises:
        UserError: no such folder, no hash at an address, or config.json names no hash of weights.
        DownloadError: an address does not give what its hash says; nothing half-fetched is used.
    """
    text = str(name)
    if not _ADDRESS.match(text):
        return fetch_folder(name, files)
    address, mark = urldefrag(text)
    digest = mark.removeprefix("sha256=").lower()
    if not mark.startswith("sha256=") or not _HASH.fullmatch(digest) or not address.endswith(f"/{CONFIG}"):
        raise UserError(
            f"{printable(text)}: is no address of a network with its hash",
            f"write https://PLACE/{CONFIG}#sha256=HEX, 64 digits, as reposer export-run prints it",
        )
    folder = cache_folders()[0] / ADDRESSES / digest[:16]
    config = fetch(Source(address, digest, _MOST_CONFIG), folder / CONFIG)
    settings: dict[str, Any] = read_json(config)
    weights = settings.get("weights_sha256")
    if not isinstance(weights, str) or not _HASH.fullmatch(weights):
        raise UserError(f"{printable(address)}: names no sha256 of weights", "give the address of an export")
    fetch(Source(urljoin(address, WEIGHTS), weights, _MOST_WEIGHTS), folder / WEIGHTS)
    print(f"{printable(address)}: used from {folder}", file=sys.stderr)
    return folder


def read_network(kind: type[C], folder: str | Path) -> tuple[C, dict[str, Tensor]]:
    """Configuration and weights of a folder written by :func:`save_network`.

    Raises:
        UserError: a file is missing or damaged, or a weight is not finite.
    """
    folder = Path(folder)
    config = load_config(kind, folder / CONFIG)
    path = folder / WEIGHTS
    try:
        data = read_regular(path, max_bytes=MAX_WEIGHTS_BYTES, root=path.parent)
    except RefusedFileError as error:
        raise UserError(f"{path}: cannot be read: {error.reason}", "get the folder again") from error
    if sha256_bytes(data) != _sha256_of(config):
        raise UserError(f"{path}: differs from the sha256 in {CONFIG}", "get the folder again")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise UserError(f"{path}: is no safetensors file: {error}", "get the folder again") from error
    _refuse_non_finite(tensors, str(path))
    return config, tensors


def build_with_weights(
    build: Callable[[], N], tensors: Mapping[str, Tensor], origin: str, kind: str = "network", name: str = ""
) -> N:
    """A network with these weights, in eval mode; nothing is allocated before all shapes agree.

    Args:
        build: makes the network; it is called on the meta device first.
        tensors: its state dict.
        origin: the file that they come from.
        kind: for messages.
        name: for messages: which network of that kind.

    Raises:
        UserError: nothing can be built, or a tensor is missing, unexpected or of another shape.
    """
    try:
        with shapes_alone():  # sizes from a foreign config.json cost no memory here
            expected = {k: tuple(t.shape) for k, t in build().state_dict().items()}
    except UserError as error:
        raise UserError(f"{origin}: {error.problem}", error.advice) from error
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        # an unknown keyword; sizes that overflow; a list that is too short, or no list
        reason = printable((str(error).splitlines() or [type(error).__name__])[0][:200])
        raise UserError(f"{origin}: no such {kind} can be built: {reason}", "get the folder again") from error
    found = {k: tuple(t.shape) for k, t in tensors.items()}
    wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if wrong:
        have, want = found.get(wrong[0], "missing"), expected.get(wrong[0], "unknown")
        owner = f"{kind} {name}" if name else "it"
        raise UserError(
            f"{origin}: {len(wrong)} tensors do not belong to {owner}: {wrong[0]} is {have}, not {want}",
            "use the configuration that the weights were trained with",
        )
    network = build()
    network.load_state_dict(dict(tensors), strict=True)
    network.eval()
    return network


class _WithoutValues(TorchFunctionMode):
    """On the meta device PyTorch fills tensors by way of its compiler: 190 MB and seconds, for no values."""

    fills = (
        *(Tensor.normal_, Tensor.uniform_),
        *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),  # the others call those of Tensor
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.fills:
            return args[0] if args else kwargs["tensor"]
        if func is torch.eye and "out" in kwargs:
            return kwargs["out"]
        return func(*args, **kwargs)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """What is built inside is on the meta device: it has names, shapes and types, and costs nothing."""
    with torch.device("meta"), _WithoutValues():
        yield


def weights_hash(network: nn.Module) -> str:
    """sha256 over the names, types and bytes of the state dict: the same weights, the same hash, whatever
    file they came from.
    """
    parts = []
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        parts.append([name, str(tensor.dtype), sha256_bytes(flat.view(torch.uint8).numpy().data)])
    return sha256_bytes(canonical_json(parts))


def _refuse_other_export(kind: type[Config], folder: Path) -> None:
    """Refuse a folder whose config.json, README.md or weights an export did not write: a run, a repository.

    Raises:
        UserError: names the file that would be lost.
    """
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if not there:
        return
    problem = f"{printable(folder)}: {there[0]} is there already, and was not written by this command"
    try:
        own = bool(_sha256_of(load_config(kind, folder / CONFIG)))
        card = folder / CARD
        if os.path.lexists(card):
            own &= read_regular(card, max_bytes=2**20, root=folder).startswith(_CARD_START)
    except UserError as error:
        raise UserError(problem, "choose another folder") from error
    if not own:
        raise UserError(problem, "choose another folder")


def _sha256_of(config: Config) -> str:
    return str(getattr(config, "weights_sha256", ""))


def _refuse_non_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{origin}: {name} holds NaN or infinity", "use weights of a sound training")
