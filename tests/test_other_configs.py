"""Every distinct configuration builds and takes a step: those that tests/test_every_config.py leaves."""

from pathlib import Path

import pytest

from tests.test_every_config import PARTS, check, distinct


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS // 2, PARTS))
def test_the_other_configs_build_and_take_a_step(part: int, tmp_path: Path) -> None:
    check(distinct()[part::PARTS], tmp_path)
