"""The functions of winograd.c, and what they are called with: planned once for each layer and shape of its pictures.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016).
"""

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch
from torch import Tensor

from cifarlab.kernels.compiled import PLANS_KEPT, Phase, functions_of, library, parallel_region
from cifarlab.kernels.memory import empty

GROUP = 8  # channels come in whole ones: see winograd.c
MOST_CHANNELS = 2048  # likewise
TILES_OF_A_PART = 64  # at least, of the gradient of the weights
MOST_BYTES_OF_PARTS = 64 << 20
LEAST_SAVING = 1.2  # multiplications of PyTorch's convolution over ours, below which the transforms cost more
LEAST_TILES = 64  # of a batch, below which transforming the weights costs more
# A multiplication with tiles of 8x8 inputs, beside one with 6x6: in 12x12 pixels, 256 of them took as long as 324.
WIDE_COSTS = 1.3


@dataclass(frozen=True)
class Kernels:
    """Compiled for one type of pictures, one kind of processor and one size of a convolution's kernel."""

    name: str
    dtype: torch.dtype
    kernel_size: int
    side: int  # pixels of a tile of inputs
    panel: int  # output channels that one product computes

    @property
    def outputs(self) -> int:
        """Pixels a side of a tile of outputs."""
        return self.side - self.kernel_size + 1


# The first of its type and size that can run is taken, and what follows of the same processor: with as large a panel.
KERNELS = (
    Kernels("winograd-avx512_bf16-3x3", torch.bfloat16, 3, 4, 32),
    Kernels("winograd-avx512-3x3", torch.float32, 3, 6, 32),
    Kernels("winograd-avx512-5x5", torch.float32, 5, 6, 32),
    Kernels("winograd-avx2-3x3", torch.float32, 3, 6, 16),
    Kernels("winograd-avx2-3x3-wide", torch.float32, 3, 8, 16),
    Kernels("winograd-avx2-5x5", torch.float32, 5, 6, 16),
)


@cache
def chosen() -> Mapping[tuple[torch.dtype, int], list[Kernels]]:
    """By type of the pictures and size of the kernel."""
    found: dict[tuple[torch.dtype, int], list[Kernels]] = {}
    for kernels in KERNELS:
        functions = functions_of(kernels.name, _Task, "plan", "workspace_bytes", "convolve")
        if functions is not None:
            functions.gradients.argtypes = [ctypes.POINTER(_Task)] * 2
            several = found.setdefault((kernels.dtype, kernels.kernel_size), [])
            if all(other.panel == kernels.panel for other in several):
                several.append(kernels)
    return found


class _Pictures(ctypes.Structure):
    """As in winograd.c."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        ("marks", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("h", "w", "channels", "pooled")),
    ]


class _Task(ctypes.Structure):
    """As in winograd.c."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "n", "padding", "relu", "elu")),
        *((name, _Pictures) for name in ("x", "y")),
        ("weight", ctypes.c_void_p),
        ("strides", ctypes.c_long * 4),
        *((name, ctypes.c_long) for name in ("size", "first_tap")),
        *((name, ctypes.c_void_p) for name in ("bias", "transformed", "sums", "bias_sums", "workspace")),
        *((name, ctypes.c_long) for name in ("parts", "tile_rows", "tile_columns", "block", "entered")),
        *((name, Phase) for name in ("first_phase", "second_phase")),
    ]


@dataclass(frozen=True)
class Plan:
    """A call's task but for addresses, and what it needs of memory: `offsets` of fields into `memory_bytes`."""

    task: _Task
    memory_bytes: int
    offsets: tuple[tuple[str, int], ...]

    def begin(self) -> tuple[_Task, Tensor]:
        """A task, and the memory that it has the addresses of, to be kept until it is done."""
        memory = empty((self.memory_bytes,), torch.uint8)
        task, address = _Task.from_buffer_copy(self.task), memory.data_ptr()
        for name, offset in self.offsets:
            setattr(task, name, address + offset)
        return task, memory


