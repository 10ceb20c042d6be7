"""How hard each training picture is, for passes over the data that leave out easy ones.

A picture's loss comes from the step that trained on it last, and costs next to nothing. That pictures are left out at
random, from the easier half, so that each comes back, is after InfoBatch (Z. Qin and others, arXiv 2303.04947), without
its larger weights for those of them that stay.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class Difficulty:
    """What a training that resumes needs, beside (seed, step), to go on with the same pictures.

    Attributes:
        losses: float32 (N,), on the training device: the cross-entropy of each training picture when it was trained on
            last, natural logarithm, without smoothing or weights; infinite before.
        losses_at_pass: the same, when the pass in hand began: they say what it leaves out.
        one_pass: the number of that pass, from 0.
        first_step: the global step that it began with.
        batch: int64, the pictures of the batch in hand, each once.
    """

    losses: Tensor
    losses_at_pass: Tensor
    one_pass: int = 0
    first_step: int = 0
    batch: Tensor | None = None

    @classmethod
    def unknown(cls, pictures: int, device: torch.device) -> "Difficulty":
        losses = torch.full((pictures,), torch.inf, dtype=torch.float32, device=device)
        return cls(losses, losses.clone())

    def begin_pass(self, one_pass: int, step: int) -> None:
        self.losses_at_pass = self.losses.clone()
        self.one_pass, self.first_step = one_pass, step

    def note(self, losses: Tensor) -> None:
        """The losses of the batch in hand, in its order; of changed copies of a picture the mean."""
        assert self.batch is not None, "a batch comes first"
        self.losses[self.batch] = losses.float().view(len(self.batch), -1).mean(1)

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
    """`pictures`, indices int64 (n,) in the order of a pass, without about `part` of them, 0 to 0.5.

    Those left out are drawn at random from the half with the lowest of `losses` (N,), as many as leave whole batches:
    all pictures stay where that would save no batch.
    """
    n, half = len(pictures), len(pictures) // 2
    kept = math.ceil((1 - part) * n / batch_size - 0.5) * batch_size
    if kept < n - half:
        kept += batch_size
    if kept >= n:
        return pictures
    easier = np.argsort(losses[pictures], kind="stable")[:half]
    return np.delete(pictures, rng.permutation(easier)[: n - kept])
