"""Endpoints for those who run a service: health, metrics, refresh, fields; and the page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, PlainTextResponse

from dualfuse.search.server import schemas
from dualfuse.search.server.endpoints.common import PROBLEMS, ServiceDep
from dualfuse.search.server.http.problems import Problem

router = APIRouter(tags=["operations"], responses=PROBLEMS)
PAGE = Path(__file__).parents[1] / "page"


@router.get("/healthz", response_class=PlainTextResponse)
async def health() -> str:
    """Answer 200 while the process runs."""
    return "ok"


@router.head("/healthz", include_in_schema=False)
async def health_head() -> Response:
    """Answer 200 while the process runs."""
    return Response()


@router.get("/readyz", response_class=PlainTextResponse)
async def ready(service: ServiceDep) -> str:
    """Answer 200 once text tower, image tower and fusion have run, 503 before."""
    service.check_ready()
    return "ready"


@router.get("/metrics", response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    """Return the metrics in the text format of Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/info")
async def info(service: ServiceDep) -> schemas.Info:
    """Return the model, the index, what the model can do, and the limits of requests."""
    snapshot, engine = service.check_ready(), service.engine
    return schemas.Info(
        model=engine.name,
        can_match=engine.loaded.task.can_match,
        calibrated=engine.loaded.task.calibration is not None,
        rerank=service.options.rerank or 0,
        index=schemas.IndexInfo(count=len(snapshot.index), version=snapshot.version),
        limits=asdict(service.options.limits),
    )


@router.get("/v1/fields", response_model_exclude_unset=True)
async def fields(service: ServiceDep) -> schemas.Fields:
    """Return the fields that `where` can name, with their values and counts."""
    return schemas.Fields.model_validate({"fields": service.check_ready().fields})


@router.post("/v1/refresh", status_code=202)
async def refresh(service: ServiceDep) -> schemas.JobState:
    """Follow added, changed and removed files; running queries end on the index they began with."""
    service.check_ready()
    return schemas.JobState.model_validate(asdict(service.refresh()))


@router.get("/v1/jobs/{job}")
async def job_status(job: str, service: ServiceDep) -> schemas.JobState:
    """Return the state of a refresh."""
    if job not in service.jobs:
        raise Problem(404, f"there is no job {job[:40]!r}", param="job")
    return schemas.JobState.model_validate(asdict(service.jobs[job]))


@router.get("/", response_class=FileResponse, include_in_schema=False)
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(PAGE / "index.html")


@router.get("/docs", response_class=FileResponse, include_in_schema=False)
async def docs() -> FileResponse:
    """Return the documentation of the API."""
    return FileResponse(PAGE / "docs.html")
