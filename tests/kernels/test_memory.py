"""The memory of large outputs: no two of them at the same place at the same time, and places taken again."""

import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifarlab.kernels import memory
from cifarlab.kernels.memory import PAGE_BYTES, Arena, empty

PAGES = 16
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="our kernels are compiled for Linux alone")


def address(block: object) -> int:
    return torch.frombuffer(block, dtype=torch.uint8).data_ptr()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 5 * PAGE_BYTES)), max_size=40))
def test_blocks_never_overlap_and_all_room_comes_back(steps: list[tuple[bool, int, int]]) -> None:
    arena, blocks = Arena(PAGES * PAGE_BYTES), []
    for freeing, which, size in steps:
        if freeing and blocks:
            blocks.pop(which % len(blocks))
        elif (block := arena.block(size)) is not None:
            assert len(block) == size
            blocks.append(block)
        places = sorted((address(block), address(block) + len(block)) for block in blocks)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(places))
    blocks.clear()
    block = None
    assert arena.block(PAGES * PAGE_BYTES) is not None


def test_a_block_is_taken_again_once_nothing_refers_to_it() -> None:
    arena = Arena(PAGES * PAGE_BYTES)
    tensor = torch.frombuffer(arena.block(PAGE_BYTES), dtype=torch.uint8)
    view, place = tensor[5:], tensor.data_ptr()
    del tensor
    assert address(arena.block(PAGE_BYTES)) != place
    del view
    assert address(arena.block(PAGE_BYTES)) == place


def test_the_smallest_gap_that_fits_is_taken() -> None:
    arena = Arena(PAGES * PAGE_BYTES)
    blocks = [arena.block(pages * PAGE_BYTES) for pages in (4, 1, 2, 1)]
    wanted = address(blocks[2])
    blocks[0] = blocks[2] = None
    assert address(arena.block(2 * PAGE_BYTES)) == wanted


def test_there_may_be_no_room() -> None:
    arena = Arena(2 * PAGE_BYTES)
    assert arena.block(2 * PAGE_BYTES + 1) is None
    kept = arena.block(PAGE_BYTES + 1)
    assert kept is not None and arena.block(1) is None


def test_free_memory_goes_back_to_the_system_and_can_be_taken_again() -> None:
    arena = Arena(PAGES * PAGE_BYTES)
    kept, freed = (torch.frombuffer(arena.block(PAGE_BYTES), dtype=torch.uint8) for _ in range(2))
    place = freed.data_ptr()
    kept.fill_(3)
    freed.fill_(5)
    del freed
    arena.return_gaps()
    again = torch.frombuffer(arena.block(PAGE_BYTES), dtype=torch.uint8)
    assert again.data_ptr() == place
    assert not again.any()  # new pages of the system are zeros
    assert (kept == 3).all()


def test_nothing_goes_back_while_some_is_taken() -> None:
    """Else a training that the garbage collector gives up would wait for itself."""
    arena = Arena(PAGES * PAGE_BYTES)
    with arena.taking:
        arena.return_gaps()


def test_no_memory_is_made_to_give_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._arena.cache_clear()
    monkeypatch.setattr(memory, "Arena", lambda _size: pytest.fail("made"))
    memory.return_free_memory()


class SlowGaps(list):
    def remove(self, gap: tuple[int, int]) -> None:
        time.sleep(1e-3)  # for another thread to choose the same one
        super().remove(gap)


class SlowArena(Arena):
    def _close_gaps(self) -> None:
        super()._close_gaps()
        self.gaps = SlowGaps(self.gaps)


def test_threads_take_and_free_at_once() -> None:
    arena, errors = SlowArena(64 * PAGE_BYTES), []

    def work(value: int) -> None:
        for _ in range(20):
            tensor = torch.frombuffer(arena.block(3 * PAGE_BYTES), dtype=torch.uint8)
            tensor[:: PAGE_BYTES // 2] = value
            time.sleep(1e-3)
            if (tensor[:: PAGE_BYTES // 2] != value).any():
                errors.append(value)
            del tensor

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert arena.block(64 * PAGE_BYTES) is not None


def test_a_process_forked_while_a_thread_was_taking_can_take() -> None:
    arena = memory._arena()
    assert arena is not None
    with arena.taking:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if large().fill_(1.0).min() == 1.0 else 1)
    assert os.waitpid(child, 0)[1] == 0


def large(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    tensor = empty((2, 3, 1024, 1024), dtype)
    assert tensor.nbytes >= memory.LEAST_BYTES
    return tensor


def test_outputs_are_as_pytorchs() -> None:
    for shape in ((2, 3, 1024, 1024), (2, 3, 4, 4), (4 << 20, 2), (8 << 20,)):
        for dtype in (torch.float32, torch.bfloat16, torch.uint8):
            last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            expected, found = torch.empty(shape, dtype=dtype, memory_format=last), empty(shape, dtype)
            assert (found.shape, found.stride(), found.dtype) == (shape, expected.stride(), dtype)
            assert found.data_ptr() % 64 == 0
            assert not found._is_view()


def test_outputs_can_be_copied_pickled_and_changed() -> None:
    tensor = large()
    tensor.fill_(3.0)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)
    copy = tensor.clone()
    tensor.requires_grad_().square().sum().backward()
    assert torch.equal(tensor.grad, 2 * copy)  # type: ignore[arg-type]


def test_a_freed_output_gives_its_place_to_the_next() -> None:
    gc.collect()
    tensor = large()
    place = tensor.data_ptr()
    del tensor
    assert large().data_ptr() == place


def test_pytorch_gives_memory_where_the_system_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_arena", lambda: None)
    assert large().shape == (2, 3, 1024, 1024)

    monkeypatch.undo()
    memory._arena.cache_clear()
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _limit: (1 << 40, 1 << 40))
    assert memory._arena() is None
    monkeypatch.undo()
    memory._arena.cache_clear()

    def refuse(_size: int) -> Arena:
        raise OSError("no memory")

    monkeypatch.setattr(memory, "Arena", refuse)
    try:
        assert large().shape == (2, 3, 1024, 1024)
    finally:
        memory._arena.cache_clear()
