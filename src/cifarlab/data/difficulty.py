"""How hard each training picture is, for passes over the data that leave out easy ones.

A picture's loss comes from the step that trained on it last, and costs nothing more. That pictures are left out at
random, from the easier half, so that each comes back, is after InfoBatch (Z. Qin and others, arXiv 2303.04947), without
its larger weights for those of them that stay.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class Difficulty:
    """What a training that resumes needs, beside (seed, step), to go on with the same pictures.

    Attributes:
        losses: float32 (N,), on the training device: of each training picture when it was trained on last, natural
            logarithm; infinite before.
        losses_at_pass: the same, when the pass in hand began: they say what it leaves out.
        one_pass: the number of that pass, from 0.
        first_step: the global step that it began with.
        batch: int64, the pictures of the batch in hand.
    """

    losses: Tensor
    losses_at_pass: Tensor
    one_pass: int = 0
    first_step: int = 0
    batch: Tensor | None = None

    @classmethod
    def unknown(cls, pictures: int, device: torch.device) -> "Difficulty":
        losses = torch.full((pictures,), torch.inf, device=device)
        return cls(losses, losses.clone())

    def begin_pass(self, one_pass: int, step: int) -> None:
        self.losses_at_pass = self.losses.clone()
        self.one_pass, self.first_step = one_pass, step

    def note(self, losses: Tensor) -> None:
        """The losses (B,) of the batch in hand."""
        assert self.batch is not None, "a batch comes first"
        self.losses[self.batch] = losses

    def state(self) -> dict[str, Tensor]:
        place = torch.tensor([self.one_pass, self.first_step])
        return {"losses": self.losses, "losses_at_pass": self.losses_at_pass, "place": place}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.losses = state["losses"].to(self.losses.device)
        self.losses_at_pass = state["losses_at_pass"].to(self.losses.device)
        self.one_pass, self.first_step = state["place"].tolist()


def without_easy(
    pictures: np.ndarray, losses: np.ndarray, part: float, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """`pictures`, indices int64 (n,) in the order of a pass, without `part` of them, 0 to 0.5: drawn at random from the
    half with the lowest of `losses` (N,). What stays makes whole batches, where that leaves any."""
    kept = round((1 - part) * len(pictures))
    kept = kept // batch_size * batch_size or kept
    easier = np.argsort(losses[pictures], kind="stable")[: max(len(pictures) // 2, len(pictures) - kept)]
    left_out = rng.permutation(easier)[: len(pictures) - kept]
    return np.delete(pictures, left_out)
