"""Freed memory stays in the process: big tensors soon need no fresh pages."""

import resource
import sys

import pytest
import torch

from backdoor.experiment.allocator import keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the C library of Linux")
def test_a_big_tensor_reuses_the_pages_of_the_last():
    if not keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    count = 64 * 2**20
    for _ in range(20):  # it takes a few turns until every block finds pages that were used before
        torch.ones(count, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(count, dtype=torch.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = count // resource.getpagesize()
    assert faults < 4 * pages, f"{faults} page faults; without the setting each tensor costs {pages}"
