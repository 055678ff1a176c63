"""Whatever is asked within or beside the declared interface, the answer is a declared one."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.jobs import State
from service.records.job_store import JobStore
from service.records.rank_rows import Rank
from service.records.series import Point
from service.web.app import create_app
from service.web.security import Access

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = {GenerationMode.POSITIVE: 11, GenerationMode.NEGATIVE: 4}
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.fixture
def api(url: str, store: JobStore, create: Callable[..., str]) -> Any:
    """The declared interface of a service that holds a job."""
    job = create(store, 0)  # its id is zeros, which is found by trying
    store.transition(job, State.RUNNING)
    store.heartbeat(job, rank=Rank(0, "h", 1), points=[Point("loss", 1, 0.5)])
    access = Access(hosts=frozenset({"localhost", "testserver"}))
    app = create_app(url, access=access)
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def ask(api: Any, mode: GenerationMode, examples: int) -> int:
    """Ask every operation `examples` times; return how many could be asked in this mode."""
    asked = 0
    for operation in (found.ok() for found in api.get_all_operations()):
        strategy = operation.as_strategy(generation_mode=mode)

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=QUIET)
        @given(case=strategy)
        def answered_as_declared(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable):  # without parameters nothing can be asked wrongly
            answered_as_declared()
            asked += 1
    return asked


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_is_answered_otherwise_than_declared(api: Any, mode: GenerationMode) -> None:
    assert ask(api, mode, 15) == OPERATIONS[mode]


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_of_many_is_answered_otherwise_than_declared(
    api: Any, mode: GenerationMode
) -> None:
    assert ask(api, mode, 400) == OPERATIONS[mode]
