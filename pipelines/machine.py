"""crossread doctor and serve: the commands about a machine that runs a model.

`doctor` tells what the engine chooses on it, `serve` puts it on the network.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import (
    AsJson,
    Device,
    DeviceMap,
    Dtype,
    Model,
    Objective,
    Sparsity,
    TensorParallel,
    as_text,
    hide_progress,
)

app = typer.Typer()


@app.command()
def doctor(
    model: Model = None,
    device: Device = "auto",
    sparsity: Sparsity = None,
    dtype: Dtype = "auto",
    objective: Objective = None,
    tensor_parallel: TensorParallel = 1,
    device_map: DeviceMap = None,
    as_json: AsJson = False,
) -> None:
    """Tell what the engine chooses for a model on this machine, and by which measurements."""
    from multimodal.backends import load_backend
    from pipelines.terminal import describe_diagnosis

    hide_progress()
    backend = load_backend(
        model,
        device=device,
        sparsity=sparsity,
        dtype=dtype,
        objective=objective,
        tensor_parallel=tensor_parallel,
        device_map=device_map,
    )
    if (diagnose := getattr(backend, "diagnose", None)) is None:
        raise typer.BadParameter("a server's engine cannot be asked; run doctor beside the model")
    told = diagnose()
    backend.close()
    typer.echo(as_text(told.to_dict()) if as_json else describe_diagnosis(told))


@app.command()
def serve(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others need --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="File of tenant:sha256-of-key lines; see docs/serving.md.")
    ] = None,
    max_running: Annotated[
        int,
        typer.Option(help="Requests at work at the same time; 0 for as many as the model takes."),
    ] = 0,
    max_waiting: Annotated[
        int, typer.Option(help="Requests that may wait; 0 for four times --max-running.")
    ] = 0,
    max_body_mib: Annotated[float, typer.Option(help="Of a request with its media.")] = 64,
    max_upload_mib: Annotated[float, typer.Option(help="Of one file for /v1/files.")] = 1024,
    max_total_s: Annotated[float, typer.Option(help="For a whole answer.")] = 600,
    keep_s: Annotated[float, typer.Option(help="How long uploads and readings stay.")] = 3600,
    media_host: Annotated[
        list[str] | None,
        typer.Option(help="Host from which media may be fetched; may be repeated."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where uploads and readings lie; replicas must share it.")
    ] = None,
    metrics_compat: Annotated[
        str, typer.Option(help="vllm: also tell what vLLM tells under its names.")
    ] = "",
    otel: Annotated[
        bool, typer.Option("--otel", help="Send spans by OTLP to OTEL_EXPORTER_OTLP_ENDPOINT.")
    ] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Replicas under Ray Serve.")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: how many at least.")] = 1,
    max_replicas: Annotated[
        int, typer.Option(help="With --ray: how many at most; 0 for --replicas.")
    ] = 0,
    device: Device = "auto",
    sparsity: Sparsity = None,
    dtype: Dtype = "auto",
    objective: Objective = None,
    tensor_parallel: TensorParallel = 1,
    device_map: DeviceMap = None,
) -> None:
    """Serve the model over HTTP by OpenAI's protocol, with readings of CT studies beside it."""
    from multimodal.backends import load_backend
    from multimodal.process import BackendProcess
    from pipelines.server.keys import Keys
    from pipelines.server.process import run_server
    from pipelines.server.settings import Settings

    hide_progress()
    settings = Settings(
        max_running=max_running, max_waiting=max_waiting, max_body_mib=max_body_mib,
        max_upload_mib=max_upload_mib, total_s=max_total_s, keep_s=keep_s, folder=folder,
        media_hosts=frozenset(h.lower() for h in media_host or ()), metrics_compat=metrics_compat,
        otel=otel,
    )  # fmt: skip
    load = partial(
        load_backend, model, device=device, dtype=dtype, sparsity=sparsity, objective=objective,
        tensor_parallel=tensor_parallel, device_map=device_map,
    )  # fmt: skip
    known = Keys.read(keys) if keys else None
    loading, ready = (
        lambda at, what=what: typer.echo(f"{what} http://{host}:{at}/v1", err=True)
        for what in ("loading the model for", "ready at")
    )
    if not ray:
        run_server(
            lambda: BackendProcess(load), settings, known, host=host, port=port,
            listening=loading, ready=ready,
        )  # fmt: skip
        return
    from pipelines.server.cluster import run_replicas

    run_replicas(
        load, settings, known, replicas=(replicas, max_replicas or replicas), host=host, port=port,
        ready=ready,
    )  # fmt: skip
