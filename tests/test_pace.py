"""What is expected of the next pictures follows from those before."""

import pytest

from app.pace import Pace


def test_the_first_batch_is_all_that_is_known() -> None:
    pace = Pace(sessions=2)
    assert pace.batch_s == pace.picture_s == 0
    pace.note(begun=10, ended=14, pictures=4, cores=1, arrived=9)
    assert pace.batch_s == 4 and pace.picture_s == 0.5, "two sessions do twice as much"


def test_what_was_measured_before_is_expected() -> None:
    pace = Pace(sessions=2)
    pace.expect(1, pictures=4)
    assert pace.batch_s == 4 and pace.picture_s == 0.5
    pace.note(begun=10, ended=14, pictures=4, cores=1, arrived=9)
    assert pace.batch_s == 4 and pace.picture_s == 0.5


def test_a_picture_alone_on_all_cores_would_take_longer_beside_others() -> None:
    pace = Pace(sessions=2)
    pace.note(begun=10, ended=11, pictures=1, cores=2, arrived=10)
    assert pace.picture_s == 1


def test_with_a_queue_it_is_the_time_between_two_ends_whatever_takes_it() -> None:
    pace, ended = Pace(sessions=2), 10.0
    for _ in range(200):
        pace.note(begun=ended - 1, ended=ended + 3, pictures=4, cores=1, arrived=ended - 5)
        ended += 3  # of which the session has two: decoding has the other
    assert pace.batch_s == 4
    assert pace.picture_s == pytest.approx(0.75, rel=1e-6)


def test_idle_time_is_not_theirs() -> None:
    pace, ended = Pace(sessions=1), 10.0
    for _ in range(200):
        pace.note(begun=ended + 9, ended=ended + 10, pictures=1, cores=1, arrived=ended + 8)
        ended += 10
    assert pace.picture_s == 1


def test_of_two_sessions_the_slower_to_tell_takes_no_time_back() -> None:
    pace = Pace(sessions=2)
    for ended in (12, 11):
        pace.note(begun=ended - 1, ended=ended, pictures=1, cores=1, arrived=5)
    assert pace.picture_s == 0.5


def test_one_pause_of_the_machine_counts_little() -> None:
    pace = Pace(sessions=1)
    pace.note(begun=0, ended=1, pictures=1, cores=1, arrived=0)
    pace.note(begun=1, ended=3601, pictures=1, cores=1, arrived=1)
    assert pace.batch_s == pace.picture_s == pytest.approx(1.9)
