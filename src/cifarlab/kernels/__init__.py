"""The parts of a training step on CPU that are faster by our own compiled kernels than by PyTorch's.

hatch_build.py compiles the C files of this folder where it can. Where it could not, and for whatever a kernel does not
suit, PyTorch does the work.
"""

from cifarlab.kernels.compiled import kernels_here
from cifarlab.kernels.convolution import convolve, is_pool_of_four
from cifarlab.kernels.dense_layer import dense
from cifarlab.kernels.mode import own_kernels, run_operations
from cifarlab.kernels.normalisation import convolve_and_normalise, normalise
from cifarlab.kernels.pointwise import dropout
from cifarlab.kernels.pooling import drop_and_pool
from cifarlab.kernels.whitening import whiten

__all__ = [
    "convolve",
    "convolve_and_normalise",
    "dense",
    "drop_and_pool",
    "dropout",
    "is_pool_of_four",
    "kernels_here",
    "normalise",
    "own_kernels",
    "run_operations",
    "whiten",
]
