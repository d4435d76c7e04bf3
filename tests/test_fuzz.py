"""Whatever is read is fine or refused with one message: see `fuzzing`."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import Case, cases, outcome
from hypothesis import HealthCheck, given, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("case")


@settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(case=cases)
def test_whatever_is_read_is_fine_or_one_message(folder: Path, case: Case) -> None:
    assert outcome(case, folder) in ("fine", "refused")
