"""A model is replaced under load without a gap, or not at all."""

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine import Engine
from app.errors import ArtifactError, Refusal
from app.providers import CPU, CUDA
from app.service import Service
from app.session import OnnxRunner
from app.settings import Settings
from tests.held import HeldDecoder
from tests.support import DEFAULTS, PICTURE, metadata, metric, served, until, write_model

pytestmark = pytest.mark.anyio


@pytest.mark.usefixtures("session_thread")
async def test_a_swap_under_load_loses_nothing(tmp_path: Path) -> None:
    """Every answer is right for the model that it names, and the new model answers from some request on."""
    model = write_model(tmp_path / "m.onnx")
    renamed = metadata(classes=["crimson", "green", "blue"]).to_json()
    newer = write_model(tmp_path / "newer.onnx", renamed)
    async with served(model) as service:
        old, stop = service.model.version, False
        seen: set[tuple[str, str]] = set()

        async def client() -> None:
            while not stop:
                outcome = await service.detect(PICTURE, DEFAULTS)
                seen.add((outcome.model.version, outcome.answer.detections[0].label))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        await until(lambda: len(seen) == 1)
        newer.replace(model)
        info = await service.reload()
        assert info.version == service.model.version != old
        await until(lambda: len(seen) == 2)
        stop = True
        await asyncio.gather(*clients)
        assert seen == {(old, "red"), (info.version, "crimson")}
        assert f'version="{info.version}"' in service.metrics.text().decode()
        assert old not in service.metrics.text().decode()


async def test_a_model_is_kept_until_those_who_began_with_it_have_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "m.onnx")
    async with served(model, sessions=2) as service:
        old, close = service._engine, service._engine.close
        closed: list[bool] = []

        def closing() -> None:
            closed.append(True)
            close()

        monkeypatch.setattr(old, "close", closing)
        await service.detect(PICTURE, DEFAULTS)
        decoder = HeldDecoder()
        with monkeypatch.context() as slow:
            decoder.install(slow)
            task = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
            await asyncio.to_thread(decoder.begun.wait, 20)
        write_model(model, metadata(classes=["crimson", "green", "blue"]).to_json())
        reload = asyncio.create_task(service.reload())
        await until(lambda: service._engine is not old)
        await asyncio.sleep(0.05)
        assert not closed and not reload.done()
        decoder.open.set()
        assert (await task).answer.detections[0].label == "red"
        await reload
        assert closed


async def test_a_reload_that_came_meanwhile_waits_or_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    async with served(model) as service:
        first = asyncio.create_task(service.reload())
        second = asyncio.create_task(service.reload(wait=True))
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as caught:
            await service.reload()
        assert caught.value.code == "reload_running"
        await asyncio.gather(first, second)
        assert 'fcos_model_reloads_total{outcome="done"} 2.0' in service.metrics.text().decode()


async def test_a_service_whose_first_model_failed_is_mended_by_a_reload(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service.load(Settings(model=model_file, provider="cpu", threads=1))
    with monkeypatch.context() as broken:
        broken.setattr(OnnxRunner, "__call__", lambda *_: 1 / 0)
        await service.warm_up()
    assert service.not_ready is not None
    assert metric(service, "fcos_ready") == 0
    await service.reload()
    assert await service.detect(PICTURE, DEFAULTS)
    assert metric(service, "fcos_ready") == 1
    await asyncio.to_thread(service.close)


async def test_a_model_that_says_why_it_cannot_start_is_quoted(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ArtifactError("Its canary is no bird.")

    service = Service.load(Settings(model=model_file, provider="cpu", threads=1))
    monkeypatch.setattr(OnnxRunner, "warm_up", refuse)
    await service.warm_up()
    assert service.not_ready == "Its canary is no bird."
    await asyncio.to_thread(service.close)


@pytest.mark.usefixtures("session_thread")
@pytest.mark.parametrize("how", ["the model fails", "the service ends"])
async def test_no_reload_leaves_a_session_behind(model_file: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def sessions() -> int:
        return [thread.name for thread in threading.enumerate()].count("session")

    service = Service.load(Settings(model=model_file, provider="cpu", threads=1))
    await service.warm_up()
    before = sessions()
    reload = asyncio.create_task(service.reload())
    if how == "the model fails":
        monkeypatch.setattr(OnnxRunner, "warm_up", lambda *_: 1 / 0)
        with pytest.raises(Refusal, match="failed on its first pictures"):
            await reload
        assert sessions() == before
    else:
        await asyncio.sleep(0)
    await service.finish()
    await asyncio.gather(reload, return_exceptions=True)
    assert sessions() == 0


@pytest.mark.parametrize("content", [b"", b"no model", None])
async def test_a_bad_file_changes_nothing(tmp_path: Path, content: bytes | None) -> None:
    model = write_model(tmp_path / "m.onnx")
    async with served(model) as service:
        before = service.model
        if content is None:
            shutil.copy(write_model(tmp_path / "other.onnx", metadata(classes=["one"]).to_json()), model)
        else:
            model.write_bytes(content)
        with pytest.raises(Refusal) as caught:
            await service.reload()
        assert caught.value.code == "model_refused"
        assert before.version in caught.value.message
        outcome = await service.detect(PICTURE, DEFAULTS)
        assert outcome.model == before
        assert metric(service, 'fcos_model_reloads_total{outcome="refused"}') == 1


async def test_a_reload_that_fails_on_the_gpu_says_why_and_nothing_of_the_host(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "Non-zero status\nCUDA failure 2: out of memory ; GPU=0 ; hostname=secret ; file=/onnxruntime_src/x.cc ;"

    async def fail(engine: Engine) -> None:
        raise RuntimeError(words)

    async with served(model_file) as service:
        monkeypatch.setattr(Engine, "warm_up", fail)
        with pytest.raises(Refusal) as caught:
            await service.reload()
        assert "failed on its first pictures (CUDA failure 2: out of memory). Version" in caught.value.message


async def test_a_reload_does_not_leave_the_gpu(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `auto` found CUDA, a reload that finds none leaves the old model where it is."""
    monkeypatch.setattr("app.session.why_no_cuda", lambda: "its memory is full")
    async with served(model_file, provider="auto") as service:
        assert (await service.reload()).provider == CPU
        service._engine.runner = replace(service.runner, provider=CUDA)
        with pytest.raises(Refusal, match="its memory is full"):
            await service.reload()
        assert service.runner.provider == CUDA
