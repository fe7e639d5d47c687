"""BentoML: a worker process per core. It takes files in forms."""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

sys.path.insert(0, str(Path(__file__).parent))
from pipeline import Pipeline, options


@bentoml.service(
    workers=int(os.environ.get("PEER_THREADS", "1")),
    traffic={
        "timeout": float(os.environ.get("PEER_DEADLINE_S", "60")),
        "max_concurrency": int(os.environ.get("PEER_AT_ONCE", "32")),
    },
    logging={"access": {"enabled": False}},
)
class Detect:
    def __init__(self) -> None:
        self.pipeline = Pipeline(
            os.environ["PEER_MODEL"], int(os.environ["PEER_SESSION_THREADS"]), os.environ["PEER_PROVIDER"]
        )

    @bentoml.api(route="/detect")
    def detect(self, image: Annotated[Path, ContentType("image/jpeg")]) -> Annotated[str, ContentType("text/plain")]:
        return self.pipeline(image.read_bytes()).decode()


if __name__ == "__main__":
    chosen = options(__doc__)
    os.environ |= {
        "PEER_MODEL": str(Path(chosen.model).resolve()),
        "PEER_THREADS": str(chosen.threads),
        "PEER_SESSION_THREADS": str(chosen.session_threads),
        "PEER_PROVIDER": chosen.provider,
        "PEER_AT_ONCE": str(chosen.at_once),
        "PEER_DEADLINE_S": str(chosen.deadline_s),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    os.chdir(Path(__file__).parent)
    arguments = ["serve", "bentoml_app:Detect", "--port", str(chosen.port), "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])
