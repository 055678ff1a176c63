"""Options: a flag counts before the environment; no file of the working folder sets any."""


def asked(cli, *arguments, env=None):
    """Which service `jobs ls` asks; nothing listens at any of these ports."""
    error = cli("jobs", "ls", *arguments, check=1, env=env).stderr
    return error.removeprefix("error: ").split(" does not answer")[0]


def test_a_flag_counts_before_the_environment(cli):
    assert "no jobs in the database" in cli("jobs", "ls").stdout, (
        "built in: the records, no service"
    )
    environment = {"RETORT_URL": "http://127.0.0.1:2"}
    assert asked(cli, env=environment) == "http://127.0.0.1:2"
    assert asked(cli, "--url", "http://127.0.0.1:3", env=environment) == "http://127.0.0.1:3"


def test_a_file_in_the_working_folder_names_no_service_to_send_the_token_to(cli, tmp_path):
    (tmp_path / "retort.toml").write_text('[jobs]\nurl = "http://127.0.0.1:1"\n')
    assert "no jobs in the database" in cli("jobs", "ls", env={"RETORT_TOKEN": "t" * 32}).stdout


def test_the_environment_says_where_to_compute_unless_a_flag_does(cli, scans):
    plan = ("plan-cache", "digits", "--data", scans / "train")
    wrong = cli(*plan, check=2, env={"RETORT_DEVICE": "tpu"}).stderr
    assert "tpu" in wrong
    assert "RETORT_DEVICE" in wrong
    checkpoint = ("--set", "teacher.checkpoint=/nowhere.safetensors")  # found out after the device
    flag = cli(*plan, "--device", "cpu", *checkpoint, check=1, env={"RETORT_DEVICE": "tpu"}).stderr
    assert "/nowhere.safetensors" in flag
