"""make loadtest: locust against a service that this starts. Arguments go to locust: --steps 1,8,32 --step-s 30.

FCOS_MODEL and the other settings are the service's, as always. The report is in results/.
"""

import os
import subprocess
import sys
from pathlib import Path

from app.errors import StartError
from app.settings import load_settings
from tests.serving import NotReady, served

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def main() -> int:
    """Returns: locust's exit status. Raises: StartError, NotReady."""
    settings = load_settings()
    if not settings.model.is_file():
        raise StartError(f"There is no model file {settings.model}: set FCOS_MODEL to one.")
    results = Path("results")
    results.mkdir(exist_ok=True)
    chosen = {name[5:].lower(): value for name, value in os.environ.items() if name.startswith("FCOS_")}
    chosen = {"provider": settings.provider} | chosen | {"model": settings.model, "host": "127.0.0.1"}
    chosen.pop("port", None)
    if settings.api_keys:
        os.environ.setdefault("API_KEY", min(settings.api_keys))  # the locustfile's
    with served(**chosen) as service:
        command = [
            sys.executable, "-m", "locust", "--locustfile", LOCUSTFILE, "--headless", "--host", service.address,
            "--csv", results / "load", "--html", results / "load.html", "--loglevel", "WARNING", "--only-summary",
            *sys.argv[1:],
        ]  # fmt: skip
        return subprocess.run([str(word) for word in command], check=False).returncode


if __name__ == "__main__":
    try:
        status = main()
    except (StartError, NotReady) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
