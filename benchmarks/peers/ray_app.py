"""Ray Serve: a replica per core."""

import asyncio
import os
import sys
import time
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from fastapi import Request, Response
from pipeline import options
from ray import serve

HERE = str(Path(__file__).parent)


@serve.deployment(logging_config={"log_level": "WARNING", "enable_access_log": False})
class Detect:
    def __init__(self, model: str, session_threads: int, provider: str) -> None:
        sys.path.insert(0, HERE)
        from pipeline import Pipeline

        self.pipeline = Pipeline(model, session_threads, provider)

    async def __call__(self, request: Request) -> Response:
        answer = await asyncio.to_thread(self.pipeline, await request.body())
        return Response(answer, media_type="application/json")


if __name__ == "__main__":
    chosen = options(__doc__)
    ray.init(num_cpus=chosen.threads + 1, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": chosen.port, "request_timeout_s": chosen.deadline_s})
    detect = Detect.options(
        num_replicas=chosen.threads,
        max_ongoing_requests=8,
        max_queued_requests=max(chosen.at_once - 8 * chosen.threads, 1),
        ray_actor_options={"num_cpus": 1},
    )
    serve.run(detect.bind(chosen.model, chosen.session_threads, chosen.provider), route_prefix="/detect")
    while True:
        time.sleep(3600)
