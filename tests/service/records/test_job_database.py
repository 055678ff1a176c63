import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.engine import make_url

from service.records.connections.database import default_url, open_database, sqlite_url
from service.records.connections.engines import DatabaseError, DatabaseRefusedError
from service.records.schema import SCHEMA_VERSION, database_now, schema_table


def test_the_default_is_a_file_in_the_working_directory_that_asking_does_not_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETORT_DB", "")
    assert default_url() == f"sqlite:///{tmp_path}/.retort/jobs.db"
    assert list(tmp_path.iterdir()) == []


def test_retort_db_names_another_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_DB", "postgresql://db.example/retort")
    assert default_url() == "postgresql://db.example/retort"


@pytest.mark.parametrize("folder", ["a b", "50%", "what?", "c#", "é", "x&y=z;q", "%20"])
def test_any_folder_name_leads_to_its_own_file(tmp_path: Path, folder: str) -> None:
    file = tmp_path / folder / "jobs.db"
    database = open_database(sqlite_url(file))
    database.prepare()
    with database.reading() as connection:
        assert connection is not None
    assert [entry.name for entry in tmp_path.iterdir()] == [folder]
    assert file.is_file()


def test_a_relative_url_is_of_the_working_directory_at_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = open_database("sqlite:///here.db")
    monkeypatch.chdir("/")
    database.prepare()
    assert (tmp_path / "here.db").is_file()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "cannot be read: expected sqlite:"),
        ("jobs", "cannot be read: expected sqlite:"),
        ("postgresql://ada:s3cret@host:port/db", "cannot be read: expected sqlite:"),
        ("gopher://ada:s3cret@example.org/jobs", "is of 'gopher': expected sqlite:"),
        ("mysql://ada:s3cret@example.org/jobs", "is of 'mysql': expected sqlite:"),
        ("sqlite://", "must be a plain SQLite file: expected sqlite:"),
        ("sqlite:///:memory:", "must be a plain SQLite file"),
        ("sqlite:///x.db?mode=ro", "must be a plain SQLite file"),
    ],
)
def test_an_unusable_url_is_refused_with_what_is_expected_and_without_its_password(
    url: str, said: str
) -> None:
    with pytest.raises(DatabaseRefusedError) as refused:
        open_database(url)
    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_server_that_is_not_there_is_a_store_error() -> None:
    with pytest.raises(DatabaseError):
        open_database("postgresql://ada@127.0.0.1:1/jobs").prepare()


def test_reading_before_any_job_yields_nothing_and_makes_nothing(tmp_path: Path) -> None:
    with open_database(sqlite_url(tmp_path / "none" / "jobs.db")).reading() as connection:
        assert connection is None
    assert list(tmp_path.iterdir()) == []


def test_writing_before_the_database_was_prepared_makes_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DatabaseError, match="unable to open database file"),
        open_database(sqlite_url(tmp_path / "jobs.db")).writing(),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_reading_a_file_without_tables_yields_nothing(file: Path, url: str) -> None:
    file.parent.mkdir()
    file.touch()
    with open_database(url).reading() as connection:
        assert connection is None
    assert file.stat().st_size == 0


def test_eight_jobs_that_start_at_once_make_one_database(file: Path, url: str) -> None:
    databases = [open_database(url) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda database: database.prepare(), databases))
    with databases[0].reading() as connection:
        assert connection is not None
        assert connection.scalars(select(schema_table.c.version)).all() == [SCHEMA_VERSION]
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


def test_a_reader_meets_no_error_while_a_job_makes_the_database(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as job:
        for number in range(60):  # without care a third of them fail
            url = sqlite_url(tmp_path / str(number) / "jobs.db")
            making, reader = job.submit(open_database(url).prepare), open_database(url)
            while not making.done():
                reader.check()
            making.result()


def test_a_job_waits_while_another_one_makes_the_database(file: Path, url: str) -> None:
    file.parent.mkdir()
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("PRAGMA user_version = 1")
        other.execute("BEGIN IMMEDIATE")  # SQLite refuses the change to WAL at once, not after 5 s
        end = threading.Timer(0.2, other.execute, ["COMMIT"])
        end.start()
        open_database(url).prepare()
        end.join()


def test_a_reader_does_not_wait_for_a_writer(file: Path, url: str) -> None:
    database = open_database(url)
    database.prepare()
    with database.writing() as writer:
        writer.execute(schema_table.insert().values(version=SCHEMA_VERSION))
        with database.reading() as reader:
            assert reader is not None
            assert len(reader.scalars(select(schema_table.c.version)).all()) == 1


def test_a_write_that_fails_leaves_nothing(url: str) -> None:
    database = open_database(url)
    database.prepare()

    def fail_half_way() -> None:
        with database.writing() as writer:
            writer.execute(schema_table.insert().values(version=2))
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    with database.reading() as reader:
        assert reader is not None
        assert reader.scalars(select(schema_table.c.version)).all() == [SCHEMA_VERSION]


def test_another_schema_version_is_refused_to_writers_and_readers(file: Path, url: str) -> None:
    database = open_database(url)
    database.prepare()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE retort_schema SET version = 7")
    with pytest.raises(
        DatabaseRefusedError,
        match=f"has schema 7, this Retort expects 2 to {SCHEMA_VERSION}: a newer",
    ):
        database.prepare()
    with pytest.raises(DatabaseRefusedError, match="has schema 7"), database.reading():
        pass


def test_a_file_that_is_no_database_is_left_as_it_is(file: Path, url: str) -> None:
    file.parent.mkdir()
    file.write_bytes(b"not a database, " * 100)
    with pytest.raises(DatabaseError, match="file is not a database"):
        open_database(url).prepare()
    with pytest.raises(DatabaseError, match="file is not a database"), open_database(url).reading():
        pass
    assert file.read_bytes() == b"not a database, " * 100


def test_the_database_s_clock_is_the_time_in_utc(url: str) -> None:
    database = open_database(url)
    database.prepare()
    with database.reading() as connection:
        assert connection is not None
        now = connection.scalar(select(database_now()))
        seconds = connection.scalar(text("SELECT strftime('%s', 'now')"))
    assert abs(now.timestamp() - float(seconds)) < 2
    assert now.utcoffset().total_seconds() == 0


def test_a_password_is_read_from_a_file_and_told_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/word:%1\n")
    monkeypatch.setenv("RETORT_DB", "postgresql://retort@db:5432/retort")
    monkeypatch.setenv("RETORT_DB_PASSWORD_FILE", str(file))
    parsed = make_url(default_url())
    assert (parsed.username, parsed.password, parsed.host) == ("retort", "p@ss/word:%1", "db")
    monkeypatch.setenv("RETORT_DB", "postgresql://retort:own@db/retort")
    assert make_url(default_url()).password == "own", "the URL's own stands"
    monkeypatch.setenv("RETORT_DB", "sqlite:////x/jobs.db")
    assert default_url() == "sqlite:////x/jobs.db"
    monkeypatch.setenv("RETORT_DB", "postgresql://retort@db/retort")
    file.unlink()
    with pytest.raises(DatabaseRefusedError, match="RETORT_DB_PASSWORD_FILE .* cannot be read"):
        default_url()
