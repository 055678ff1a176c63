"""docker/, checked without a container engine: what the files say is there, and is meant."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest
import yaml
from dockerfiles import instructions, last
from fastapi.testclient import TestClient
from repository import REPOSITORY
from serving import free_port
from torch.distributed.run import get_args_parser
from typer.main import get_command

from cli import app
from service.recording.recorder import record_job
from service.web.app import create_app

DOCKER = REPOSITORY / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)


def parse(arguments):
    """Parse a command line of cli.py with the parser itself."""
    name, *rest = arguments
    get_command(app).commands[name].make_context(name, list(rest)).close()


def commented_commands(path, start):
    """The command lines in a file's head comment, from the word after `start` on."""
    lines = re.findall(r"^#  ? ?(.*)$", path.read_text(), flags=re.M)
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [shlex.split(line)[1:] for line in re.findall(rf"{start}\S*( .*)", text)]


def test_there_are_two_images():
    assert [path.name for path in DOCKERFILES] == ["service.Dockerfile", "train.Dockerfile"]


@each_dockerfile
def test_every_copied_path_exists_and_reaches_the_build(path):
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "everything is left out that is not let in"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = [
        source for each in instructions(path) if each.word == "COPY" for source in each.copied[0]
    ]
    assert copied
    for source in copied:
        assert (REPOSITORY / source).exists(), source
        parts = source.split("/")
        inside = {"/".join(parts[:length]) for length in range(1, len(parts) + 1)}
        reaches = any(fnmatch(part, name) for part in inside for name in let_in)
        assert source == "." or reaches, f"{source} is in .dockerignore"
    for name in let_in:
        assert list(REPOSITORY.glob(name)), name


@each_dockerfile
def test_images_are_pinned_run_as_nobody_and_start_without_a_shell(path):
    found = instructions(path)
    arguments = dict(each.text.split("=", 1) for each in found if each.word == "ARG")
    for each in found:
        if each.word == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda name: arguments[name[1]], each.text.split()[0])
            assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", image), f"{image} names no version"
    assert not [each for each in found if each.word == "ADD"]
    user, _, group = last(found, "USER").text.partition(":")
    assert int(user) > 0
    assert int(group) > 0
    after = found.index(last(found, "USER"))
    assert not [each for each in found[after:] if each.word in ("RUN", "COPY")]
    assert last(found, "ENTRYPOINT").argv
    assert last(found, "CMD").argv


@each_dockerfile
def test_packages_are_installed_by_hash_and_leave_no_cache(path):
    runs = [each.text for each in instructions(path) if each.word == "RUN"]
    installs = [run for run in runs if "pip install" in run]
    for run in installs:
        assert "--no-cache-dir" in run
        assert "--require-hashes" in run or (run.count("-r ") == 0 and "--no-deps" in run)
    assert any("--require-hashes" in run for run in installs)
    for run in runs:
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "apt-get update" in run
            assert "rm -rf /var/lib/apt/lists/*" in run


def test_what_the_images_install_is_what_they_need():
    service, train = (REPOSITORY / "requirements" / f"{name}.txt" for name in ("service", "train"))
    pinned = {
        path.stem: set(re.findall(r"^([\w-]+)==", path.read_text(), flags=re.M))
        for path in (service, train)
    }
    assert not pinned["service"] & {"torch", "numpy", "timm", "zarr", "pillow"}
    assert pinned["train"] >= {
        "torch",
        "torchvision",
        "timm",
        "zarr",
        "setuptools",
        "psycopg-binary",
    }
    assert not pinned["train"] & {"pytest", "mypy", "playwright"}
    assert pinned["service"] <= pinned["train"]


