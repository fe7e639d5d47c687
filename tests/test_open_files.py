"""Files are allowed as far as the system goes."""

import sys

import pytest

from app.open_files import allow_files


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
@pytest.mark.parametrize(("platform", "allowed"), [("linux", 2**20), ("darwin", 10_240)])
def test_an_unlimited_hard_limit_is_no_reason_to_ask_for_more_than_the_system_gives(
    platform: str, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS it ended training: current limit exceeds maximum limit."""
    import resource

    unlimited = resource.RLIM_INFINITY  # -1 on Linux
    limits = [(256, unlimited)]

    def set_limits(_: int, new: tuple[int, int]) -> None:
        if new[0] > allowed:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(new)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    allow_files(4096)
    assert limits[-1] == (4096, unlimited)
    allow_files()
    assert limits[-1] == (allowed, unlimited)
    for higher in ((allowed, unlimited), (unlimited, unlimited)):
        limits.append(higher)
        allow_files(4096)
        assert limits[-1] == higher, "lowered"
    limits.append((256, 1000))
    allow_files()
    assert limits[-1] == (1000, 1000), "a process may not have more"
