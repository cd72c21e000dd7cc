"""A trained generator as a folder to share, and those that the package ships."""

from __future__ import annotations

from importlib.resources import as_file
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from reposer.config import Config, canonical_json, load_config, save_config
from reposer.errors import UserError
from reposer.models.generators import PREDICTORS, build_generator, build_predictor
from reposer.models.layers import MAX_SIDE
from reposer.models.pretrained import refuse_other_export
from reposer.storage.files import sha256_bytes, write_atomic
from reposer.storage.paths import RefusedFileError, made_folder, read_regular
from reposer.storage.seals import write_seal

# ---- A trained generator as a folder to share: model.safetensors, config.json and a model card.
#
# The layout is that of the Hugging Face hub (and of its PyTorchModelHubMixin), so such a folder can be
# uploaded as it is; safetensors and JSON are read by any program. Loading is strict: the file's sha256, every
# key, shape and value are checked before a weight is used, and no code ever comes out of a folder.

WEIGHTS, CONFIG, CARD = FILES = "model.safetensors", "config.json", "README.md"
MAX_WEIGHTS_BYTES = 4_000_000_000


class GeneratorConfig(Config):
    """What a generator is, where it comes from, and how its weights are stored."""

    generator: str  # a key of models.generators.GENERATORS, or of PREDICTORS
    generator_args: dict[str, Any] = Field(default_factory=dict)  # keywords of its constructor
    size: tuple[int, int]  # (H, W) it was trained at
    labels: str = "lip20"  # label set of the parsing maps
    trained_on: str = ""  # the training data in words
    identity_hash: str = ""  # PackedPeople.identity_hash of the training people; empty: not recorded
    images_hash: str = ""  # PackedPeople.images_hash of the same; empty: not recorded
    step: int = 0  # optimizer steps
    weights_dtype: Literal["float32", "float16"] = "float32"
    weights_sha256: str = ""  # of model.safetensors; empty only while nothing is saved

    @field_validator("size")
    @classmethod
    def _sane(cls, size: tuple[int, int]) -> tuple[int, int]:
        if not all(1 <= side <= MAX_SIDE for side in size):
            raise ValueError(f"its sides must be 1 to {MAX_SIDE:,} pixels")
        return size


def save_generator(
    folder: str | Path, generator: nn.Module, config: GeneratorConfig, *, half: bool = False, card: str = ""
) -> None:
    """Write the folder; config.json last, since it holds the hash of the weights.

    Args:
        folder: made if missing.
        generator: its state dict is stored.
        config: what it is; the entries about the weights are filled in here.
        half: store weights as float16: half the size, rounded to 11 bits.
        card: text of the model card below its front matter; default: :func:`model_card`.

    Raises:
        UserError: a weight is not finite, or too large for float16; or the disk refuses.
    """
    folder = Path(folder)
    tensors = {name: t.detach().cpu().contiguous() for name, t in generator.state_dict().items()}
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    _refuse_non_finite(tensors, f"{folder / WEIGHTS}" + (" as float16" if half else ""))
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    dtype = "float16" if half else "float32"
    config = config.changed(weights_dtype=dtype, weights_sha256=sha256_bytes(data))
    made_folder(folder)
    refuse_other_export(GeneratorConfig, folder)
    write_atomic(folder / WEIGHTS, data)
    write_atomic(folder / CARD, (_FRONT_MATTER + (card or model_card(config))).encode())
    save_config(config, folder / CONFIG)
    write_seal(folder, FILES)


def load_generator(folder: str | Path) -> tuple[nn.Module, GeneratorConfig]:
    """The generator of a folder written by :func:`save_generator`, in eval mode, weights float32.

    Raises:
        UserError: a file is missing or damaged, or the weights do not belong to the configuration.
    """
    folder = Path(folder)
    config = load_config(GeneratorConfig, folder / CONFIG)
    path = folder / WEIGHTS
    try:
        data = read_regular(path, max_bytes=MAX_WEIGHTS_BYTES, root=path.parent)
    except RefusedFileError as error:
        raise UserError(f"{path}: cannot be read: {error.reason}", "get the folder again") from error
    if sha256_bytes(data) != config.weights_sha256:
        raise UserError(f"{path}: differs from the sha256 in {CONFIG}", "get the folder again")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise UserError(f"{path}: is no safetensors file: {error}", "get the folder again") from error
    _refuse_non_finite(tensors, str(path))
    return build_with_weights(config.generator, config.generator_args, tensors, str(path)), config


