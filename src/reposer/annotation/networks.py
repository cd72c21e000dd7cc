"""Segmentation networks as callables: an ONNX file in onnxruntime, a folder of transformers; lanes to run in.

No code ever comes from a file: ONNX files pass onnx_checks.py first; of a transformers folder only
config.json and model.safetensors are read, both by this program, and the class is one of a short list here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from reposer.annotation.onnx_checks import read_onnx
from reposer.annotation.onnx_session import OnnxSession, SessionError, Value
from reposer.annotation.segmentation_model import SegmentationModel
from reposer.config import read_json
from reposer.errors import UserError
from reposer.storage.paths import RefusedFileError, printable, read_regular
from reposer.weights.files import load_state_dict_file
from reposer.weights.network_folder import shapes_alone

_INSTALL = "pip install reposer[annotate]"
_CONFIG_BYTES = 1_000_000
_HALF = "tensor(float16)"
# model_type in config.json -> (configuration, network); all give ``logits`` (B, L, h, w) or ``heatmaps``
SEGMENTERS = {
    "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation"),
    "mobilevit": ("MobileViTConfig", "MobileViTForSemanticSegmentation"),
    "beit": ("BeitConfig", "BeitForSemanticSegmentation"),
}
# Keys that any configuration may have beside its class's own: words about the file and its classes. Others,
# such as attn_implementation and auto_map, can make transformers load other files, code or number formats.
_PLAIN_KEYS = {
    *("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "id2label", "label2id"),
    *("num_labels", "return_dict", "output_hidden_states", "output_attentions", "problem_type"),
    *("reshape_last_stage", "finetuning_task", "_name_or_path", "name_or_path", "is_encoder_decoder"),
    *("chunk_size_feed_forward", "add_cross_attention", "is_decoder", "tie_word_embeddings", "pruned_heads"),
    *("downsampling_rates", "image_size", "edges"),  # of older SegFormer and ViTPose, read by nothing now
    "_attn_implementation_autoset",  # a note of one version of transformers; no choice
}
_EMPTY: tuple[Any, ...] = (None, False, "", [], {})  # a key with one of these asks for nothing
_KEPT_OUT = {
    *("backbone", "use_timm_backbone", "use_pretrained_backbone", "auto_map", "quantization_config"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "torchscript"),
}
_MOST = 100_000  # of any whole number in a configuration
_MOST_LAYERS, _MOST_ITEMS = 200, 2000


class Network(Protocol):
    """A network as a parser calls it."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) float32 -> the output that its description names."""
        ...


