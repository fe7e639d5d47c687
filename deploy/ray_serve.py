"""The service on Ray Serve, where a Ray cluster is at hand: the same answers at the same addresses, on many machines.

    pip install "ray[serve]>=2.50" -r requirements/serve.txt
    FCOS_SESSIONS=2 FCOS_THREADS=1 serve run deploy.ray_serve:detector

Every replica is a whole service, with its own model, queue and bounds. The FCOS_* variables of `serve run` set it up,
also on a cluster that is there already; Ray shows them, keys too, to whoever may see its dashboard. A relative
FCOS_MODEL is looked for where the replica runs: where `ray start` was given, or in the copy of --working-dir.

Ray counts `num_cpus` but does not enforce them: these two do. A replica is handed more than its FCOS_MAX_QUEUE of 64,
so that it is the one to say that it is full; what no replica has taken, Ray would keep without end and without a
deadline. Its proxy takes each picture over one hop more than `python -m app` does: `benchmarks/serving.py` shows what
that costs.
"""

import os

from ray import serve

from app.api import create_app
from app.settings import PREFIX, load_settings

# A cluster that is there already does not have the environment of `serve run`.
SETTINGS = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}


@serve.deployment(
    num_replicas="auto",
    max_ongoing_requests=256,
    max_queued_requests=256,
    ray_actor_options={"num_cpus": 2, "runtime_env": {"env_vars": SETTINGS}},
)
@serve.ingress(lambda: create_app(load_settings()))
class Detector:
    """One replica; FCOS_PROVIDER=cuda wants `num_gpus: 1` above."""


detector = Detector.bind()
