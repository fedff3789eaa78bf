"""What the tests of the exercises share: an answer gets the same verdict with every seed."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:  # titn_lib is imported after tests/conftest.py has installed the checks of shapes
    from titn_lib.course.checks import Verdict

SEEDS = int(os.environ.get("TITN_SEEDS", "3"))  # with slow checks 1, unless it is set


@pytest.fixture
def expect() -> Callable[..., None]:
    """`expect(message, check, *answers)`: the check's verdict on the answers holds the message, with every seed."""

    def judge(message: str, check: "Callable[..., Verdict]", *answers: object, slow: bool = False) -> None:
        for seed in range(1 if slow and "TITN_SEEDS" not in os.environ else SEEDS):
            torch.manual_seed(seed)
            verdict = repr(check(*answers))
            assert message in verdict, f"with seed {seed}: {verdict}"

    return judge