def test_the_images_start_with_commands_that_exist():
    service = instructions(DOCKER / "service.Dockerfile")
    assert last(service, "ENTRYPOINT").argv[:2] == ["python", "/app/cli.py"]
    parse(last(service, "CMD").argv)
    scripts = (REPOSITORY / "pyproject.toml").read_text()
    assert last(instructions(DOCKER / "train.Dockerfile"), "ENTRYPOINT").argv == ["retort"]
    assert 'retort = "cli:main"' in scripts
    for path, start in (
        (DOCKER / "train.Dockerfile", "retort"),
        (DOCKER / "slurm/retort.sbatch", "sbatch docker/slurm/retort.sbatch"),
    ):
        for arguments in commented_commands(path, start):
            if arguments and arguments[0] in get_command(app).commands and "..." not in arguments:
                parse(arguments)


def test_compose_starts_jobs_with_commands_that_exist():
    services = COMPOSE["services"]
    for name in ("cache", "train"):
        torchrun, *options = services[name]["entrypoint"]
        parsed = get_args_parser().parse_args([*options, "--help"])
        assert (torchrun, parsed.module, parsed.training_script) == ("torchrun", True, "cli")
        grace_s = 60 * int(services[name]["stop_grace_period"].removesuffix("m"))
        assert 30 < parsed.shutdown_timeout < grace_s, (
            "torchrun ends its processes before Docker it"
        )
        parse(services[name]["command"])
        assert services[name]["profiles"] == [name]
    assert services["train"]["command"][3] == services["cache"]["command"][-1]


def test_compose_names_only_what_it_declares():
    for name, service in COMPOSE["services"].items():
        if "build" in service:
            context = DOCKER / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).exists()
        else:
            assert re.search(r":[\w.-]*\d", service["image"]), f"{name}: {service['image']}"
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            known = source in COMPOSE["volumes"] or source.startswith("${")
            assert known or (DOCKER / source).exists(), source
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        for value in map(str, service.get("environment", {}).values()):
            if value.startswith("/run/secrets/"):
                assert value.rpartition("/")[2] in service["secrets"]
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"])
    text = (DOCKER / "compose.yaml").read_text()
    example = set(re.findall(r"^(\w+)=", (DOCKER / "example.env").read_text(), flags=re.M))
    assert set(re.findall(r"\$\{(\w+)", text)) == example


def test_compose_names_only_variables_that_the_commands_read():
    read = {variable for command in commands() for variable in variables(command)}
    read |= {"RETORT_DB", "RETORT_DB_PASSWORD_FILE", "OMP_NUM_THREADS"}
    for name in ("service", "cache", "train"):
        assert set(COMPOSE["services"][name]["environment"]) <= read


def commands():
    return get_command(app).commands.values()


def variables(command):
    return {each.envvar for each in command.params if isinstance(each.envvar, str)}


def test_compose_confines_every_container_and_keeps_the_database_to_its_clients():
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["pids_limit"], name
        assert "mem_limit" in service or "devices" in str(service["deploy"]), name
    assert COMPOSE["networks"]["records"]["internal"] is True
    assert COMPOSE["services"]["postgres"]["networks"] == ["records"]
    assert "PASSWORD}" not in (DOCKER / "compose.yaml").read_text(), "passwords are files"


def test_what_a_job_writes_to_is_its_users():
    train = instructions(DOCKER / "train.Dockerfile")
    made = " ".join(each.text for each in train if each.word == "RUN")
    owned = re.search(r"install --directory --owner=retort --group=retort ([^&]*)", made)[1].split()
    for mount in COMPOSE["services"]["train"]["volumes"]:
        assert mount.split(":")[-1 if mount.count(":") == 1 else -2] in owned