@dataclass(frozen=True)
class Geometry:
    """Of a convolution with stride 1, and what follows it."""

    kernels: Kernels
    images: tuple[int, ...]  # (N, C, H, W)
    weight: tuple[int, ...]  # (filters, C, k, k)
    strides: tuple[int, ...]  # of the weight
    padding: int
    pooled: bool
    relu: bool
    elu: bool  # without pooling
    threads: int

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the outputs before pooling."""
        lost = odd(self.weight[2]) - 1 - 2 * self.padding
        return self.images[2] - lost, self.images[3] - lost

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """(N, filters, H, W), pooled."""
        height, width = (side // 2 if self.pooled else side for side in self.size)
        return self.images[0], self.weight[0], height, width

    @property
    def marked(self) -> bool:
        """Whether each output has a byte that says where its gradient goes."""
        return self.pooled or self.relu

    @cached_property
    def forward(self) -> Plan:
        return self._convolution(self._task(self._before, self._after, self.padding))

    @cached_property
    def images_gradient(self) -> Plan:
        """A convolution of the outputs' gradient by the weight with filters and channels exchanged, and rows and
        columns in their opposite order: from the last tap on."""
        filters, channels, rows, columns = self.strides
        task = self._task(self._after, self._before, odd(self.weight[2]) - 1 - self.padding)
        task.strides, task.first_tap = (channels, filters, -rows, -columns), 0
        task.relu = task.elu = False
        return self._convolution(task)

    @property
    def last_tap(self) -> int:
        """Bytes from the beginning of the weight, float32."""
        return 4 * (self.weight[2] - 1) * (self.strides[2] + self.strides[3])

    @cached_property
    def weight_gradient(self) -> Plan:
        points, wide = self.kernels.side**2, self._wide(self.weight[0])
        part = points * wide * -(-self.weight[1] // GROUP) * GROUP
        pooled = (side // 2 * 2 if self.pooled else side for side in self.size)
        tiles = self.images[0] * math.prod(-(-side // self.kernels.outputs) for side in pooled)
        parts = max(1, min(self.threads, tiles // TILES_OF_A_PART, MOST_BYTES_OF_PARTS // (4 * part)))
        task = self._task(self._before, self._after, self.padding)
        task.parts, task.sums = parts, 1  # an address: it is this gradient that is planned
        workspace_bytes = self._plan(task)
        bias_sums = workspace_bytes + 4 * parts * part
        offsets = (("workspace", 0), ("sums", workspace_bytes), ("bias_sums", bias_sums))
        return Plan(task, bias_sums + 4 * parts * 2 * wide, offsets)

    @property
    def _before(self) -> _Pictures:
        return _Pictures(h=self.images[2], w=self.images[3], channels=self.weight[1])

    @property
    def _after(self) -> _Pictures:
        height, width = self.size
        return _Pictures(h=height, w=width, channels=self.weight[0], pooled=self.pooled, marks=self.marked)

    def _task(self, x: _Pictures, y: _Pictures, padding: int) -> _Task:
        return _Task(
            parallel=parallel_region(),
            threads=self.threads,
            n=self.images[0],
            padding=padding,
            relu=self.relu,
            elu=self.elu,
            x=x,
            y=y,
            strides=self.strides,
            size=self.weight[2],
            first_tap=odd(self.weight[2]) - self.weight[2],
        )

    def _convolution(self, task: _Task) -> Plan:
        workspace_bytes = self._plan(task)
        words = self.kernels.side**2 * self._wide(task.y.channels)
        words *= -(-task.x.channels * self.kernels.dtype.itemsize // 4)
        offsets = (("workspace", 0), ("transformed", workspace_bytes))
        return Plan(task, workspace_bytes + 4 * words, offsets)

    def _plan(self, task: _Task) -> int:
        """Bytes that all threads need."""
        functions = library(self.kernels.name)
        functions.plan(task)  # type: ignore[union-attr]
        return self.threads * functions.workspace_bytes(task)  # type: ignore[union-attr]

    def _wide(self, channels: int) -> int:
        """Output channels in whole panels."""
        return -(-channels // self.kernels.panel) * self.kernels.panel


@lru_cache(PLANS_KEPT)
def geometry(*fields: object) -> Geometry:
    """`Geometry(*fields)`, one for equal ones, with the plans that it has made."""
    return Geometry(*fields)  # type: ignore[arg-type]


def odd(size: int) -> int:
    """A kernel of 2x2 is one of 3x3 whose first row and column are zeros."""
    return size + (size == 2)


@lru_cache(PLANS_KEPT)
def suited(
    dtype: torch.dtype,
    kernel_size: int,
    images: tuple[int, ...],
    weight: tuple[int, ...],
    padding: int,
    pooled: bool,
) -> Kernels | None:
    """For `images` (N, C, H, W) and a weight (filters, C, k, k), which may be smaller than the kernel; None where
    PyTorch's convolution does as well."""
    several = chosen().get((dtype, kernel_size), [])
    gaining = [kernels for kernels in several if _gains(kernels, images, weight, padding, pooled)]
    return min(
        gaining, key=lambda kernels: _cost(kernels, images[2], images[3], padding, pooled), default=None
    )


def _cost(kernels: Kernels, height: int, width: int, padding: int, pooled: bool) -> float:
    """Of a picture and its two gradients, in multiplications."""
    of_outputs = _tiles(kernels, height, width, padding, pooled)
    of_images = _tiles(kernels, height, width, kernels.kernel_size // 2)  # whole, as large as they are
    return kernels.side**2 * (2 * of_outputs + of_images) * (WIDE_COSTS if kernels.side > 6 else 1)


def _gains(
    kernels: Kernels, images: tuple[int, ...], weight: tuple[int, ...], padding: int, pooled: bool
) -> bool:
    """Whether they are of shapes that it does well."""
    n, channels, height, width = images
    filters, channels_of_weight, size, other_size = weight
    return (
        channels == channels_of_weight
        and size == other_size
        and filters % GROUP == 0
        and max(channels, filters) <= MOST_CHANNELS
        and 0 <= padding < kernels.kernel_size
        and min(height, width) + 2 * padding >= kernels.kernel_size + pooled
        and saving(kernels, height, width, padding) >= LEAST_SAVING
        and n * _tiles(kernels, height, width, padding) >= LEAST_TILES
    )


def _tiles(kernels: Kernels, height: int, width: int, padding: int, pooled: bool = False) -> int:
    """Of a picture; `pooled`, of what pooling takes of it."""
    lost = kernels.kernel_size - 1 - 2 * padding
    sides = ((side - lost) // 2 * 2 if pooled else side - lost for side in (height, width))
    return math.prod(-(-side // kernels.outputs) for side in sides)


def saving(kernels: Kernels, height: int, width: int, padding: int = 1) -> float:
    """Multiplications of a convolution of a picture, but for those with zeros around it, over ours."""
    taps = 1
    for side in (height, width):
        outputs = range(side + 2 * padding - kernels.kernel_size + 1)
        taps *= sum(min(y - padding + kernels.kernel_size, side) - max(y - padding, 0) for y in outputs)
    return taps / (kernels.side**2 * _tiles(kernels, height, width, padding))


def computed_in(images: Tensor) -> torch.dtype:
    """The type in which a convolution of `images` is computed."""
    if torch.is_autocast_enabled("cpu") and images.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return images.dtype
