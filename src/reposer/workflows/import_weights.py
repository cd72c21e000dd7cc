"""Published checkpoints of the authors, read by their names and shapes and written as folders of ours.

A file of another program is a flat state dict. Every name in it must be one that the network has there, with
that shape; names that stand for one tensor must be equal; nothing may be missing. What is dropped is listed:
biases and statistics that have no effect. The files themselves were not at hand: names and shapes follow from
the authors' code, and the tests use dicts of exactly those with random values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reposer.errors import UserError, find
from reposer.models.generators import build_generator
from reposer.storage.files import sha256_file
from reposer.storage.paths import printable
from reposer.trained.networks import GeneratorConfig
from reposer.weights.files import load_state_dict_file, require_license
from reposer.weights.network_folder import build_with_weights, save_network

Tensors = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # pattern of our names -> theirs


@dataclass(frozen=True, slots=True)
class Read:
    """What a file turned out to be: arguments and names, before any weight is used."""

    generator: str  # a key of models.generators.GENERATORS
    args: dict[str, Any]
    size: tuple[int, int]  # (H, W) of the data set that the authors trained it on
    norm: str  # in words, for the card
    rules: Rules
    aliases: tuple[tuple[str, str], ...] = ()  # pattern of a further name -> the name that holds the same
    dropped: tuple[str, ...] = ()  # patterns of their names without effect
    counted: tuple[str, ...] = ()  # patterns of ours that old files lack: updates that a batch norm saw
    any_size: bool = False  # the same network for all data sets: ``size`` is a default


@dataclass(frozen=True, slots=True)
class Origin:
    """A publication: where its files come from, what may be done with them, how they are read."""

    project: str
    license: str
    prefix: str  # before every name; may be missing
    mark: Callable[[Iterable[str]], bool]  # whether names are of this network
    read: Callable[[Tensors], Read]
    non_commercial: bool = True


def import_weights(
    network: str,
    file: str | Path,
    out: str | Path,
    *,
    accept_license: bool = False,
    size: tuple[int, int] | None = None,
) -> str:
    """Write model.safetensors, config.json and README.md of a published checkpoint.

    Args:
        network: a key of ORIGINS.
        file: the authors' .pth, or the same as .safetensors; read as tensors and nothing else.
        out: new, or an earlier import.
        accept_license: the terms of the weights are accepted.
        size: (H, W) of the pictures that it learned, for a network that does not tell.

    Returns:
        What was written where.

    Raises:
        UserError: an unknown network; a file of another one, with a name or a shape too many or too few, or
            unequal copies of one tensor; terms that nobody accepted yet.
    """
    origin = find("published network", network, ORIGINS)
    path = Path(file)
    terms = f"{origin.license} ({origin.project})"
    tensors = _without_prefix(load_state_dict_file(path, shared=True), origin.prefix)
    _refuse_others(path, network, tensors)
    found = origin.read(tensors)
    if size is not None and not found.any_size and size != found.size:
        told = "x".join(map(str, found.size))
        raise UserError(f"--size: {printable(path)} is of pictures of {told}", "leave the size out")
    ours = renamed(path, tensors, found)
    info = GeneratorConfig(
        generator=found.generator,
        generator_args=found.args,
        size=size or found.size,
        trained_on=f"weights of {origin.project}, file {printable(path.name)}",
    )
    net = build_with_weights(
        lambda: build_generator(found.generator, **found.args), ours, printable(path), "generator", network
    )
    require_license(
        f"published_{network}", terms, non_commercial=origin.non_commercial, accept=accept_license
    )
    digest = sha256_file(path)
    save_network(out, net, info, lambda config: _card(origin, found, path.name, digest, config))
    return (
        f"{printable(out)}: {network}, {sum(p.numel() for p in net.parameters()):,} parameters, {found.norm}"
    )


def renamed(path: Path, tensors: Tensors, found: Read) -> Tensors:
    """The tensors by our names.

    Raises:
        UserError: names the first that is missing or unknown, or whose copy differs.
    """
    left = dict(tensors)
    for name in list(left):
        if any(re.fullmatch(pattern, name) for pattern in found.dropped):
            del left[name]
    for pattern, same in found.aliases:
        for name in [name for name in left if re.fullmatch(pattern, name)]:
            original, copy = re.sub(pattern, same, name), left.pop(name)
            if original not in left or not torch.equal(left[original], copy):
                raise UserError(
                    f"{printable(path)}: {name} is not equal to {original}, of which it is a copy",
                    "get the file again",
                )
    with torch.device("meta"):
        wanted = build_generator(found.generator, **found.args).state_dict()
    ours: Tensors = {}
    for name, ours_there in wanted.items():
        theirs = _their_name(name, found.rules)
        if theirs in left:
            ours[name] = left.pop(theirs)
        elif any(re.fullmatch(pattern, name) for pattern in found.counted):
            ours[name] = torch.zeros(tuple(ours_there.shape), dtype=ours_there.dtype)
        else:
            raise UserError(
                f"{printable(path)}: lacks {theirs} of {found.generator}", "give the whole, published file"
            )
    if left:
        first = sorted(left)[0]
        raise UserError(
            f"{printable(path)}: {len(left)} names are not of {found.generator}: {first}",
            "give the published file as it is",
        )
    return ours


def _their_name(ours: str, rules: Rules) -> str:
    for pattern, theirs in rules:
        found = re.match(pattern, ours)
        if found:
            return found.expand(theirs) + ours[found.end() :]
    raise AssertionError(f"{ours}: no rule")  # every name of a network has one: tested


def _without_prefix(tensors: Tensors, prefix: str) -> Tensors:
    if not all(name.startswith(prefix) for name in tensors):
        return tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _refuse_others(path: Path, network: str, tensors: Tensors) -> None:
    """A file of another network, by name."""
    fits = [name for name, origin in ORIGINS.items() if origin.mark(tensors)]
    if network in fits:
        return
    what = f"is of {fits[0]}" if fits else "has none of its names"
    if any(name.endswith(("weight_orig", "weight_u")) for name in tensors):
        what = "is of a discriminator"
    if tensors and all(name.startswith("flow_net.") for name in tensors):
        what = "holds the flow net alone, the first stage of gfla"
    raise UserError(
        f"{printable(path)}: {what}, not of {network}" if fits else f"{printable(path)}: {what} ({network})",
        f"give the generator's file of {ORIGINS[network].project}",
    )


# ---- PATN.


def _patn(tensors: Tensors, generator: str = "patn", more: Rules = ()) -> Read:
    """Batch norm (Market-1501) or instance norm (DeepFashion), with dropout or without.

    Args:
        generator: patn, or xinggan, which has its names and more.
        more: rules of these.
    """
    market = "stream1_down.2.weight" in tensors
    dropout = "att.0.conv_block_stream1.5.weight" not in tensors
    last = 6 if dropout else 5
    rules = (
        *more,
        *((rf"image_encoder\.{i}\.{j}", f"stream1_down.{3 * i + j + 1}") for i in range(3) for j in (0, 1)),
        *((rf"pose_encoder\.{i}\.{j}", f"stream2_down.{3 * i + j + 1}") for i in range(3) for j in (0, 1)),
        (r"blocks\.(\d)\.image_branch\.0\.0", r"att.\1.conv_block_stream1.1"),
        (r"blocks\.(\d)\.image_branch\.0\.1", r"att.\1.conv_block_stream1.2"),
        (r"blocks\.(\d)\.image_branch\.2", rf"att.\1.conv_block_stream1.{last}"),
        (r"blocks\.(\d)\.image_branch\.3", rf"att.\1.conv_block_stream1.{last + 1}"),
        (r"blocks\.(\d)\.pose_branch\.0\.0", r"att.\1.conv_block_stream2.1"),
        (r"blocks\.(\d)\.pose_branch\.0\.1", r"att.\1.conv_block_stream2.2"),
        (r"blocks\.(\d)\.pose_branch\.2", rf"att.\1.conv_block_stream2.{last}"),
        (r"decoder\.6", "stream1_up.7"),
        (r"decoder\.", "stream1_up."),
    )
    if market:
        args = {"norm": "batch", "dropout": 0.5 if dropout else 0.0, "as_published": True}
        counted = (r".*\.num_batches_tracked",)
        return Read(
            generator, args, (128, 64), "batch norm, in use by its statistics", rules, counted=counted
        )
    normed = (
        rf"(stream[12]_down\.[147]|att\.\d\.conv_block_stream1\.(1|{last})|att\.\d\.conv_block_stream2\.1"
    )
    normed += r"|stream[12]_up\.[03]|x2_con|atte_con|atte_con1)"
    places = rf"(stream[12]_down\.[258]|att\.\d\.conv_block_stream1\.(2|{last + 1})"
    places += r"|att\.\d\.conv_block_stream2\.2|stream[12]_up\.[14]|x2_norm|atte_norm|atte_norm1)"
    dropped = (rf"{normed}\.bias", rf"{places}\.(running_mean|running_var|num_batches_tracked)")
    args = {"norm": "instance", "dropout": 0.5 if dropout else 0.0, "as_published": True}
    norm = "instance norm; biases before it dropped, which it cancels, and statistics, which it never reads"
    return Read(generator, args, (256, 176), norm, rules, dropped=dropped)


def _xinggan(tensors: Tensors) -> Read:
    more = (
        (r"blocks\.(\d)\.(query|key|value)", r"att.\1.\2_conv"),
        (r"blocks\.(\d)\.gamma", r"att.\1.gamma"),
        *(
            (rf"{ours}_decoder\.{place}", f"stream{number}_up.{after}")
            for number, ours in ((1, "image"), (2, "pose"))
            for place, after in (("6", "7"), ("", ""))
        ),
        (r"pose_narrow\.0", "x2_con"),
        (r"pose_narrow\.1", "x2_norm"),
        (r"attention\.0", "atte_con"),
        (r"attention\.1", "atte_norm"),
        (r"attention\.3", "atte_con1"),
        (r"attention\.4", "atte_norm1"),
        (r"attention\.6", "atte_con2"),
    )
    return _patn(tensors, "xinggan", more)


# ---- GFLA.


def _gfla(tensors: Tensors) -> Read:
    fashion = any(name.startswith("target.attn0.") for name in tensors)
    encoders = ("block0", "encoder0", "encoder1", "encoder2", "encoder3")
    rules = (
        *((rf"source_net\.{i}\.", f"source.{name}.model.") for i, name in enumerate(encoders[:3])),
        *((rf"target_net\.encoders\.{i}\.", f"target.{name}.model.") for i, name in enumerate(encoders[:3])),
        *((rf"flow_net\.encoders\.{i}\.", f"flow_net.{name}.model.") for i, name in enumerate(encoders)),
        (r"target_net\.blocks\.(\d)\.branch\.", r"target.decoder\1.0.model.0.model."),
        (r"target_net\.decoders\.(\d)\.branch\.", r"target.decoder\1.1.model."),
        (r"target_net\.decoders\.(\d)\.shortcut", r"target.decoder\1.1.shortcut.0"),
        *(
            (
                rf"target_net\.attentions\.{scale}\.{ours}",
                f"target.attn{1 - scale}.fully_connect_layer.{theirs}",
            )
            for scale in (0, 1)
            for ours, theirs in (("mix", 0), ("weigh", 2))
        ),
        (r"target_net\.to_image\.1", "target.outconv.model.2"),
        (r"flow_net\.decoders\.(\d)\.branch\.", r"flow_net.decoder\1.model."),
        (r"flow_net\.decoders\.(\d)\.shortcut", r"flow_net.decoder\1.shortcut.0"),
        (r"flow_net\.jumps\.(\d)\.1", r"flow_net.jump\1.model.2"),
        *((rf"flow_net\.flow_heads\.{scale}", f"flow_net.output{2 - scale}") for scale in (0, 1)),
        *((rf"flow_net\.mask_heads\.{scale}", f"flow_net.mask{2 - scale}.0") for scale in (0, 1)),
    )
    aliases = ((r"(flow_net\.jump\d|target\.outconv)\.conv1\.(weight|bias)", r"\1.model.2.\2"),)
    args: dict[str, Any] = {"attention": [5, 3] if fashion else [3]}
    size = (256, 256) if fashion else (128, 64)
    return Read("gfla", args, size, "instance norm with learned scale and shift", rules, aliases)


# ---- DPTN.


def _dptn(tensors: Tensors) -> Read:
    """The transformer is PTM, or transformer in older files."""
    ptm = "PTM" if any(name.startswith("PTM.") for name in tensors) else "transformer"
    rules = (
        *(
            (rf"{ours}\.{part}", f"{theirs}{block}.model")
            for ours, theirs in (("encoder", ""), ("source_encoder", "source_encoder."))
            for part, block in (("first", "block0"), (r"further\.0", "encoder0"), (r"further\.1", "encoder1"))
        ),
        (r"blocks\.(\d)\.branch", r"mblock\1.model"),
        (r"blocks\.(\d)\.beside", r"mblock\1.shortcut.0"),
        *(
            rule
            for ours, side in (("context", "encoder"), ("texture", "decoder"))
            for rule in (
                *(
                    (rf"{ours}\.(\d)\.{mine}\.{own}", rf"{ptm}.{side}.layers.\1.{theirs}.{other}")
                    for mine, theirs in (("attention", "self_attn"), ("asked", "multihead_attn"))
                    for own, other in ((r"into\.", "in_proj_"), (r"out\.", "out_proj."))
                ),
                (rf"{ours}\.(\d)\.feed\.0", rf"{ptm}.{side}.layers.\1.linear1"),
                (rf"{ours}\.(\d)\.feed\.2", rf"{ptm}.{side}.layers.\1.linear2"),
                *((rf"{ours}\.(\d)\.norms\.{i}", rf"{ptm}.{side}.layers.\1.norm{i + 1}") for i in range(3)),
            )
        ),
        (r"last_norm", f"{ptm}.decoder.norm"),
        (r"decoders\.(\d)\.branch", r"decoder\1.model"),
        (r"decoders\.(\d)\.shortcut", r"decoder\1.shortcut.0"),
        (r"to_image\.1", "outconv.model.2"),
    )
    aliases = (
        (r"outconv\.conv1\.(weight|bias)", r"outconv.model.2.\1"),
        (r"(mblock\d)\.conv1\.(weight|bias)", r"\1.model.2.\2"),
        (r"(mblock\d)\.conv2\.(weight|bias)", r"\1.model.5.\2"),
        (r"(mblock\d)\.bypass\.(weight|bias)", r"\1.shortcut.0.\2"),
    )
    norm = "instance norm with learned scale and shift"
    return Read("dptn", {}, (256, 256), norm, rules, aliases, any_size=True)


def _any(pattern: str) -> Callable[[Iterable[str]], bool]:
    return lambda names: any(re.match(pattern, name) for name in names)


_XING = _any(r"(model\.)?(att\.\d+\.gamma|x2_con\.|atte_con)")
_PATN = _any(r"(model\.)?stream1_down\.")

ORIGINS: dict[str, Origin] = {
    "patn": Origin(
        "github.com/tengteng95/Pose-Transfer",
        "MIT code; trained on Market-1501 or DeepFashion, whose terms are for research",
        "model.",
        lambda names: _PATN(names) and not _XING(names),
        _patn,
        non_commercial=False,
    ),
    "xinggan": Origin("github.com/Ha0Tang/XingGAN", "CC BY-NC-SA 4.0", "model.", _XING, _xinggan),
    "gfla": Origin(
        "github.com/RenYurui/Global-Flow-Local-Attention",
        "CC BY-NC 4.0",
        "module.",
        _any(r"(module\.)?target\.(block0|attn1)"),
        _gfla,
    ),
    "dptn": Origin(
        "github.com/PangzeCheung/Dual-task-Pose-Transformer-Network",
        "CC BY-NC 4.0",
        "module.",
        _any(r"(module\.)?(PTM|transformer)\."),
        _dptn,
    ),
}


def _card(origin: Origin, found: Read, name: str, digest: str, config: GeneratorConfig) -> str:
    height, width = config.size
    noted = " They must not be used commercially." if origin.non_commercial else ""
    return f"""---
library_name: reposer
license: other
license_name: {origin.license}
tags: [person-re-identification, pose-transfer]
---

# {config.generator}: weights of its authors

Origin: {origin.project}, file `{printable(name)}` (sha256 `{digest}`),
renamed and stored as safetensors; no value was changed. For pictures of {height}x{width} pixels.
Norm: {found.norm}.

## License and limits

{origin.license}.{noted} The weights carry what they learned about people who may not have consented one by
one. Meant for research; not for surveillance, decisions about people, or pictures that pass for photographs.

## Use

    reposer generate "this folder" --data PREPARED --pairs PAIRS.csv --out PICTURES

## Files

`model.safetensors` (sha256 `{config.weights_sha256}`), `config.json`. Nothing here is executable.
"""
