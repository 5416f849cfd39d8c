"""Training is killed, and ends with the same bits; `make faults` kills it 200 times."""

import random

import pytest
from kills import finish, make_data, survive
from victim import STAGES

SECOND = {"data", "step", "save", "evaluate", "written", "metrics", "ledger", "pruning"}
"""Stages that are deadly the second time, when there is something to lose."""


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.long)])
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bits(count, tmp_path):
    file = make_data(tmp_path)
    finish(file, tmp_path / "whole")
    draw = random.Random(0)
    wheres = [f"{stage}:{1 + (stage in SECOND)}" for stage in STAGES]
    wheres += [f"{draw.uniform(3, 7):.2f}" for _ in range(20 - len(wheres))]
    draw.shuffle(wheres)
    seen = list(survive(file, tmp_path, wheres[:count]))
    assert [(kill, wrong) for kill, wrong in seen if wrong] == []
    assert sum(kill.code == -9 for kill, _ in seen) >= 3 * count / 4
    assert max(kill.whole for kill, _ in seen) >= 2, "checkpoints were there to be lost"