class OnnxNetwork:
    """An ONNX file in onnxruntime, in a process of its own; on the CPU unless CUDA is there and asked for.

    A network exported in float16 is given float16 and runs as such; its output is float32 here.

    Args:
        path: the file.
        description: its input size and the number of the output to use.
        device: "cpu" or "cuda".
        threads: of the processor; None: as many as torch has.

    Raises:
        RefusedFileError: as ``read_onnx``, or rules ``unusable`` (onnxruntime cannot build it), ``inputs``
            and ``outputs`` (they do not fit the description).
        UserError: a package or the device is missing.
    """

    def __init__(
        self,
        path: str | Path,
        description: SegmentationModel,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        threads = threads or torch.get_num_threads()
        self._again = (path, description, device, threads)
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise UserError("ONNX models need onnxruntime, not installed here", _INSTALL) from error
        data = read_onnx(path)
        if device.startswith("cuda") and "CUDAExecutionProvider" not in ort.get_available_providers():
            raise UserError(f"device {device}: onnxruntime has no CUDA here", "pip install onnxruntime-gpu")
        try:
            self._session = OnnxSession(data, threads, device.startswith("cuda"))
        except SessionError as error:
            raise RefusedFileError(path, "unusable", f"onnxruntime refuses it: {error}") from error
        inputs, outputs = self._session.inputs, self._session.outputs
        problem, advice = _input_fault(inputs, description.size)
        if problem:
            raise RefusedFileError(path, "inputs", problem, advice)
        shape = list(inputs[0].shape)
        if description.output >= len(outputs):
            problem = f"has {len(outputs)} outputs, its description wants number {description.output}"
            raise RefusedFileError(path, "outputs", problem, "correct its field output, counted from 0")
        self._path = path
        self._half = inputs[0].type == _HALF
        self._output = description.output
        self._batch = shape[0] if isinstance(shape[0], int) else None  # the only batch size it takes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its place: another process has a session of its own."""
        return OnnxNetwork, self._again

    def __call__(self, x: Tensor) -> Tensor:
        if self._batch is None:
            return self._run(x)
        full = -len(x) % self._batch
        padded = torch.cat([x, x[-1:].expand(full, -1, -1, -1)]) if full else x
        return torch.cat([self._run(part) for part in torch.split(padded, self._batch)])[: len(x)]

    def _run(self, x: Tensor) -> Tensor:
        given = x.cpu().contiguous().numpy()
        try:
            values = self._session.run(self._output, given.astype(np.float16 if self._half else np.float32))
        except SessionError as error:
            advice = "lower --batch-size, or use another model"
            problem = f"onnxruntime cannot run it: {error}"
            raise RefusedFileError(self._path, "unusable", problem, advice) from error
        return torch.from_numpy(values.astype(np.float32) if values.dtype == np.float16 else values)


def _input_fault(inputs: Sequence[Value], size: tuple[int, int]) -> tuple[str, str]:
    """What is wrong with a network's inputs, and what to do; "" and "" for one float (B, 3, *size)."""
    wanted = ", ".join(f"{i.type} {i.shape}" for i in inputs)[:120]
    problem = f"takes {wanted or 'nothing'}, its description says one float (B, 3, {size[0]}, {size[1]})"
    if len(inputs) != 1:
        return problem, "export the network with the image as its only input"
    shape = list(inputs[0].shape)
    if inputs[0].type not in ("tensor(float)", _HALF):
        return problem, "export it as float32: model.float() and a float32 example image"
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        return problem, "export it for images (B, 3, H, W): a batch, and the channels before the pixels"
    if any(isinstance(has, int) and has != wants for has, wants in zip(shape[2:], size, strict=True)):
        return problem, f"correct the field size of its description: {shape[2:]}"
    return "", ""


class TransformersNetwork:
    """A folder with config.json and model.safetensors as transformers' ``save_pretrained`` writes them.

    Args:
        folder: the folder.
        device: where it runs.

    Raises:
        UserError: as :func:`load_transformers`.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self._network = load_transformers(folder, SEGMENTERS).to(device)
        self._device = device

    def __call__(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self._network(pixel_values=x.to(self._device)).logits
        return logits


def load_transformers(folder: str | Path, classes: dict[str, tuple[str, str]]) -> nn.Module:
    """The network of a folder, in eval mode; every tensor of the file must have its place, and vice versa.

    Args:
        folder: holds config.json and model.safetensors.
        classes: the model types that are allowed here.

    Raises:
        RefusedFileError: rules ``model-type``, ``config-key``, ``config``, ``absurd-size``,
            ``wrong-weights``.
        UserError: transformers is missing; as ``load_state_dict_file``.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("this model needs transformers, not installed here", _INSTALL) from error
    folder = Path(folder)
    place, weights = folder / "config.json", folder / "model.safetensors"
    read_regular(place, max_bytes=_CONFIG_BYTES)  # a look at its kind and size
    settings = read_json(place)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in classes:
        known = ", ".join(classes)
        raise RefusedFileError(place, "model-type", f"model_type {str(kind)[:60]!r}: not one of {known}")
    config_class, network_class = (getattr(transformers, name) for name in classes[kind])
    allowed = _PLAIN_KEYS | set(config_class().to_dict())
    settings = _plain_settings(place, settings, allowed)
    tensors = load_state_dict_file(weights)
    room = 2 * weights.stat().st_size + 1_000_000
    try:
        config = config_class.from_dict(settings)
        with shapes_alone():
            shell = network_class(config)
        needed = sum(p.numel() * p.element_size() for p in shell.parameters())
    except Exception as error:  # whatever a hostile configuration provokes
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise RefusedFileError(place, "config", f"no network can be built: {reason}") from error
    if needed > room:
        problem = f"asks for {needed:,} bytes of weights, {weights.name} has {weights.stat().st_size:,}"
        raise RefusedFileError(place, "absurd-size", problem, "use the configuration of these weights")
    return _filled(network_class, config, tensors, weights)


def _plain_settings(place: Path, settings: dict[str, Any], allowed: Collection[str]) -> dict[str, Any]:
    """The settings that ask for something, all of them known by name and of a sane size."""
    kept = {key: value for key, value in settings.items() if not (key in _KEPT_OUT and value in _EMPTY)}
    for key, value in kept.items():
        if key in _KEPT_OUT or (value not in _EMPTY and key not in allowed):
            problem = f"{printable(key[:60])} is set: only plain weights of a known class are used"
            raise RefusedFileError(place, "config-key", problem)
        if key == "backbone_config":
            _check_backbone(place, value)
        counts = any(word in key for word in ("layers", "blocks", "depth", "experts", "convs"))
        most = _MOST_LAYERS if counts else _MOST
        if _largest(value) > most:
            raise RefusedFileError(place, "config", f"{printable(key[:60])} is larger than {most:,}")
    return {key: value for key, value in kept.items() if key in allowed}


def _check_backbone(place: Path, value: Any) -> None:
    """Refuse a backbone inside a configuration that is not ViTPose's own."""
    from transformers import VitPoseBackboneConfig

    if not isinstance(value, dict) or value.get("model_type", "vitpose_backbone") != "vitpose_backbone":
        raise RefusedFileError(place, "config-key", "backbone_config is set to another kind of network")
    config: Any = VitPoseBackboneConfig()
    _plain_settings(place, value, _PLAIN_KEYS | set(config.to_dict()))


def _largest(value: Any, depth: int = 0) -> float:
    """The largest size of any number or list in a value; infinite where it is nested without sense."""
    if isinstance(value, dict | list):
        items = list(value.values() if isinstance(value, dict) else value)
        if depth > 4 or len(items) > _MOST_ITEMS:
            return float("inf")
        return max((_largest(item, depth + 1) for item in items), default=0.0)
    return abs(value) if isinstance(value, int | float) else 0.0


def _filled(network_class: Any, config: Any, tensors: dict[str, Tensor], weights: Path) -> nn.Module:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its report of missing tensors; they are an error here
    try:
        network, report = network_class.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise RefusedFileError(weights, "wrong-weights", f"do not fit config.json: {reason}") from error
    finally:
        logger.setLevel(level)
    wrong = [
        str(entry)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for entry in report[kind]
    ]
    if wrong:
        problem = f"{len(wrong)} tensors do not belong to config.json: {wrong[0][:100]}"
        raise RefusedFileError(weights, "wrong-weights", problem, f"get {printable(weights.parent)} again")
    network.eval()
    assert isinstance(network, nn.Module)
    return network


# ---- Images side by side: so many threads, each of which computes alone.
#
# PyTorch splits every single operation among its threads. On images of 128 x 64 the threads then wait for
# each other for longer than they work, and burn processor time doing so: two of them take four times that of
# one. Threads that take an image, or some, from beginning to end never wait.

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_starting = Lock()


class Lanes:
    """Threads with one thread of PyTorch's each.

    Args:
        count: of them; None: as many as PyTorch has.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, initializer=_alone)

    def map(self, work: Callable[[_Given], _Made], given: Iterable[_Given]) -> list[_Made]:
        """What ``work`` makes of each, in their order; it must not call this itself."""
        return list(self._pool.map(work, given))


def _alone() -> None:
    """Compute with one thread in this thread; PyTorch's number, which threads begin with, stays as it was."""
    with _starting:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        later = Thread(target=torch.set_num_threads, args=(before,))
        later.start()
        later.join()
