"""A studio for the tests of the page: texture transport, rendered people, and stub annotators of photos."""

from __future__ import annotations

from annotate_runner import stubs

from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.runtime import setup
from reposer.workflows.studio import Studio


def page_studio() -> Studio:
    """On one thread of the processor."""
    runtime = setup("cpu", "float32", threads=1)
    helper = MapPredictor.from_pretrained("shipped-predictor", runtime)
    model = PoseTransfer.from_pretrained("transport", runtime).at_size(helper.config.size)
    studio = Studio(model.with_predictor(helper), stubs())
    studio.add_samples()
    return studio
