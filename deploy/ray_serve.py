"""The service on Ray Serve, where a Ray cluster is at hand: the same answers at the same addresses, on many machines.

    pip install "ray[serve]>=2.50" -r requirements/serve.txt
    FCOS_SESSIONS=2 FCOS_THREADS=1 serve run deploy.ray_serve:detector

Every replica is a whole service, with its own model, queue and bounds; FCOS_* variables set it up as ever. Ray counts
`num_cpus` but does not enforce them: these two do. A replica is handed more than its FCOS_MAX_QUEUE of 64, so
that it is the one to say that it is full; what no replica has taken, Ray would keep without end and without a
deadline. Its proxy takes each picture over one hop more than `python -m app` does: `benchmarks/serving.py` shows what
that costs.
"""

from ray import serve

from app.api import create_app
from app.settings import Settings


@serve.deployment(
    num_replicas="auto", max_ongoing_requests=256, max_queued_requests=256, ray_actor_options={"num_cpus": 2}
)
@serve.ingress(lambda: create_app(Settings()))
class Detector:
    """One replica; FCOS_PROVIDER=cuda wants `num_gpus: 1` above."""


detector = Detector.bind()