def test_compose_gives_the_service_no_more_than_it_needs():
    service = COMPOSE["services"]["service"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "volumes" not in service
    ports = [port for each in COMPOSE["services"].values() for port in each.get("ports", ())]
    assert all("127.0.0.1:" in port for port in ports), "published to this host alone"


def test_secrets_and_passwords_stay_out_of_git():
    for name in ("docker/.env", "docker/secrets/retort_token", "docker/secrets/postgres_password"):
        ignored = subprocess.run(
            ["git", "check-ignore", "--quiet", "--no-index", name], cwd=REPOSITORY, check=False
        )
        assert ignored.returncode == 0, name


def test_the_slurm_script_is_bash_and_asks_torchrun_for_what_it_has():
    script = DOCKER / "slurm" / "retort.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    run = re.sub(r"\\\n\s*", " ", text).splitlines()[-1]
    options = shlex.split(run.split("torchrun ", 1)[1])
    parsed = get_args_parser().parse_args([each.replace("$@", "--help") for each in options])
    assert (parsed.module, parsed.training_script, parsed.rdzv_backend) == (True, "cli", "c10d")
    assert 30 < parsed.shutdown_timeout < int(re.search(r"--signal=TERM@(\d+)", text)[1])


SRUN = """#!/bin/sh
# as Slurm's: its own options first, then a command for every node, of which there is one here
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
TORCHRUN = """#!/bin/sh
echo "$@"
"""


def test_the_slurm_script_meets_at_a_port_that_is_free(tmp_path):
    fakes = {
        "srun": SRUN,
        "torchrun": TORCHRUN,
        "scontrol": "#!/bin/sh\necho node-1\necho node-2\n",
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    said = [
        subprocess.run(
            [
                "bash",
                DOCKER / "slurm" / "retort.sbatch",
                "cache-teacher",
                "a recipe",
                "--data",
                "d",
            ],
            env=os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    ports = {int(re.search(r"--rdzv-endpoint=node-1:(\d+) -m cli", each)[1]) for each in said}
    assert len(ports) == 2, "not one port for all"
    assert min(ports) > 1023
    assert all("-m cli cache-teacher a recipe --data d" in each for each in said)


def test_prometheus_scrapes_the_service_that_compose_starts():
    scrape = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    service = COMPOSE["services"]["service"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert COMPOSE["services"][host] is service
    assert service["ports"][0].endswith(f":{port}")
    assert host in service["environment"]["RETORT_ALLOW_HOSTS"].split()
    ((alerts,),) = (
        each["targets"] for each in scrape["alerting"]["alertmanagers"][0]["static_configs"]
    )
    assert alerts.split(":")[0] in COMPOSE["services"]
    told = yaml.safe_load((DOCKER / "prometheus" / "alertmanager.yml").read_text())
    assert told["route"]["receiver"] in [each["name"] for each in told["receivers"]]
    secret = job["authorization"]["credentials_file"]
    assert secret == service["environment"]["RETORT_TOKEN_FILE"] == "/run/secrets/retort_token"
    assert "retort_token" in COMPOSE["services"]["prometheus"]["secrets"]
    for name in scrape["rule_files"]:
        assert (DOCKER / "prometheus" / name).exists()


def test_alerts_ask_for_metrics_and_labels_that_the_service_has(tmp_path):
    url = f"sqlite:///{tmp_path}/jobs.db"
    with record_job(url, kind="train-student", unit="steps") as recorder:
        recorder.progress(1, 2, {"loss": 0.5})
    text = TestClient(create_app(url), "http://127.0.0.1").get("/metrics").text
    offered = set(re.findall(r"^# TYPE (\w+)", text, flags=re.M))
    offered |= {f"{name}_bucket" for name in offered}
    rules = yaml.safe_load((DOCKER / "prometheus" / "retort.rules.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 6
    for alert in alerts:
        assert set(alert) <= {"alert", "expr", "for", "labels", "annotations"}
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]
        asked = set(re.findall(r"retort_\w+", alert["expr"]))
        assert asked <= offered, alert["alert"]
        assert asked or alert["expr"].startswith('up{job="retort"}')
        for label, value in re.findall(r'(\w+)="(\w+)"', alert["expr"]):
            assert label == "job" or f'{label}="{value}"' in text


@pytest.mark.slow
def test_the_service_images_steps_work_in_an_empty_environment():
    """Every step of service.Dockerfile but the base image: installed, copied, started, stopped."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))  # below no folder that another user may not enter
    try:
        root.chmod(0o755)
        image = Image(root, instructions(DOCKER / "service.Dockerfile"))
        image.build()
        token = root / "token"
        token.write_text("0123456789abcdef" * 2)
        token.chmod(0o444)
        records = root / "records"
        records.mkdir()
        with record_job(f"sqlite:///{records}/jobs.db", kind="train-student", unit="steps"):
            pass
        if image.switches:
            for each in (records, *records.iterdir()):
                os.chown(each, image.user, image.user)
        process = image.start(RETORT_TOKEN_FILE=token, RETORT_DB=f"sqlite:///{records}/jobs.db")
        try:
            address = f"http://127.0.0.1:{image.port}"
            for _ in range(300):
                if image.is_healthy():
                    break
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
            assert httpx.get(f"{address}/livez").json() == {"status": "alive"}
            assert httpx.get(f"{address}/api/v1/jobs").status_code == 401
            bearer = {"Authorization": f"Bearer {token.read_text()}"}
            (job,) = httpx.get(f"{address}/api/v1/jobs", headers=bearer).json()["jobs"]
            assert job["status"] == "succeeded"
            assert "uPlot" in httpx.get(f"{address}/static/uplot/uPlot.iife.min.js").text
            assert httpx.get(address).status_code == 200
        finally:
            process.send_signal(image.stop_signal)
            _, error = process.communicate(timeout=900)
        assert process.returncode in (0, -image.stop_signal), error
        assert "Traceback" not in error
        assert not image.is_healthy()
    finally:
        shutil.rmtree(root)


def interpreter():
    """A Python that the image's user may start too, if there is one: this one or the system's."""
    found = [Path(sys.executable).resolve(), Path("/usr/bin/python3").resolve()]
    return next((each for each in found if each.exists() and open_to_others(each)), found[0])


def open_to_others(path):
    return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


class Image:
    """A Dockerfile's steps, done below a folder instead of in a container."""

    def __init__(self, root, found):
        self.root, self.found = root, found
        self.user = int(last(found, "USER").text.split(":")[0])
        self.stop_signal = signal.Signals[last(found, "STOPSIGNAL").text]
        self.port = free_port()
        self.python = interpreter()
        self.switches = os.geteuid() == 0 and open_to_others(self.python)

    def at(self, text):
        """Paths of the image, below the folder."""
        return re.sub(r"(?<![\w.])/(opt|app|tmp)/", rf"{self.root}/\1/", text)

    def build(self):
        (self.root / "tmp").mkdir()
        for each in self.found:
            if each.word == "COPY":
                sources, target = each.copied
                for source in sources:
                    self.copy(REPOSITORY / source, Path(self.at(target)), into=target.endswith("/"))
            if each.word == "RUN":
                command = self.at(each.text.replace("/app", "/app/"))
                base = f'python() {{ "{self.python}" "$@"; }}; '  # the base image's
                subprocess.run(["sh", "-ec", base + command], check=True)

    @property
    def path(self):
        return f"{self.root}/opt/retort/bin"

    def copy(self, source, target, *, into):
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            return
        target = target / source.name if into else target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    def start(self, **environment):
        """Start ENTRYPOINT with CMD, as USER, with nothing of this environment."""
        argv = last(self.found, "ENTRYPOINT").argv + last(self.found, "CMD").argv
        given = [self.at(each) if each != "8000" else str(self.port) for each in argv]
        return subprocess.Popen(
            given,
            env={"PATH": self.path, **{name: str(value) for name, value in environment.items()}},
            cwd=self.root / "app",
            stderr=subprocess.PIPE,
            text=True,
            **({"user": self.user, "group": self.user} if self.switches else {}),
        )

    def is_healthy(self):
        """Whether HEALTHCHECK's command says so."""
        argv = last(self.found, "HEALTHCHECK").argv
        command = [each.replace(":8000/", f":{self.port}/") for each in argv]
        done = subprocess.run(command, env={"PATH": self.path}, capture_output=True, check=False)
        return done.returncode == 0
