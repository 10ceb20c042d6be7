"""Data sources: NumPy pictures and labels, found, verified and cached. Nothing here imports torch."""

from cifarlab.data.arrays import from_arrays, from_dataset, from_folder
from cifarlab.data.sources import Source, Split, open_source

__all__ = ["Source", "Split", "from_arrays", "from_dataset", "from_folder", "open_source"]
