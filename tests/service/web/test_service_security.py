"""Who may ask, and what a browser is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.jobs import State
from service.records.job_store import JobStore
from service.web.app import create_app
from service.web.security import Access, AccessRefusedError, access_to

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def guarded(url: str, store: JobStore) -> TestClient:
    return TestClient(create_app(url, access=Access(token=TOKEN)), "http://127.0.0.1")


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[::-1]}",
    ],
)
def test_without_the_token_nothing_but_life_is_told(guarded: TestClient, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    for path in ("/api/v1/jobs", "/readyz", "/metrics", "/openapi.json", "/api/v1/nothing", "/x"):
        answer = guarded.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
        assert TOKEN not in answer.text
    assert guarded.get("/livez", headers=headers).status_code == 200


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}"])
def test_with_the_token_everything_is_told(guarded: TestClient, given: str) -> None:
    for path in ("/api/v1/jobs", "/readyz", "/metrics", "/openapi.json"):
        assert guarded.get(path, headers={"authorization": given}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[", "a b", "x@y"])
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    for path in ("/livez", "/api/v1/jobs", "/metrics"):
        answer = client.get(path, headers={"host": host})
        assert (answer.status_code, answer.json()["status"]) == (400, 400)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000"])
def test_a_name_of_this_machine_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/livez", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:81"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_site_cannot_cancel_a_job(
    client: TestClient, store: JobStore, create: Callable[..., str], headers: dict[str, str]
) -> None:
    job = create(store)
    assert client.post(f"/api/v1/jobs/{job}/cancel", headers=headers).status_code == 403
    found = store.get(job)
    assert found is not None
    assert found.record.state is State.PENDING
    own = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert client.post(f"/api/v1/jobs/{job}/cancel", headers=own).status_code == 202


@pytest.mark.parametrize("path", ["/livez", "/api/v1/jobs", "/api/v1/jobs/x", "/x"])
def test_every_answer_tells_a_browser_to_trust_nothing_else(client: TestClient, path: str) -> None:
    headers = client.get(path, headers={"origin": "https://evil.example"}).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert len(headers["x-request-id"]) == 16
    assert not any(name.startswith("access-control") for name in headers)


def test_large_heads_and_bodies_are_refused(client: TestClient) -> None:
    assert client.get("/livez", headers={"x": "y" * 17_000}).status_code == 431
    path = f"/api/v1/jobs/{'0' * 32}/cancel"
    assert client.post(path, content=b"x" * 2000).status_code == 413
    assert client.post(path, headers={"content-length": "9" * 40}).status_code == 413
    assert client.post(path, content=b"{}").status_code == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gpu-1.example"])
def test_an_address_that_others_reach_needs_a_token(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RETORT_TOKEN", raising=False)
    with pytest.raises(AccessRefusedError, match="without a token"):
        access_to(host)
    monkeypatch.setenv("RETORT_TOKEN", TOKEN)
    assert access_to(host, ("Jobs.Example",)).token == TOKEN
    assert {host, "localhost", "jobs.example"} <= access_to(host, ("Jobs.Example",)).hosts


@pytest.mark.parametrize("held", ["", "short", "x" * 31, "é" * 32, "x" * 16 + "\n" + "y" * 16])
def test_a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused(
    held: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(held)
    with pytest.raises(AccessRefusedError, match="expected a token of 32") as refused:
        access_to("127.0.0.1", (), file)
    assert not held or held not in str(refused.value)
    with pytest.raises(AccessRefusedError, match="cannot be read"):
        access_to("127.0.0.1", (), tmp_path / "none")


def test_a_token_file_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RETORT_TOKEN", "e" * 32)
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert access_to("127.0.0.1", (), tmp_path / "token").token == TOKEN
    monkeypatch.setenv("RETORT_TOKEN", "")
    assert access_to("127.0.0.1").token is None
