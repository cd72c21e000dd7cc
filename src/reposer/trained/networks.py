"""A trained network as a thing: from what a user calls it to the network, what it is, and its hash.

A run folder (its newest good checkpoint), an exported folder, ``hub:owner/name`` or the name of one that the
package ships: :func:`open_network` takes any of them, for each KIND of network that this program trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import as_file
from importlib.resources import files as resources
from pathlib import Path
from textwrap import fill
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, field_validator
from torch import Tensor, nn

from reposer.config import Config, foreign_values, read_json
from reposer.errors import UserError
from reposer.models.embedding import Embedding, EmbeddingInfo
from reposer.models.generators import CONTROLS, PREDICTORS, about, build_generator, build_predictor
from reposer.models.layers import MAX_SIDE
from reposer.models.parsing_networks import PARSERS, build_parser
from reposer.storage import checkpoint
from reposer.storage.paths import CHECKPOINTS, printable
from reposer.weights.network_folder import (
    CONFIG,
    FILES,
    WEIGHTS,
    build_with_weights,
    open_folder,
    read_network,
    save_network,
    weights_hash,
)


class GeneratorConfig(Config):
    """What a generator is, where it comes from, and how its weights are stored."""

    later: ClassVar[frozenset[str]] = frozenset({"budget", "budget_seed"})

    generator: str  # a key of models.generators.GENERATORS, or of PREDICTORS
    generator_args: dict[str, Any] = Field(default_factory=dict)  # keywords of its constructor
    size: tuple[int, int]  # (H, W) it was trained at
    labels: str = "lip20"  # label set of the parsing maps
    trained_on: str = ""  # the training data in words
    identity_hash: str = ""  # PackedPeople.identity_hash of the training people; empty: not recorded
    images_hash: str = ""  # PackedPeople.images_hash of the same; empty: not recorded
    budget: float = Field(
        default=1.0, gt=0, le=1
    )  # share of each person's images of these that it was trained on
    budget_seed: int = 0  # of the choice (data/samplers.py)
    step: int = 0  # optimizer steps
    weights_dtype: Literal["float32", "float16"] = "float32"
    weights_sha256: str = ""  # of model.safetensors; empty only while nothing is saved

    @field_validator("size")
    @classmethod
    def _sane(cls, size: tuple[int, int]) -> tuple[int, int]:
        if not all(1 <= side <= MAX_SIDE for side in size):
            raise ValueError(f"its sides must be 1 to {MAX_SIDE:,} pixels")
        return size


N = TypeVar("N", bound=nn.Module)
I = TypeVar("I", GeneratorConfig, EmbeddingInfo)  # noqa: E741  what a network is


@dataclass(frozen=True)
class Trained(Generic[N, I]):
    """A network in eval mode on the CPU, float32."""

    network: N
    info: I  # what it is, and where it comes from
    origin: str  # the checkpoint or the file of weights

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of the weights, whatever file they came from."""
        return weights_hash(self.network)


@dataclass(frozen=True)
class Kind(Generic[N, I]):
    """A kind of network that runs train: where a run keeps it, and how it is built again."""

    word: str  # for messages
    of_what: str  # for messages: what its runs are of
    training: str  # for messages: the runs to choose
    setting: str  # the key of a run's config.json that such runs alone have
    info: type[I]
    info_of_run: Callable[[Mapping[str, Any], checkpoint.Checkpoint], I]
    build: Callable[[I], N]
    group: str = "network"  # of the tensors of a checkpoint
    prefix: str = ""  # of its tensors' names in that group
    shipped: Mapping[str, str] = field(default_factory=dict)  # what a user calls it -> folder in assets
    untrained: Mapping[str, Callable[[], Trained[N, I]]] = field(
        default_factory=dict
    )  # those without weights
    option: str = ""  # for messages: where one is given that was named in the place of another kind


def open_network(kind: Kind[N, I], name: str | Path) -> Trained[N, I]:
    """The network of a run folder, an exported one, ``hub:owner/name``, an address, or a shipped one's name.

    Raises:
        UserError: there is none, nothing is trained in it yet, a file is damaged, or it is of another kind.
    """
    if name in kind.untrained:
        return kind.untrained[str(name)]()
    if name in kind.shipped:
        folder = resources("reposer.assets") / kind.shipped[str(name)]
        if not (folder / CONFIG).is_file():
            problem = f"this installation lacks its own {kind.shipped[str(name)]}"
            raise UserError(problem, "install it again, or name a folder")
        with as_file(folder) as path:
            return _of_folder(kind, path, name)
    if (Path(name) / CHECKPOINTS).is_dir():
        return of_run(kind, name)
    return _of_folder(kind, open_folder(name, FILES), name)


