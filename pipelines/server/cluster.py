"""Replicas of the server under Ray Serve: one machine or a cluster, routed, restarted and scaled.

Each replica is the whole server with its own model process and its own places; Ray's proxy sends a
request to one of them and never holds it back. `build` is what a RayService names.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import InvalidOption
from multimodal.backends import Backend, load_backend
from multimodal.process import BackendProcess
from pipelines.server.app import Life, create_app
from pipelines.server.keys import Keys
from pipelines.server.process import check_host, settle
from pipelines.server.settings import UNKNOWN_SLOTS, Settings
from pipelines.server.tracing import exporter

if TYPE_CHECKING:
    from ray.serve import Application

_SPARE = 32  # requests beyond a replica's places, so that it is the replica that refuses
_MODEL = (
    "model", "device", "dtype", "sparsity", "objective", "tensor_parallel", "device_map"
)  # fmt: skip


class Replica:
    """One server of several; made in a process of Ray's.

    Args:
        load: gives the backend.
        settings: the limits of one replica.
        keys: who may ask.
    """

    def __init__(self, load: Callable[[], Backend], settings: Settings, keys: Keys | None) -> None:
        self._backend = BackendProcess(load)
        self._life = Life(lambda: self._backend, settings, keys)
        settle()

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Ray sends requests to."""
        return create_app(self._life)

    def check_health(self) -> None:
        """Ray starts another replica in the place of one that fails this for half a minute.

        Raises:
            RuntimeError: the model's process is gone or hangs.
        """
        if not self._backend.alive:
            raise RuntimeError("the model's process is gone or hangs")


def deploy(
    load: Callable[[], Backend],
    settings: Settings,
    keys: Keys | None = None,
    *,
    replicas: tuple[int, int] = (1, 1),
    actor: Mapping[str, Any] | None = None,
) -> Application:
    """The application of Ray Serve.

    Args:
        load: gives a replica's backend; it is sent to other machines.
        settings: the limits of one replica; the folder must be one that all of them see.
        keys: who may ask.
        replicas: the fewest and the most.
        actor: what Ray reserves for each, as `{"num_gpus": 1}`.

    Raises:
        InvalidOption: no folder that they share, fewer replicas at most than at least, or spans
            without OpenTelemetry.
    """
    from ray import serve

    least, most = replicas
    if not 1 <= least <= most:
        raise InvalidOption(f"between {least} and {most} replicas cannot be: use 1 or more")
    if settings.folder is None:
        raise InvalidOption("replicas need a folder that all of them see: give --folder")
    if settings.otel:
        exporter()  # refused here rather than in a replica, which would be there and answer nobody
    fitted = settings.fitted(UNKNOWN_SLOTS)
    places = fitted.max_running + fitted.max_waiting + _SPARE
    scaling = {
        "min_replicas": least, "max_replicas": most,
        "target_ongoing_requests": fitted.max_running,
    }  # fmt: skip
    deployment = serve.deployment(
        name="crossread", autoscaling_config=scaling, max_ongoing_requests=places,
        ray_actor_options=dict(actor or {}), health_check_period_s=10.0,
        graceful_shutdown_timeout_s=settings.drain_s,
    )  # fmt: skip
    return deployment(serve.ingress()(Replica)).bind(load, fitted, keys)


def build(arguments: Mapping[str, Any]) -> Application:
    """The application by the arguments of a Serve configuration file.

    `model`, `device`, `dtype`, `sparsity`, `objective`, `tensor_parallel`, `device_map`, `keys` (a file),
    `min_replicas`, `max_replicas`, `actor` and every field of `Settings`.

    Raises:
        InvalidOption: an argument that is none of those.
    """
    given = dict(arguments)
    model = {name: given.pop(name) for name in _MODEL if name in given}
    keys = given.pop("keys", None)
    replicas = (given.pop("min_replicas", 1), given.pop("max_replicas", 1))
    actor = given.pop("actor", None)
    if unknown := given.keys() - {field.name for field in fields(Settings)}:
        raise InvalidOption(f"{sorted(unknown)[0]} is no argument of a CrossRead application")
    settings = Settings(**given)
    settings = replace(
        settings, folder=settings.folder and Path(settings.folder),
        media_hosts=frozenset(settings.media_hosts),
    )  # fmt: skip
    load = partial(load_backend, **model)
    return deploy(
        load, settings, Keys.read(Path(keys)) if keys else None, replicas=replicas, actor=actor
    )


def run_replicas(
    load: Callable[[], Backend],
    settings: Settings,
    keys: Keys | None,
    *,
    replicas: tuple[int, int],
    host: str,
    port: int,
    ready: Callable[[int], None],
) -> None:
    """Run under Ray until told to stop: in the cluster of `RAY_ADDRESS`, else on this machine alone.

    Args:
        load: gives a replica's backend.
        settings: the limits of one replica.
        keys: who may ask; without them Ray's proxy listens to this machine only.
        replicas: the fewest and the most.
        host: address to listen at.
        port: of Ray's proxy.
        ready: told the port once requests are answered.

    Raises:
        InvalidOption: Ray is not installed; an open address without keys; see also `deploy`.
    """
    check_host(host, keys)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell Ray's makers of our use
    try:
        import ray
        from ray import serve
    except ImportError:
        raise InvalidOption("--ray needs Ray Serve: pip install 'crossread[ray]'") from None
    application = deploy(load, settings, keys, replicas=replicas)
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": host, "port": port})
    serve.run(application, logging_config={"enable_access_log": False})
    ready(port)
    stop.wait()
    serve.shutdown()
    ray.shutdown()