def build_with_weights(name: str, args: dict[str, Any], tensors: dict[str, Tensor], origin: str) -> nn.Module:
    """A generator or predictor with these weights, in eval mode; nothing is allocated before shapes agree.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; ``origin`` names the file.
    """
    build = build_predictor if name in PREDICTORS else build_generator
    with torch.device("meta"):  # sizes from a foreign config.json cost no memory here
        expected = {k: tuple(t.shape) for k, t in build(name, **args).state_dict().items()}
    found = {k: tuple(t.shape) for k, t in tensors.items()}
    wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if wrong:
        have, want = found.get(wrong[0], "missing"), expected.get(wrong[0], "unknown")
        raise UserError(
            f"{origin}: {len(wrong)} tensors do not belong to generator {name}:"
            f" {wrong[0]} is {have}, not {want}",
            "use the configuration that the weights were trained with",
        )
    generator = build(name, **args)
    generator.load_state_dict(tensors, strict=True)
    return generator.eval()


def weights_hash(generator: nn.Module) -> str:
    """sha256 over the names, types and bytes of the state dict: the same weights, the same hash, whatever
    file.
    """
    parts = []
    for name, tensor in sorted(generator.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        parts.append([name, str(tensor.dtype), sha256_bytes(flat.view(torch.uint8).numpy().data)])
    return sha256_bytes(canonical_json(parts))


_FRONT_MATTER = """\
---
library_name: reposer
license: apache-2.0
pipeline_tag: image-to-image
tags: [person-re-identification, pose-transfer, synthetic-data]
---
"""


def model_card(config: GeneratorConfig) -> str:
    """The model card that can be written from the configuration alone."""
    height, width = config.size
    args = ", ".join(f"{key}={value}" for key, value in config.generator_args.items()) or "its defaults"
    return f"""
# {config.generator}: a person image in another pose

Generator `{config.generator}` ({args}), {config.step:,} optimizer steps at {height}x{width}, parsing maps in
the label set {config.labels}. Trained on: {config.trained_on or "not recorded"}. Training people (hash of
their ids): `{config.identity_hash or "not recorded"}`.

## Use

    from reposer.generation.pose_transfer import PoseTransfer
    picture = PoseTransfer.from_pretrained("this folder").transfer(source, donor)

Meant for: enlarging training sets of person re-identification, and research on image generation. A generated
picture of a real person is personal data of that person. Not meant for: identifying faces, live
surveillance, decisions about people, pictures that pass for photographs. Written files carry the IPTC mark
`trainedAlgorithmicMedia`.

## Files

`{WEIGHTS}` ({config.weights_dtype}, sha256 `{config.weights_sha256}`), `{CONFIG}`. Nothing here is
executable.
"""


def _refuse_non_finite(tensors: dict[str, Tensor], origin: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{origin}: {name} holds NaN or infinity", "use weights of a sound training")


# ---- What the package ships: generators and a predictor of maps for the built-in rendered people.

# What a user calls it -> its folder in reposer.assets.
GENERATORS = {"shipped": "san_rendered", "shipped-rsa": "rsa_gan_rendered"}
PREDICTOR, _PREDICTOR_FOLDER = "shipped-predictor", "predictor_rendered"


def load_shipped(name: str) -> tuple[nn.Module, GeneratorConfig]:
    """The generator of that name, a key of GENERATORS, with its configuration.

    Raises:
        UserError: this installation has none.
    """
    return _load(GENERATORS[name])


def load_shipped_predictor() -> tuple[nn.Module, GeneratorConfig]:
    """The predictor of label maps, with its configuration.

    Raises:
        UserError: this installation has none.
    """
    return _load(_PREDICTOR_FOLDER)


def _load(name: str) -> tuple[nn.Module, GeneratorConfig]:
    folder = resources("reposer.assets") / name
    if not (folder / "config.json").is_file():
        raise UserError(f"this installation lacks its own {name}", "install it again, or name a folder")
    with as_file(folder) as path:
        return load_generator(path)
