"""Keep freed memory: a training step asks for the same large arrays over and over.

The C library of most Linux systems (glibc) gives a large freed block back to the system, which has to clear every page
of it again at the next request. With the limits below it keeps such blocks for reuse. Results do not change.
"""

import ctypes
import functools
import sys

# Names and numbers of glibc's <malloc.h>; see mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MIB = 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the allocator, once, to keep blocks of up to 32 MiB for reuse. -> whether there was a glibc to tell"""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries on Linux have none
    if mallopt is None:
        return False
    limits = {M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 1024 * MIB, M_TOP_PAD: 64 * MIB}
    return all(mallopt(name, value) == 1 for name, value in limits.items())
