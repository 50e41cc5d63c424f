"""The interface is what its own OpenAPI schema says, for bodies that it allows and that it does not
(schemathesis)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

pytestmark = pytest.mark.needs("fastapi", "uvicorn", "prometheus_client", "httpx", "schemathesis")

OPERATIONS = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/images/generations"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/api/about"),
    ("POST", "/api/layout"),
    ("POST", "/api/open"),
    ("POST", "/api/weights"),
    ("POST", "/api/drawings"),
    ("GET", "/api/drawings/{id}/events"),
    ("GET", "/api/drawings/{id}/picture.png"),
    ("GET", "/api/drawings/{id}/words"),
    ("GET", "/api/drawings/{id}/attention"),
    ("GET", "/api/drawings/{id}/code"),
    ("DELETE", "/api/drawings/{id}"),
]


@pytest.fixture(scope="module")
def schema(start):
    import schemathesis

    from stal.app.limits import Limits

    # A few steps: what is drawn does not matter here.
    client = start(limits=Limits(pixels=1024, steps=3, objects=3))
    found = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    found.client = client
    return found


def test_every_operation_is_tried(schema):
    named = [(each.ok().method.upper(), each.ok().path) for each in schema.get_all_operations()]
    assert sorted(named) == sorted(OPERATIONS)


# What has no body and no parameter but a path's has nothing that the schema does not allow.
NEGATIVE = [each for each in OPERATIONS if each[0] == "POST" or each[1].endswith("attention")]
CASES = [("POSITIVE", *each) for each in OPERATIONS] + [("NEGATIVE", *each) for each in NEGATIVE]


@pytest.mark.parametrize(("mode", "method", "path"), CASES, ids=map(" ".join, CASES))
def test_answers_are_what_the_schema_says(schema, mode, method, path):
    from schemathesis import GenerationMode
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    # A schema cannot say what a model can draw: 400 is an answer to what it allows.
    left_out = [CHECKS.get_one("positive_data_acceptance")]
    cases = schema[path][method].as_strategy(generation_mode=GenerationMode[mode])

    @given(case=cases)
    @settings(
        max_examples=15,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        case.call_and_validate(excluded_checks=left_out)

    check()