def of_run(kind: Kind[N, I], run_dir: str | Path) -> Trained[N, I]:
    """The network of the newest good checkpoint of a run.

    Raises:
        UserError: no run, no checkpoint, every checkpoint damaged, or a run of something else.
    """
    run = Path(run_dir)
    settings = read_json(run / CONFIG)
    if kind.setting not in settings:
        raise UserError(f"{run}: is no run of {kind.of_what}", f"choose the folder of {kind.training}")
    found = newest_checkpoint(run)
    if kind.group not in found.groups:
        raise UserError(f"{run}: is no run of {kind.of_what}", f"choose the folder of {kind.training}")
    tensors = {
        name.removeprefix(kind.prefix): tensor
        for name, tensor in found.groups[kind.group].items()
        if name.startswith(kind.prefix)
    }
    with foreign_values(run / CONFIG):
        info = kind.info_of_run(settings, found)
    return _trained(kind, info, tensors, found.path)


def newest_checkpoint(run_dir: str | Path, other: str = "run") -> checkpoint.Checkpoint:
    """The newest good checkpoint of a run.

    Args:
        other: for messages: what to choose another of.

    Raises:
        UserError: no run, no checkpoint, or every checkpoint damaged.
    """
    found = checkpoint.of_run(Path(run_dir))
    if found is None:
        raise UserError(f"{run_dir}: has no checkpoint yet", f"train longer, or choose another {other}")
    return found


def load_exported(folder: str | Path) -> Trained[Any, Any]:
    """The network of a folder that an export wrote, of whatever kind.

    Raises:
        UserError: a file is missing or damaged, or the weights do not belong to the configuration.
    """
    return _of_folder(exported_kind(folder), Path(folder), folder)


def exported_kind(folder: str | Path) -> Kind[Any, Any]:
    """Which kind of network a folder that an export wrote holds, by its config.json alone.

    Raises:
        UserError: config.json is missing or damaged.
    """
    settings = read_json(Path(folder) / CONFIG)
    if EMBEDDING.setting in settings:
        return EMBEDDING
    name = str(settings.get("generator"))
    return PREDICTOR if name in PREDICTORS else PARSER if name in PARSERS else GENERATOR


def _of_folder(kind: Kind[N, I], folder: Path, name: str | Path) -> Trained[N, I]:
    found = exported_kind(folder)
    if found is not kind:
        advice = f"give it as {found.option}, or name" if found.option else "name"
        problem = f"{printable(name)}: is {found.of_what}, not {kind.of_what}"
        raise UserError(problem, f"{advice} {kind.of_what}")
    info, tensors = read_network(kind.info, folder)
    return _trained(kind, info, tensors, folder / WEIGHTS)


def _trained(kind: Kind[N, I], info: I, tensors: Mapping[str, Tensor], origin: Path) -> Trained[N, I]:
    name = info.generator if isinstance(info, GeneratorConfig) else ""
    network = build_with_weights(lambda: kind.build(info), tensors, str(origin), kind.word, name)
    return Trained(network, info, str(origin))


# ---- The kinds.


def _facts(settings: Mapping[str, Any], found: checkpoint.Checkpoint) -> dict[str, Any]:
    data = settings["data"]
    name, share = Path(data["folder"]).name, data.get("budget", 1.0)
    part = {} if share == 1 else {"budget": share, "budget_seed": data.get("budget_seed", 0)}
    return part | {
        "trained_on": f"{name} ({100 * share:g} % of each person's images)" if part else name,
        "identity_hash": found.meta["identity_hash"],
        "images_hash": found.meta.get("images_hash", ""),
        "step": found.step,
    }


def _generator_of_run(settings: Mapping[str, Any], found: checkpoint.Checkpoint) -> GeneratorConfig:
    args = settings["generator_args"]
    return GeneratorConfig(
        generator=settings["generator"],
        generator_args=args,
        size=found.meta["size"],
        labels=args.get("schema", "lip20"),
        **_facts(settings, found),
    )


def _predictor_of_run(settings: Mapping[str, Any], found: checkpoint.Checkpoint) -> GeneratorConfig:
    name, args = settings["predictor"], settings["predictor_args"]
    return GeneratorConfig(
        generator=name, generator_args=args, size=found.meta["size"], **_facts(settings, found)
    )


