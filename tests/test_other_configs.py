"""Every distinct configuration builds and takes a step: those that tests/test_every_config.py leaves."""

from pathlib import Path

import pytest

from tests.test_every_config import check, distinct


@pytest.mark.slow
def test_the_other_configs_build_and_take_a_step(tmp_path: Path) -> None:
    check(distinct()[1::2], tmp_path)
