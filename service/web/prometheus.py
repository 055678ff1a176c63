"""What Prometheus scrapes: jobs by kind and status, and the service's own traffic.

Labels are bounded: kinds that Retort knows, statuses, routes as declared; never a job's id.
"""

import platform
from collections.abc import Iterator
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.types import Scope

from service import VERSION
from service.jobs import Periods, Status
from service.records.job_store import JobStore
from service.records.kind_summary import KINDS, KindSummary

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Traffic:
    """Requests and database errors of one service, and its process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Gauge(
            "retort_build_info",
            "Always 1; the labels say which Retort answers.",
            ["version", "python"],
            registry=self.registry,
        )
        build.labels(VERSION, platform.python_version()).set(1)
        self.requests = Histogram(
            "retort_http_request_duration_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["route", "status"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
            registry=self.registry,
        )
        self.database_errors = Counter(
            "retort_database_errors_total",
            "Requests that failed because the database could not be used.",
            registry=self.registry,
        )

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request under its route as declared, whatever was asked for."""
        route = getattr(scope.get("route"), "path", "none")
        self.requests.labels(route, f"{status // 100}xx").observe(seconds)


def exposition(store: JobStore, periods: Periods, traffic: Traffic) -> bytes:
    """Return the page that Prometheus scrapes.

    Raises:
        DatabaseError: the records cannot be read.
    """
    jobs = CollectorRegistry()
    jobs.register(_Jobs(store.summary(periods)))
    return generate_latest(jobs) + generate_latest(traffic.registry)


class _Jobs:
    """The jobs of one reading as a collector."""

    def __init__(self, kinds: tuple[KindSummary, ...]) -> None:
        self._kinds = kinds

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metrics."""
        count = GaugeMetricFamily("retort_jobs", "Jobs on record.", labels=["kind", "status"])
        found = {(kind.kind, status): n for kind in self._kinds for status, n in kind.jobs.items()}
        for name in (*KINDS, "other"):
            for status in Status:
                count.add_metric([name, status.value], found.get((name, status), 0))
        yield count
        yield self._of(
            GaugeMetricFamily,
            "retort_job_progress_ratio",
            "Done over total of the live job that is least advanced.",
            "progress_ratio",
        )
        yield self._of(
            GaugeMetricFamily,
            "retort_job_heartbeat_age_seconds",
            "Seconds since the last heartbeat of the live or stale job that is silent for longest.",
            "heartbeat_age_s",
        )
        yield self._of(
            GaugeMetricFamily,
            "retort_job_progress_age_seconds",
            "Seconds since progress moved in the live job that stands still for longest.",
            "progress_age_s",
        )
        yield self._of(
            CounterMetricFamily,
            "retort_images",
            "Images that jobs on record went through, views of one image counted each.",
            "images",
        )
        yield self._of(
            CounterMetricFamily, "retort_bytes", "Bytes that jobs on record wrote.", "bytes"
        )

    def _of(self, family: Any, name: str, about: str, field: str) -> Metric:
        metric: Metric = family(name, about, labels=["kind"])
        for kind in self._kinds:
            value = getattr(kind, field)
            if value is not None:
                metric.add_metric([kind.kind], value)  # type: ignore[attr-defined]
        return metric
