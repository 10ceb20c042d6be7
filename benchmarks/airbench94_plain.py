"""airbench94 with Muon (K. Jordan, arXiv 2404.00498) in plain PyTorch, as a script that somebody writes by hand.

    python benchmarks/airbench94_plain.py --data-dir DIR [--epochs 8] [--precision float32] [--train-epochs 2]

It is what `time_to_94.py` measures against, and uses nothing of cifarlab but the reading of CIFAR-10. Each epoch prints
a line of JSON. `--train-epochs` stops early, with the rates of the whole schedule; `--whiten-bias-epochs` is how many
epochs train the whitening layer's bias too, which cost more than those after them (3 as published).
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
BATCH_SIZE = 2000
BIAS_LR, HEAD_LR, MUON_LR = 0.053, 0.67, 0.24
WEIGHT_DECAY = 2e-6 * BATCH_SIZE


class BatchNorm(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight.requires_grad = False  # the bias is trained, the scale stays 1


class Conv(nn.Conv2d):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__(channels, filters, 3, padding="same", bias=False)
        nn.init.dirac_(self.weight.data[:channels])


class ConvGroup(nn.Module):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = Conv(channels, filters), BatchNorm(filters)
        self.conv2, self.norm2 = Conv(filters, filters), BatchNorm(filters)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad = False
        self.groups = nn.Sequential(ConvGroup(24, 64), ConvGroup(64, 256), ConvGroup(256, 256))
        self.head = nn.Linear(256, 10, bias=False)
        self.head.weight.data *= 1 / self.head.weight.data.std()

    def init_whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        scaled = (eigenvectors.T / (eigenvalues[:, None] + eps).sqrt()).reshape(-1, 3, 2, 2).float()
        self.whiten.weight.data = torch.cat((scaled, -scaled))

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.whiten(x)))
        x = F.max_pool2d(x, 3).flatten(1)
        return self.head(x) / x.size(-1)


def newton_schulz(gradient: Tensor, steps: int = 3) -> Tensor:
    a, b, c = (3.4445, -4.7750, 2.0315)
    x = gradient / (gradient.norm() + 1e-7)
    if gradient.size(0) > gradient.size(1):
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if gradient.size(0) > gradient.size(1) else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                buffer.mul_(group["momentum"]).add_(p.grad)
                gradient = p.grad.add(buffer, alpha=group["momentum"])
                p.mul_(len(p) ** 0.5 / p.norm())
                update = newton_schulz(gradient.reshape(len(gradient), -1)).view(gradient.shape)
                p.add_(update, alpha=-group["lr"])


def batches(images: Tensor, labels: Tensor, epochs: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(epoch, pictures, labels): reflected crops, and each picture's first flip drawn once, then toggled."""
    flip_first = torch.rand(len(images)) < 0.5
    padded = F.pad(images, (2, 2, 2, 2), "reflect")
    for epoch in range(epochs):
        flipped = flip_first ^ bool(epoch % 2)
        order = torch.randperm(len(images))
        shifts = torch.randint(0, 5, (len(images), 2))
        cropped = torch.empty_like(images)
        for down in range(5):
            for right in range(5):
                chosen = (shifts[:, 0] == down) & (shifts[:, 1] == right)
                cropped[chosen] = padded[chosen, :, down : down + 32, right : right + 32]
        cropped = torch.where(flipped[:, None, None, None], cropped.flip(3), cropped)
        for first in range(0, len(images), BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            yield epoch, cropped[rows].contiguous(memory_format=torch.channels_last), labels[rows]


def predict(model: nn.Module, images: Tensor, autocast: torch.autocast) -> tuple[Tensor, Tensor]:
    """Logits (N, 10) as they are, and with six test-time views: mirror x (centre, two shifts of one pixel)."""

    def mirrored(x: Tensor) -> Tensor:
        return (model(x) + model(x.flip(3))).float() / 2

    plain, views = [], []
    model.eval()
    with torch.no_grad(), autocast:
        for x in images.split(BATCH_SIZE):
            padded = F.pad(x, (1, 1, 1, 1), "reflect")
            shifted = (mirrored(padded[:, :, :32, :32]) + mirrored(padded[:, :, 2:, 2:])) / 2
            plain.append(model(x).float())
            views.append((mirrored(x) + shifted) / 2)
    return torch.cat(plain), torch.cat(views)


def load(data_dir: Path | None) -> dict[str, tuple[Tensor, Tensor]]:
    from cifarlab.data import open_source

    source = open_source("cifar10", data_dir)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    splits = {}
    for name in ("train", "test"):
        split = source.load(name)
        images = (torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        splits[name] = images.contiguous(memory_format=torch.channels_last), torch.from_numpy(split.labels)
    return splits


def optimizers(model: Net) -> tuple[torch.optim.SGD, Muon]:
    """SGD for biases and head, Muon for the filters; the whitening bias is SGD's first group."""
    filters = [p for p in model.parameters() if p.ndim == 4 and p.requires_grad]
    norm_biases = [p for name, p in model.named_parameters() if "norm" in name and p.requires_grad]
    sgd = torch.optim.SGD(
        [
            {"params": [model.whiten.bias], "lr": BIAS_LR, "weight_decay": WEIGHT_DECAY / BIAS_LR},
            {"params": norm_biases, "lr": BIAS_LR, "weight_decay": WEIGHT_DECAY / BIAS_LR},
            {"params": [model.head.weight], "lr": HEAD_LR, "weight_decay": WEIGHT_DECAY / HEAD_LR},
        ],
        momentum=0.85,
        nesterov=True,
    )
    return sgd, Muon(filters, lr=MUON_LR, momentum=0.6)


def train(
    model: Net, images: Tensor, labels: Tensor, options: argparse.Namespace, autocast: torch.autocast
) -> None:
    """`options.train_epochs` of a schedule for `options.epochs`; prints a line of JSON for each."""
    sgd, muon = optimizers(model)
    groups = [*sgd.param_groups, *muon.param_groups]
    rates = [group["lr"] for group in groups]
    steps_per_epoch = len(images) // BATCH_SIZE
    total, whiten_steps = options.epochs * steps_per_epoch, options.whiten_bias_epochs * steps_per_epoch
    epoch_began, correct = time.perf_counter(), 0
    for step, (epoch, x, y) in enumerate(batches(images, labels, options.train_epochs)):
        model.train()
        model.whiten.bias.requires_grad = step < whiten_steps
        for index, (group, rate) in enumerate(zip(groups, rates, strict=True)):
            group["lr"] = rate * (1 - step / (whiten_steps if index == 0 else total))
        with autocast:
            logits = model(x)
        F.cross_entropy(logits.float(), y, label_smoothing=0.2, reduction="sum").backward()
        sgd.step()
        muon.step()
        model.zero_grad(set_to_none=True)
        correct += int((logits.argmax(1) == y).sum())
        if (step + 1) % steps_per_epoch == 0:
            now = time.perf_counter()
            accuracy = correct / len(images)
            line = {"epoch": epoch + 1, "epoch_seconds": now - epoch_began, "train_accuracy": accuracy}
            print(json.dumps(line), flush=True)
            epoch_began, correct = now, 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train-epochs", type=int, help="stop after so many of them; default: all")
    parser.add_argument("--whiten-bias-epochs", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.train_epochs = options.train_epochs or options.epochs
    torch.manual_seed(options.seed)
    splits = load(options.data_dir)
    model = Net().to(memory_format=torch.channels_last)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16")
    began = time.perf_counter()
    model.init_whiten(splits["train"][0][:5000])
    train(model, *splits["train"], options, autocast)
    result: dict[str, object] = {
        "precision": options.precision,
        "epochs": options.epochs,
        "trained_epochs": options.train_epochs,
        "seed": options.seed,
        "train_seconds": time.perf_counter() - began,
    }
    if options.train_epochs == options.epochs:
        plain, views = predict(model, splits["test"][0], autocast)
        result["test_accuracy"] = (plain.argmax(1) == splits["test"][1]).float().mean().item()
        result["test_accuracy_with_tta"] = (views.argmax(1) == splits["test"][1]).float().mean().item()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
