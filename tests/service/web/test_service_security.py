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
    for path in ("/api/v1/jobs", "/metrics", "/openapi.json", "/api/v1/nothing", "/x"):
        answer = guarded.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
        assert TOKEN not in answer.text
    for path in ("/livez", "/readyz"):
        assert guarded.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}"])
def test_with_the_token_everything_is_told(guarded: TestClient, given: str) -> None:
    for path in ("/api/v1/jobs", "/readyz", "/metrics", "/openapi.json"):
        assert guarded.get(path, headers={"authorization": given}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[", "a b", "x@y"])
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/api/v1/jobs", "/metrics", "/livez/x", "//livez"):
        answer = client.get(path, headers={"host": host})
        assert (answer.status_code, answer.json()["status"]) == (400, 400)


@pytest.mark.parametrize("host", ["10.1.2.3:8000", "retort.default.svc", "[fd00::1]:8000", ""])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_probe_that_asks_by_address_and_without_a_token_is_answered(
    guarded: TestClient, host: str, method: str
) -> None:
    for path in ("/livez", "/readyz"):
        answer = guarded.request(method, path, headers={"host": host})
        assert answer.status_code == 200
        assert (answer.content == b"") == (method == "HEAD")
        assert int(answer.headers["content-length"]) > 0


def test_who_answers_get_answers_head_and_says_the_same_without_the_body(
    client: TestClient,
) -> None:
    for path in ("/", "/static/style.css", "/api/v1/jobs", "/openapi.json"):
        got, headed = client.get(path), client.head(path)
        assert (headed.status_code, headed.content) == (got.status_code, b"")
        assert headed.headers["content-length"] == got.headers["content-length"]


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


READ_TOKEN = "r" * 32


def test_the_token_that_may_only_read_stops_no_job(
    url: str, store: JobStore, create: Callable[..., str]
) -> None:
    access = Access(token=TOKEN, read_token=READ_TOKEN)
    client = TestClient(create_app(url, access=access), "http://127.0.0.1")
    job = create(store)
    only_read = {"authorization": f"Bearer {READ_TOKEN}"}
    for path in ("/api/v1/jobs", f"/api/v1/jobs/{job}", "/metrics"):
        assert client.get(path, headers=only_read).status_code == 200
    cancel = f"/api/v1/jobs/{job}/cancel"
    refused = client.post(cancel, headers=only_read)
    assert (refused.status_code, "may only read" in refused.json()["detail"]) == (403, True)
    found = store.get(job)
    assert found is not None
    assert found.record.state is State.PENDING
    assert client.post(cancel, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 202


def test_a_token_that_may_only_read_is_a_second_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "read").write_text(READ_TOKEN)
    token, read = tmp_path / "token", tmp_path / "read"
    assert access_to("::1", (), token, read_token_file=read).read_token == READ_TOKEN
    with pytest.raises(AccessRefusedError, match="expected two tokens"):
        access_to("::1", (), token, read_token_file=token)
    with pytest.raises(AccessRefusedError, match="without --token-file"):
        access_to("::1", read_token_file=read)
    with pytest.raises(AccessRefusedError, match=r"--read-token-file .* cannot be read"):
        access_to("::1", (), token, read_token_file=tmp_path / "none")


def published(url: str, at: str) -> TestClient:
    access = access_to("127.0.0.1", public_url=at)
    return TestClient(create_app(url, access=access), "http://127.0.0.1", follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "jobs.example"])
def test_behind_a_proxy_the_page_at_the_public_url_may_stop_a_job(
    url: str, store: JobStore, create: Callable[..., str], host: str
) -> None:
    client, job = published(url, "https://Jobs.example/"), create(store)
    cancel = f"/api/v1/jobs/{job}/cancel"
    for origin in ("https://jobs.example.evil", "https://evil.example", "https://jobs.example:1"):
        assert client.post(cancel, headers={"host": host, "origin": origin}).status_code == 403
    own = {"host": host, "origin": "https://jobs.example"}
    assert client.post(cancel, headers=own).status_code == 202


@pytest.mark.parametrize("cut", [True, False])
def test_below_a_path_everything_is_where_it_is_published(
    url: str, store: JobStore, create: Callable[..., str], cut: bool
) -> None:
    """Whether the proxy cuts the path off or not."""
    client = published(url, "https://example.org/retort")
    first, _ = create(store, 1), create(store, 2)
    before = "" if cut else "/retort"
    for path in ("/", "/livez", "/static/style.css", f"/jobs/{first}", f"/api/v1/jobs/{first}"):
        assert client.get(before + path).status_code == 200, path
    link = client.get(f"{before}/api/v1/jobs?limit=1").headers["link"]
    assert link.startswith("</retort/api/v1/jobs?")
    assert client.get(f"{before}/jobs/../x").status_code == 404


def test_below_a_path_its_own_name_leads_to_the_page(url: str) -> None:
    answer = published(url, "https://example.org/retort").get("/retort")
    assert (answer.status_code, answer.headers["location"]) == (308, "/retort/")


@pytest.mark.parametrize(
    "at",
    ["jobs.example", "ftp://x", "https://", "https://u:p@x", "https://x/a?b", "https://x:y", "//x"],
)
def test_a_public_url_that_is_none_is_refused(at: str) -> None:
    with pytest.raises(AccessRefusedError, match="expected where a proxy publishes"):
        access_to("127.0.0.1", public_url=at)
    with pytest.raises(AccessRefusedError, match="expected another one"):
        access_to("127.0.0.1", public_url="https://x/jobs/here")


def test_changes_and_wrong_tokens_are_logged_with_address_and_job(
    guarded: TestClient,
    store: JobStore,
    create: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "service")
    cancel = f"/api/v1/jobs/{create(store)}/cancel"
    told = {"x-forwarded-for": "192.0.2.7\x1b[2J"}
    guarded.post(cancel, headers={"authorization": f"Bearer {TOKEN}"} | told)
    guarded.post(cancel, headers={"authorization": "Bearer wrong-token"})
    guarded.get("/api/v1/jobs")
    assert [log.getMessage() for log in caplog.records] == [
        f"POST {cancel} from testclient (for 192.0.2.7\\x1b[2J, it says): 202",
        "a wrong token from testclient",
    ]
    assert "wrong-token" not in caplog.text
    for _ in range(100):
        guarded.get("/metrics", headers={"authorization": "Bearer wrong-token"})
    assert len(caplog.records) <= 62, "two minutes' lines at most"
