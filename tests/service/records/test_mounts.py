from pathlib import Path

import pytest

from service.records.connections.database import open_database, sqlite_url
from service.records.connections.engines import DatabaseRefusedError
from service.records.connections.mounts import NETWORK, file_system, network_mount

TABLE = """\
/dev/sda1 / ext4 rw 0 0
nas:/home /home nfs4 rw 0 0
tmpfs /home/ada/tmp tmpfs rw 0 0
//srv/x /mnt/a\\040b cifs rw 0 0
lustre /scratch lustre rw 0 0
/dev/sdb /scratch xfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/jobs.db", "ext4"),
        ("/home/ada/jobs.db", "nfs4"),
        ("/homes/jobs.db", "ext4"),
        ("/home/ada/tmp/jobs.db", "tmpfs"),
        ("/mnt/a b/jobs.db", "cifs"),
        ("/scratch/jobs.db", "xfs"),  # mounted later, over the other
    ],
)
def test_a_file_lies_on_the_deepest_and_latest_mount(path: str, kind: str) -> None:
    assert file_system(path, TABLE) == kind


def test_without_a_table_nothing_is_known() -> None:
    assert file_system("/x", "") is None


def test_the_kernel_s_own_table_is_read(tmp_path: Path) -> None:
    assert network_mount(Path("/proc/self/status")) is None
    assert file_system("/proc/1", Path("/proc/mounts").read_text()) == "proc"


def test_sqlite_on_a_network_file_system_is_refused_pointing_to_postgresql(tmp_path: Path) -> None:
    """Of this machine's own mounts: none is a network's, or that one is refused."""
    table = Path("/proc/mounts").read_text().splitlines()
    shared = [line.split(" ")[1] for line in table if line.split(" ")[2] in NETWORK]
    open_database(sqlite_url(tmp_path / "jobs.db"))
    for folder in shared:
        with pytest.raises(DatabaseRefusedError, match="postgresql://"):
            open_database(sqlite_url(Path(folder) / "jobs.db"))
