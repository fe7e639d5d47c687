"""A fair baseline: nothing blocks the event loop, as many threads as cores, uvloop, httptools, no access log, a bound
on requests."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, Response
from pipeline import Pipeline, options

chosen = options(__doc__)
pipeline = Pipeline(chosen.model, chosen.session_threads, chosen.provider)
threads = ThreadPoolExecutor(chosen.threads)
places = asyncio.Semaphore(chosen.at_once)
app = FastAPI()


@app.post("/detect")
async def detect(request: Request) -> Response:
    if places.locked():
        return Response(status_code=503)
    async with places:
        data = await request.body()
        answer = await asyncio.get_running_loop().run_in_executor(threads, pipeline, data)
    return Response(answer, media_type="application/json")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "alive"}


if __name__ == "__main__":
    uvicorn.run(app, port=chosen.port, log_level="warning", access_log=False)
