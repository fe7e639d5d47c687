"""Settings: environment variables FCOS_*, checked once, at start."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.artifact import first_fault
from app.errors import SettingsError
from app.providers import CudaOptions, ProviderChoice

PREFIX = "FCOS_"
DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "model" / "weights" / "fcos-lite0-everyday.onnx"

MIN_KEY_LENGTH = 8


class Settings(BaseSettings):
    """What an operator may choose. Each field is the environment variable FCOS_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    model: Path = DEFAULT_MODEL
    host: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000  # 0: any free one
    provider: ProviderChoice = "auto"

    threads: Annotated[int, Field(ge=0, le=1024)] = 0  # of one batch on the CPU; 0: `engine.py` chooses
    sessions: Annotated[int, Field(ge=0, le=64)] = 0  # batches at a time; 0: `engine.py` chooses
    decode_threads: Annotated[int, Field(ge=0, le=1024)] = 0  # that decode and post-process; 0: one per core
    max_batch: Annotated[int, Field(ge=0, le=16)] = 0  # 0: 16 on CUDA; 1 on the CPU, where larger ones gain nothing

    max_upload_bytes: Annotated[int, Field(ge=1)] = 20 * 2**20
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000  # of one picture
    max_queue: Annotated[int, Field(ge=1)] = 64  # pictures accepted and not answered
    max_queue_pixels: Annotated[int, Field(ge=1)] = 200_000_000  # decoded pixels held together
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 10  # a request's header may ask for less

    api_keys: Annotated[frozenset[str], NoDecode] = frozenset()  # separated by commas; none: everybody may ask
    max_per_key: Annotated[int, Field(ge=0)] = 0  # requests of one key at a time; 0: no bound

    device_id: Annotated[int, Field(ge=0)] = 0
    gpu_memory_limit_bytes: Annotated[int, Field(ge=0)] = 0  # of ONNX Runtime's arena; 0: none
    conv_search: Literal["heuristic", "exhaustive", "default"] = "heuristic"
    tf32: bool = True
    cuda_graphs: bool = False

    drain_s: Annotated[float, Field(ge=0, le=600)] = 1  # /readyz says 503 for so long before the port closes
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = False  # a line for each request

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys = {key.strip() for key in value.split(",")} - {""}
        if any(len(key) < MIN_KEY_LENGTH for key in keys):
            raise ValueError(f"a key must have at least {MIN_KEY_LENGTH} characters")
        return frozenset(keys)

    def cuda_options(self) -> CudaOptions:
        return CudaOptions(self.device_id, self.gpu_memory_limit_bytes, self.conv_search, self.tf32, self.cuda_graphs)


def load_settings() -> Settings:
    """Reads the environment.

    Raises:
        SettingsError: One sentence that names the variable: it has a bad value, or it is unknown.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            near = difflib.get_close_matches(variable.upper(), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
            raise SettingsError(f"{variable} is not a setting of this service: {hint}")
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(f"The environment has a setting that cannot be used: {_variable(error)}.") from None


def _variable(error: ValidationError) -> str:
    fault = first_fault(error)
    field = str(error.errors(include_url=False)[0]["loc"][0])
    if field == "api_keys":  # its value is a secret
        return PREFIX + "API_KEYS: " + error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
    return fault.replace(f"`{field}`", PREFIX + field.upper(), 1)
