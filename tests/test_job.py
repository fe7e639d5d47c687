import asyncio

import pytest

from app.budget import Budget, Share
from app.job import Job
from tests.support import DEFAULTS, metadata


def test_the_stages_times_add_up_to_all_of_its_time() -> None:
    async def job() -> Job:
        parameters, answered = DEFAULTS.parameters(metadata()), asyncio.get_running_loop().create_future()
        return Job(b"", parameters, None, 9.0, 1.0, answered, Share(Budget(0)))

    one = asyncio.run(job())
    one.decode_begun, one.decode_ended, one.run_begun, one.run_ended = 1.001, 1.011, 1.111, 2.111
    times = one.timing_ms(finish_begun=2.113, finished=2.143)
    assert times == pytest.approx({"decode": 10, "queue": 1 + 100 + 2, "inference": 1000, "postprocess": 30})
    assert sum(times.values()) == pytest.approx((2.143 - one.begun) * 1000)
