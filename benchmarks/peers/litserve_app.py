"""LitServe: a worker process per core; the picture's bytes cross to it, and the answer's bytes back."""

from typing import Annotated

import litserve
from fastapi import Depends, Request, Response
from pipeline import Pipeline, options

chosen = options(__doc__)


async def body(request: Request) -> bytes:
    return await request.body()


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = Pipeline(chosen.model, chosen.session_threads, chosen.provider)

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> bytes:
        return request

    def predict(self, data: bytes) -> bytes:
        return self.pipeline(data)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(api_path="/detect"), accelerator="cpu", workers_per_device=chosen.threads, timeout=chosen.deadline_s
    )
    server.run(port=chosen.port, log_level="warning", generate_client_file=False, access_log=False)
