"""Several pictures in one request."""

import asyncio
import logging
from collections.abc import Sequence

from pydantic_core import to_json

from app.errors import Refusal, failed
from app.schemas import DetectQuery
from app.service import Service

log = logging.getLogger(__name__)

AT_ONCE = 16  # enough to fill the model's largest batch, and few enough to leave room for other requests


async def detect_each(service: Service, pictures: Sequence[bytes], query: DetectQuery, deadline: float) -> bytes:
    """Takes pictures through the pipeline together. A fault in one does not affect the others.

    Args:
        query, deadline: As for `Service.detect`, and the same for all pictures.

    Returns:
        A `BatchAnswer` as JSON: one result per picture, in order.
    """
    free = asyncio.Semaphore(min(AT_ONCE, service.settings.max_queue))

    async def detect(data: bytes) -> bytes:
        async with free:
            try:
                return (await service.detect_in_time(data, query, deadline=deadline)).to_json()
            except Refusal as refusal:
                return refused(refusal)
            except Exception:
                log.exception("The service failed on a picture of a batch.")
                return refused(failed("picture"))

    def refused(refusal: Refusal) -> bytes:
        service.metrics.refusals[refusal.code].inc()
        return to_json({"problem": refusal.problem()})

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(detect(data)) for data in pictures]
    # Each picture's JSON was made as soon as it was there: at the end, all at once, it would keep the event loop busy.
    return b'{"results":[%b]}' % b",".join(task.result() for task in tasks)
