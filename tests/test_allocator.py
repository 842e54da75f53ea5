"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

CODE = """
import platform, resource, sys
if platform.libc_ver()[0] != "glibc":
    sys.exit(77)
from common.allocator import keep_freed_memory
keep_freed_memory()
def use():
    blocks = [bytearray(1 << 20) for _ in range(20)]
    for block in blocks:
        block[:: 4096] = bytes(256)
use(); use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_is_freed_and_fetched_again_causes_no_page_faults():
    """Ten times 20 blocks of 1 MiB have 51,200 pages, which are faulted in once and not again."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2_000
