"""Generators that learn nothing: what they give, and where they may be named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.stitching import stitch
from reposer.images import to_uint8
from reposer.models.generators import CONTROLS, Paste, Transport
from reposer.models.texture_transport import transport
from reposer.trained.networks import GENERATOR, open_network


def test_transport_is_the_carried_picture(make_batch: Any) -> None:
    batch = make_batch(3)
    assert torch.equal(Transport()(batch), transport(batch).image)


def test_paste_is_the_source_to_the_last_bit(make_batch: Any) -> None:
    batch = make_batch(3)
    assert torch.equal(to_uint8(Paste()(batch)), batch.source_image)


@pytest.mark.parametrize("name", CONTROLS)
def test_they_open_by_name_without_weights_at_any_size(name: str) -> None:
    found = open_network(GENERATOR, name)
    assert not list(found.network.parameters())
    model = PoseTransfer.from_pretrained(name)
    assert not model.learned
    assert model.at_size((64, 32)).size == (64, 32)
    assert model.at_size((64, 32)).weights_hash == model.weights_hash


def test_a_pasted_person_stands_where_the_source_stood(make_batch: Any) -> None:
    """Over the donor's background: the source's person on its own mask, the donor's person painted out."""
    batch = make_batch(2)
    batch.source_mask[:] = False
    batch.source_mask[:, 10:50, 4:20] = True
    batch.target_mask[:] = False
    batch.target_mask[:, 20:60, 10:28] = True
    picture = PoseTransfer.from_pretrained("paste").at_size((64, 32))(batch, "donor")
    wanted = stitch(batch.source_image, batch, "donor", batch.source_mask)
    assert torch.equal(picture, wanted)
    assert torch.equal(picture[:, :, 12:48, 6:18], batch.source_image[:, :, 12:48, 6:18])
    assert torch.equal(picture[:, :, :8, :2], batch.target_image[:, :, :8, :2])  # far from both persons
    hidden = np.s_[:, :, 52:58, 22:27]  # the donor's person, where the source has none
    assert not torch.equal(picture[hidden], batch.target_image[hidden])


def test_they_say_how_their_pictures_come_about() -> None:
    paste, carried = (PoseTransfer.from_pretrained(name) for name in ("paste", "transport"))
    for background in ("generated", "source", "donor"):
        assert paste.provenance(background).startswith("no network: each picture shows its source as it is")
        assert "keypoints" not in paste.provenance(background)
        assert carried.provenance(background) == (
            "no network: pixels of the source are carried to the target's pose"
        )
