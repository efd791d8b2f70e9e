"""What a job changes of its process ends with it."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch

from backdoor.errors import UserError
from backdoor.experiment.process import working


def state_of_the_process() -> tuple[object, ...]:
    return torch.get_num_threads(), list(warnings.filters), logging.getLogger("pytorch_lightning").level


def fail_at_work(threads: int) -> None:
    with working(threads):
        assert torch.get_num_threads() == threads
        assert logging.getLogger("pytorch_lightning").level == logging.ERROR
        raise UserError("whatever ends the job")


def test_threads_filters_and_log_levels_are_those_of_before():
    before = state_of_the_process()
    with pytest.raises(UserError, match="whatever"):
        fail_at_work(torch.get_num_threads() + 2)
    assert state_of_the_process() == before


def test_null_threads_are_those_that_there_are():
    before = torch.get_num_threads()
    with working(threads=None):
        assert torch.get_num_threads() == before
