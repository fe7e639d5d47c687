from app.budget import Budget


def test_a_budget_can_be_used_up_and_no_further() -> None:
    budget = Budget(10)
    first, second = budget.take(4), budget.take(6)
    assert first is not None and second is not None
    assert budget.used == 10
    assert budget.take(1) is None
    assert not first.grow(1)
    first.shrink(3)
    assert budget.used == 9
    assert budget.take(1) is not None


def test_one_that_is_alone_has_room_however_large() -> None:
    budget = Budget(10)
    large = budget.take(11)
    assert large is not None
    assert large.grow(100)
    assert budget.take(1) is None
    large.shrink(0)
    assert budget.used == 0
    assert budget.take(10) is not None


def test_a_share_never_grows_by_being_shrunk() -> None:
    budget = Budget(10)
    share = budget.take(4)
    assert share is not None
    share.shrink(7)
    assert budget.used == 4


def test_what_was_given_back_is_not_given_back_again() -> None:
    budget = Budget(10)
    share, other = budget.take(4), budget.take(6)
    assert share is not None and other is not None
    share.shrink(1)
    share.shrink(1)
    share.shrink(0)
    assert budget.used == 6
