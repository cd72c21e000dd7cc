"""Real and generated people as one labeled data set, with one label map: that of the real people."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.data.generated.people import GeneratedPeople
from reposer.data.reid_datasets import ReidDataset
from reposer.errors import UserError
from reposer.structures import ReidBatch


class MixedDataset:
    """N real images, then M generated ones.

    Args:
        real: gives the classes.
        generated: pictures of the same people.
        weight: of a generated image in the losses.
        extra_class: whether generated images are labeled K, a class of their own, instead of their source's.
        known: whether that label says whom they show.
        use_dropped: take the pictures that a filter dropped too.

    Raises:
        UserError: no picture is left.
    """

    def __init__(
        self,
        real: ReidDataset,
        generated: GeneratedPeople,
        *,
        weight: float = 1.0,
        extra_class: bool = False,
        known: bool = True,
        use_dropped: bool = False,
    ) -> None:
        self.real, self.generated = real, generated
        self.indices = np.flatnonzero(generated.kept | use_dropped)  # (M,) into generated
        if not len(self.indices):
            raise UserError(f"{generated.folder}: the filter dropped every picture", "use another filter")
        self.pids = real.pids  # (K,)
        # (M,) class of the person who is shown, whatever the label says
        self.people: NDArray[np.int64] = np.searchsorted(real.pids, generated.pids[self.indices])
        self._labels = np.full_like(self.people, len(self.pids)) if extra_class else self.people
        self._weight, self._known = weight, known

    def notes(self) -> list[str]:
        """What a reader of the result should know: about the set, and how it fits the real images."""
        generated, real = self.generated, set(self.real.names(np.arange(len(self.real))))
        notes = list(generated.notes)
        if generated.factor is not None:
            expected = (generated.factor - 1) * len(real)
            if len(generated) != expected:
                notes.append(
                    f"{len(generated)} generated pictures for {len(real)} real ones:"
                    f" factor {generated.factor} would be {expected}"
                )
        for side, names in (("source", generated.sources), ("donor", generated.donors)):
            other = sum(name not in real for name in names)
            if other:
                notes.append(f"{other} generated pictures have a {side} outside the real images trained on")
        return notes

    def __len__(self) -> int:
        return len(self.real) + len(self.indices)

    def batch(self, rows: NDArray[np.int64]) -> ReidBatch:
        """The images at ``rows`` (B,) on the CPU; (B, 3, H, W) uint8 in channels_last order."""
        made = rows >= len(self.real)
        own, chosen = self.real.batch(rows[~made]), rows[made] - len(self.real)
        pictures = self.indices[chosen]
        images = np.empty((len(rows), *self.generated.images.shape[1:]), np.uint8)
        images[~made] = own.image.permute(0, 2, 3, 1).numpy()
        images[made] = self.generated.images[pictures]

        def joined(real: torch.Tensor, generated: NDArray[np.int64] | float) -> torch.Tensor:
            values = np.empty(len(rows), real.numpy().dtype)
            values[~made], values[made] = real.numpy(), generated
            return torch.from_numpy(values)

        return ReidBatch(
            image=torch.from_numpy(images).permute(0, 3, 1, 2),
            label=joined(own.label, self._labels[chosen]),
            camid=joined(own.camid, self.generated.camids[pictures]),
            weight=joined(own.weight, self._weight),
            generated=torch.from_numpy(made),
            known=joined(own.known, self._known),
        )

    def names(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """File names of the images at ``rows``."""
        n = len(self.real)
        real = iter(self.real.names(rows[rows < n]))
        made = iter([self.generated.names[i] for i in self.indices[rows[rows >= n] - n].tolist()])
        return tuple(next(made if row >= n else real) for row in rows.tolist())