def _parser_of_run(settings: Mapping[str, Any], found: checkpoint.Checkpoint) -> GeneratorConfig:
    guided = settings.get("guided")
    return GeneratorConfig(
        generator="parsing_network" if guided is None else "guided_parser",
        generator_args=settings["parser"] if guided is None else guided,
        size=found.meta["size"],
        **_facts(settings, found),
    )


def _embedding_of_run(settings: Mapping[str, Any], found: checkpoint.Checkpoint) -> EmbeddingInfo:
    return EmbeddingInfo(
        embedding=settings["embedding"],
        splits=tuple(settings["data"]["splits"]),
        **_facts(settings, found),
    )


def _control(name: str) -> Callable[[], Trained[nn.Module, GeneratorConfig]]:
    """A generator that learns nothing; it works at any size, Market-1501's where none is asked for."""
    config = GeneratorConfig(generator=name, size=(128, 64), trained_on="nobody: it has no weights")
    return lambda: Trained(CONTROLS[name]().eval(), config, name)


GENERATOR: Kind[nn.Module, GeneratorConfig] = Kind(
    word="generator",
    of_what="a generator",
    training="a GAN training",
    setting="generator",
    info=GeneratorConfig,
    info_of_run=_generator_of_run,
    build=lambda info: build_generator(info.generator, **info.generator_args),
    group="ema",  # the averaged weights
    shipped={
        "shipped": "san_rendered",
        "shipped-rsa": "rsa_gan_rendered",
        "shipped-transport": "transport_rendered",
    },
    untrained={name: _control(name) for name in CONTROLS},
)
PREDICTOR: Kind[nn.Module, GeneratorConfig] = Kind(
    word="generator",
    of_what="a predictor of label maps",
    training="such a training",
    setting="predictor",
    info=GeneratorConfig,
    info_of_run=_predictor_of_run,
    build=lambda info: build_predictor(info.generator, **info.generator_args),
    shipped={"shipped-predictor": "predictor_rendered"},
    option="--predictor",
)
PARSER: Kind[nn.Module, GeneratorConfig] = Kind(
    word="parser",
    of_what="a parser",
    training="a parser's training",
    setting="parser",
    info=GeneratorConfig,
    info_of_run=_parser_of_run,
    build=lambda info: build_parser(info.generator, **info.generator_args),
    shipped={"rendered_parser": "parser_rendered"},
    option="`annotate --parser`",
)
EMBEDDING: Kind[Embedding, EmbeddingInfo] = Kind(
    word="embedding",
    of_what="an embedding",
    training="a Re-ID training",
    setting="embedding",
    info=EmbeddingInfo,
    info_of_run=_embedding_of_run,
    build=Embedding.from_info,
    prefix="embedding.",
)


# ---- A generator or a predictor as a folder to share; an embedding saves itself.


def save_generator(
    folder: str | Path, generator: nn.Module, config: GeneratorConfig, *, half: bool = False, card: str = ""
) -> None:
    """Write the folder, as ``weights.network_folder.save_network`` does.

    Args:
        folder: made if missing.
        generator: its state dict is stored.
        config: what it is; the entries about the weights are filled in here.
        half: store weights as float16: half the size, rounded to 11 bits.
        card: text of the model card below its front matter; default: :func:`model_card`.

    Raises:
        UserError: a weight is not finite, or too large for float16; or the disk refuses.
    """
    config = config.changed(weights_dtype="float16" if half else "float32")
    save_network(folder, generator, config, lambda c: _FRONT_MATTER + (card or model_card(c)), half=half)


_FRONT_MATTER = """\
---
library_name: reposer
license: apache-2.0
pipeline_tag: image-to-image
tags: [person-re-identification, pose-transfer, synthetic-data]
---
"""


def deviations(name: str) -> str:
    """A card's paragraph on what a re-built generator deviates in; empty where it does not say."""
    return f"\n{fill(about(name), 110)}\n" if about(name) else ""


def model_card(config: GeneratorConfig) -> str:
    """The model card that can be written from the configuration alone."""
    height, width = config.size
    args = ", ".join(f"{key}={value}" for key, value in config.generator_args.items()) or "its defaults"
    return f"""
# {config.generator}: a person image in another pose

Generator `{config.generator}` ({args}), {config.step:,} optimizer steps at {height}x{width}, parsing maps in
the label set {config.labels}. Trained on: {config.trained_on or "not recorded"}. Training people (hash of
their ids): `{config.identity_hash or "not recorded"}`.
{deviations(config.generator)}
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
