"""Reposer re-poses people: person images in a wanted pose, larger Re-ID sets, and whether they help.

    from reposer import PoseTransfer, load_person

The names of ``__all__`` are the public face: what a program needs that re-poses people, enlarges a training
set, trains, or compares Re-ID features. Each is imported when it is first used, so that ``import reposer``
alone loads neither PyTorch nor anything else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reposer.annotation.annotate import annotate as annotate
    from reposer.data.preparing.prepare import prepare_people as prepare
    from reposer.errors import UserError as UserError
    from reposer.evaluation.image_quality import evaluate_images as evaluate_images
    from reposer.evaluation.reid_comparison import compare_methods as compare_methods
    from reposer.evaluation.reidentification import Rerank as Rerank
    from reposer.evaluation.reidentification import evaluate_reid as evaluate_reid
    from reposer.generation.augmentation import augment as augment
    from reposer.generation.pictures import load_person as load_person
    from reposer.generation.pose_transfer import MapPredictor as MapPredictor
    from reposer.generation.pose_transfer import PoseTransfer as PoseTransfer
    from reposer.models.embedding import Embedding as Embedding
    from reposer.reid.features import embed_images as embed_images
    from reposer.reid.features import read_features as read_features
    from reposer.reid.metric_learners import KISSME as KISSME
    from reposer.reid.metric_learners import XQDA as XQDA
    from reposer.reid.search import search as search
    from reposer.rendered.dataset import write_rendered_dataset as render
    from reposer.structures import FeatureSet as FeatureSet
    from reposer.workflows.repose import repose as repose
    from reposer.workflows.train import train_preset as train

__version__ = "0.2.0"

# Name -> where it is defined; the same lines as above, for Python itself.
_PLACES = {
    # a generator in use
    "PoseTransfer": "reposer.generation.pose_transfer:PoseTransfer",
    "MapPredictor": "reposer.generation.pose_transfer:MapPredictor",
    "load_person": "reposer.generation.pictures:load_person",
    # what the commands do
    "repose": "reposer.workflows.repose:repose",
    "annotate": "reposer.annotation.annotate:annotate",
    "augment": "reposer.generation.augmentation:augment",
    "prepare": "reposer.data.preparing.prepare:prepare_people",
    "render": "reposer.rendered.dataset:write_rendered_dataset",
    "train": "reposer.workflows.train:train_preset",
    "evaluate_images": "reposer.evaluation.image_quality:evaluate_images",
    # re-identification
    "Embedding": "reposer.models.embedding:Embedding",
    "FeatureSet": "reposer.structures:FeatureSet",
    "KISSME": "reposer.reid.metric_learners:KISSME",
    "XQDA": "reposer.reid.metric_learners:XQDA",
    "Rerank": "reposer.evaluation.reidentification:Rerank",
    "compare_methods": "reposer.evaluation.reid_comparison:compare_methods",
    "embed_images": "reposer.reid.features:embed_images",
    "evaluate_reid": "reposer.evaluation.reidentification:evaluate_reid",
    "read_features": "reposer.reid.features:read_features",
    "search": "reposer.reid.search:search",
    # what a user's mistake raises
    "UserError": "reposer.errors:UserError",
}
__all__ = [
    "KISSME",
    "XQDA",
    "Embedding",
    "FeatureSet",
    "MapPredictor",
    "PoseTransfer",
    "Rerank",
    "UserError",
    "annotate",
    "augment",
    "compare_methods",
    "embed_images",
    "evaluate_images",
    "evaluate_reid",
    "load_person",
    "prepare",
    "read_features",
    "render",
    "repose",
    "search",
    "train",
]

if not TYPE_CHECKING:  # a type checker takes the imports above, and so knows every other name as a mistake

    def __getattr__(name):
        """The public name, imported at its first use (PEP 562)."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _PLACES[name].partition(":")
        value = globals()[name] = getattr(import_module(module), attribute)
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
