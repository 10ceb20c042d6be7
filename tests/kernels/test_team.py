"""Threads of our own: right results whoever calls, from several threads at once and after a fork."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from cifarlab.kernels import kernels_here, own_kernels

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not kernels_here(), reason="no kernels")
AFTER_A_FORK = """
import os, torch
from torch import nn
from cifarlab.kernels import own_kernels

torch.manual_seed(0)
layer, images = nn.Conv2d(8, 16, 3), torch.randn(20, 8, 12, 12).to(memory_format=torch.channels_last)
with own_kernels(torch.device("cpu")):
    expected = layer(images)
    child = os.fork()
    same = torch.equal(layer(images), expected)
if child == 0:
    os._exit(0 if same else 3)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def output_and_gradient(layer: nn.Conv2d, images: Tensor) -> tuple[Tensor, Tensor]:
    with own_kernels(CPU):
        output = layer(images)
    (gradient,) = torch.autograd.grad(output.square().sum(), layer.weight)
    return output.detach(), gradient


@needs_kernels
def test_several_callers_at_once_have_their_own_results() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 16, 3, padding=1) for _ in range(4)]
    images = [torch.randn(40, 8, 16, 16).to(memory_format=torch.channels_last) for _ in layers]
    expected = [output_and_gradient(*pair) for pair in zip(layers, images, strict=True)]
    with ThreadPoolExecutor(len(layers)) as pool:
        for _ in range(20):
            for found, wanted in zip(pool.map(output_and_gradient, layers, images), expected, strict=True):
                assert torch.equal(found[0], wanted[0])
                torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=1e-2)


@needs_kernels
def test_more_threads_than_cores_and_then_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(8, 16, 3), torch.randn(20, 8, 12, 12).to(memory_format=torch.channels_last)
    expected = output_and_gradient(layer, images)[0]
    for threads in (1, 7, 2, 20, 1, 3) * 5:
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(output_and_gradient(layer, images)[0], expected)


@needs_kernels
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_after_a_fork_the_child_works_alone() -> None:
    command = [sys.executable, "-W", "ignore", "-c", AFTER_A_FORK]
    assert subprocess.run(command, timeout=120, check=False).returncode == 0
