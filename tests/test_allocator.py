"""Memory that was freed goes back to the system; each program is a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
from training_fixtures import _environment

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")

PROGRAM = """
import ctypes, sys
from sktune.allocator import give_back_freed_memory, give_back_large_blocks_at_once

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def block(size):
    address = libc.malloc(size)
    libc.memset(address, 1, size)
    return address

def own_megabytes():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) // 1024

def left_after(size, count):
    "Megabytes that stay when blocks between small ones that are kept have been freed."
    before = own_megabytes()
    blocks = [(block(size), block(size // 100)) for _ in range(count)]
    for address, _ in blocks:
        libc.free(address)
    return own_megabytes() - before

if sys.argv[1] == "at_once":
    give_back_large_blocks_at_once()
libc.free(block(31 * 2**20))  # by itself the allocator now keeps blocks up to that size
left = left_after(int(sys.argv[2]), int(sys.argv[3]))
if sys.argv[1] == "afterwards":
    before = own_megabytes()
    give_back_freed_memory()
    left -= before - own_megabytes()
print(left)
"""
LARGE, SMALL = (9 * 2**20, 20), (2**18, 750)
"""Size and number of blocks: about 180 MB."""


def megabytes_left(how: str, blocks: tuple[int, int], **environment: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how, *map(str, blocks)]
    done = subprocess.run(command, env=_environment() | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("blocks", [LARGE, SMALL])
def test_by_itself_the_allocator_keeps_holes(blocks: tuple[int, int]) -> None:
    assert megabytes_left("not", blocks) > 100


def test_large_blocks_are_given_back_at_once() -> None:
    assert megabytes_left("at_once", LARGE) < 5


def test_what_the_environment_says_is_left_alone() -> None:
    assert megabytes_left("at_once", LARGE, MALLOC_MMAP_THRESHOLD_=str(2**24)) > 100


@pytest.mark.parametrize("blocks", [LARGE, SMALL])
def test_holes_are_given_back_afterwards(blocks: tuple[int, int]) -> None:
    assert megabytes_left("afterwards", blocks) < 10
