from app.budget import Budget, Share


def test_a_budget_can_be_used_up_and_no_further() -> None:
    budget = Budget(10)
    first, second, third = Share(budget), Share(budget), Share(budget)
    assert first.grow(4) and second.grow(6)
    assert budget.used == 10
    assert not third.grow(1) and not first.grow(1)
    first.shrink(3)
    assert budget.used == 9
    assert third.grow(1)


def test_one_that_is_alone_has_room_however_large() -> None:
    budget = Budget(10)
    large, other = Share(budget), Share(budget)
    assert large.grow(11) and large.grow(100)
    assert not other.grow(1)
    assert other.grow(0), "which needs none"
    large.shrink(0)
    assert budget.used == 0
    assert other.grow(10)


def test_a_share_never_grows_by_being_shrunk() -> None:
    budget = Budget(10)
    share = Share(budget)
    assert share.grow(4)
    share.shrink(7)
    assert budget.used == 4


def test_what_was_given_back_is_not_given_back_again() -> None:
    budget = Budget(10)
    share, other = Share(budget), Share(budget)
    assert share.grow(4) and other.grow(6)
    share.shrink(1)
    share.shrink(1)
    share.shrink(0)
    assert budget.used == 6
