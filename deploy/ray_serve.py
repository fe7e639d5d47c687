"""The service on Ray Serve, for those who have a Ray cluster: the same answers at the same addresses, on many machines.

    pip install "ray[serve]>=2.50" -r requirements/serve.txt
    FCOS_SESSIONS=2 FCOS_THREADS=1 serve run deploy.ray_serve:detector

Every replica is a whole service, with its own model, queue and limits. The FCOS_* variables of `serve run` configure
it, even on a cluster that already runs; Ray shows them, keys included, to anyone who may see its dashboard. A relative
FCOS_MODEL is looked for where the replica runs: where `ray start` was called, or in the copy of --working-dir.

Ray counts `num_cpus` but does not enforce them: FCOS_SESSIONS and FCOS_THREADS do. A replica is given more than its
FCOS_MAX_QUEUE of 64, so that it, not Ray, says that it is full: Ray would keep what no replica has taken without limit
and without a deadline. Ray's proxy adds one hop per picture compared with `python -m app`: `benchmarks/serving.py`
shows what that costs.
"""

import os

from ray import serve

from app.api import create_app
from app.settings import PREFIX, load_settings

# A cluster that already runs does not have the environment of `serve run`.
SETTINGS = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}


@serve.deployment(
    num_replicas="auto",
    max_ongoing_requests=256,
    max_queued_requests=256,
    ray_actor_options={"num_cpus": 2, "runtime_env": {"env_vars": SETTINGS}},
)
@serve.ingress(lambda: create_app(load_settings()))
class Detector:
    """One replica; FCOS_PROVIDER=cuda needs `num_gpus: 1` above."""


detector = Detector.bind()
