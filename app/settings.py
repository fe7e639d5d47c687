"""Settings: environment variables FCOS_*, checked once, at start."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import SettingsError, first_fault
from app.images import MOST_PIXELS
from app.providers import ConvSearch, CudaOptions, ProviderChoice

PREFIX = "FCOS_"
DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "model" / "weights" / "fcos-everyday.onnx"

MIN_KEY_LENGTH = 8


def _number(text: object) -> object:
    return int(text) if isinstance(text, str) and text.isdecimal() else text


def _split(text: object) -> object:
    if not isinstance(text, str):
        return text
    parts = frozenset(part.strip() for part in text.split(",")) - {""}
    if text.strip() and not parts:
        raise ValueError("there are commas, but no key or origin: leave it empty if none is meant")
    return parts


CommaSeparated = Annotated[frozenset[str], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """What an operator may choose. Each field is the environment variable FCOS_<FIELD>."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,  # compose and Kubernetes pass on as empty what is not set
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    model: Path = DEFAULT_MODEL
    """The .onnx file, as `python -m export` writes it, in any precision; `model/weights` has ours in int8 as well."""
    host: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    """Address to listen on. 0.0.0.0: every network; set keys, or put a proxy that checks them in front."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """0: any free port; the log says which."""
    provider: ProviderChoice = "auto"
    """cuda starts on CUDA or says what is missing. auto takes CUDA if it works, else the CPU, and says which."""

    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of one batch. 0: a lone picture has all cores, up to 8, and concurrent pictures share them out."""
    sessions: Annotated[int, Field(ge=0, le=64)] = 0
    """Batches run at a time on the CPU, each with a fixed share of the cores. 0: one per core. CUDA always has one."""
    decode_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads that decode, run batches on the CPU, post-process. 0: one per core or session, FCOS_MAX_QUEUE at most."""
    max_batch: Annotated[Literal[0, 1, 2, 4, 8, 16], BeforeValidator(_number)] = 0
    """Largest batch. 0: 16 on CUDA; on the CPU 4 if a picture takes under 10 ms on a core, else 1."""

    max_upload_bytes: Annotated[int, Field(ge=1)] = 20 * 2**20
    """Largest request body."""
    max_pixels: Annotated[int, Field(ge=1, le=MOST_PIXELS)] = 50_000_000
    """Largest picture, width times height. Larger ones are refused from the header alone."""
    max_queue: Annotated[int, Field(ge=1)] = 64
    """Pictures accepted and not yet answered. Beyond it: 503 at once, with Retry-After."""
    max_queue_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """Bytes of request bodies held at once. Beyond it: 503."""
    max_queue_pixels: Annotated[int, Field(ge=1)] = 200_000_000
    """Decoded pixels held at once, 4 bytes each; pictures that must be turned or converted count up to 5 times."""
    keep_alive_s: Annotated[int, Field(ge=1, le=3600)] = 75
    """Seconds an idle connection is kept: longer than a load balancer in front keeps it, mostly 60."""
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 10
    """Seconds within which a request is answered or refused. The request header `X-Deadline-Ms` may ask for less."""

    api_keys: CommaSeparated = frozenset()
    """Keys of 8 ASCII characters or more, comma-separated; a request must send one. None: anyone may ask."""
    admin_key: str | None = None
    """The key that POST /admin/reload requires. None: any of FCOS_API_KEYS."""
    max_per_key: Annotated[int, Field(ge=0)] = 0
    """Requests of one key at a time. Beyond it: 429. 0: no limit."""

    cors_origins: CommaSeparated = frozenset()
    """Origins, comma-separated, whose pages may ask from a browser, such as https://shop.example. *: any."""

    device_id: Annotated[int, Field(ge=0)] = 0
    """Which GPU."""
    gpu_memory_limit_bytes: Annotated[int, Field(ge=0)] = 0
    """Limit of ONNX Runtime's arena. 0: none."""
    conv_search: ConvSearch = "heuristic"
    """How cuDNN's convolutions are chosen. exhaustive: a longer start, sometimes a faster model."""
    tf32: bool = True
    """Tensor cores for fp32 models: faster, with 10 bits of mantissa in products."""
    cuda_graphs: bool = True
    """Record each shape's kernels and replay them. false: less GPU memory, but slow whenever batches change shape."""

    drain_s: Annotated[float, Field(ge=0, le=600)] = 1
    """Seconds from SIGTERM (/readyz turns 503) until the port closes, so that load balancers notice."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important messages that are written."""
    log_format: Literal["text", "json"] = "text"
    """json: one object per line."""
    access_log: bool = False
    """Log a line for each request."""

    @field_validator("admin_key", mode="before")
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return (value.strip() if isinstance(value, str) else value) or None

    @field_validator("api_keys", "admin_key")
    @classmethod
    def _can_be_sent(cls, given: frozenset[str] | str | None) -> frozenset[str] | str | None:
        keys = {given} if isinstance(given, str) else given or ()
        if any(len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) for key in keys):
            raise ValueError(f"a key must have at least {MIN_KEY_LENGTH} characters, all printable ASCII")
        return given

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: frozenset[str]) -> frozenset[str]:
        for origin in origins - {"*"}:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(f"{origin!r} is not an origin: https://shop.example is one, without a path or a *")
        return origins

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


def settings_table() -> str:
    """Returns: Every setting, its default and what it means, as a table in Markdown."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if name == "model":
            default = DEFAULT_MODEL.relative_to(DEFAULT_MODEL.parents[2])
        elif isinstance(default, bool):
            default = str(default).lower()
        shown = f"`{default}`" if default or default == 0 else "none"
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        meaning = f"{', '.join(f'`{choice}`' for choice in choices)}. " if choices else ""
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {meaning}{field.description} |")
    return "\n".join(rows)


def _variable(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    field = str(fault["loc"][0])
    variable = PREFIX + field.upper()
    if field in ("api_keys", "admin_key"):  # its value is a secret
        return f"{variable}: {fault['msg'].removeprefix('Value error, ')}"
    return first_fault(error).replace(f"`{field}`", variable, 1)
