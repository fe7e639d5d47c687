"""Several pictures in one request."""

import asyncio
from collections.abc import Sequence

from app.errors import Refusal
from app.postprocess import Parameters
from app.schemas import Answer, BatchAnswer, Problem, Refused
from app.service import Service

AT_ONCE = 16  # enough to fill the model's largest batch, and few enough to leave room for other requests


async def detect_each(service: Service, pictures: Sequence[bytes], parameters: Parameters) -> BatchAnswer:
    """Returns: One result per picture, in order. One picture's fault is its own."""
    free = asyncio.Semaphore(AT_ONCE)

    async def detect(data: bytes) -> Answer | Refused:
        async with free:
            try:
                return (await service.detect(data, parameters)).answer
            except Refusal as refusal:
                return Refused(problem=Problem.model_validate(refusal.problem()))

    async with asyncio.TaskGroup() as group:  # where one fails for a reason of ours, the others are not computed
        tasks = [group.create_task(detect(data)) for data in pictures]
    return BatchAnswer(results=[task.result() for task in tasks])
