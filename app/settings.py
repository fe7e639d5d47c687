"""Settings: environment variables FCOS_*, checked once, at start."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.artifact import first_fault
from app.errors import SettingsError

PREFIX = "FCOS_"
DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "model" / "weights" / "fcos-lite0-everyday.onnx"

Provider = Literal["auto", "cuda", "cpu"]


class Settings(BaseSettings):
    """What an operator may choose. Each field is the environment variable FCOS_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    model: Path = DEFAULT_MODEL
    host: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000  # 0: any free one
    provider: Provider = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0  # of the model on the CPU; 0: one per core
    decode_threads: Annotated[int, Field(ge=0, le=1024)] = 0  # that decode and post-process; 0: one per core
    max_upload_bytes: Annotated[int, Field(ge=1)] = 20 * 2**20
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    log_level: Literal["debug", "info", "warning", "error"] = "info"


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
    return fault.replace(f"`{field}`", PREFIX + field.upper(), 1)
