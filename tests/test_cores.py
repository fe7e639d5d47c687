import math
import os
from pathlib import Path

import pytest

from app.cores import core_count

ALL = core_count(Path("nowhere"))


def test_without_a_quota_there_are_those_that_the_process_may_run_on() -> None:
    assert 1 <= ALL <= (os.cpu_count() or 1)


def test_a_system_that_binds_no_process_to_cores_has_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert core_count(Path("nowhere")) == 6


@pytest.mark.parametrize(("quota", "cores"), [("max", math.inf), ("50000", 1), ("100000", 1), ("150000", 2)])
def test_a_control_groups_quota_counts(tmp_path: Path, quota: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    assert core_count(tmp_path) == min(ALL, cores)


@pytest.mark.parametrize(("quota", "cores"), [("-1", math.inf), ("20000", 1), ("150000", 2)])
def test_also_that_of_version_1(tmp_path: Path, quota: str, cores: float) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert core_count(tmp_path) == min(ALL, cores)
