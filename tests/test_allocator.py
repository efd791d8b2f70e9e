"""Freed memory stays in the process: the second big tensor needs no fresh pages."""

import resource
import sys

import pytest
import torch

from backdoor.allocator import keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the C library of Linux")
def test_a_big_tensor_reuses_the_pages_of_the_last():
    if not keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    megabytes = 64
    torch.ones(megabytes * 2**20, dtype=torch.uint8)  # maps the pages once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(megabytes * 2**20, dtype=torch.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = megabytes * 2**20 // resource.getpagesize()
    assert faults < 2 * pages, f"{faults} page faults for 20 x {pages} pages"
