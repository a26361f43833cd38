"""Which Ray a job uses, and what it says where there is a trap; Ray itself is mostly faked."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import ray

from jobs.cli import ray_cluster
from jobs.cli.processes import command_line
from jobs.cli.ray_cluster import (
    ROOT,
    connect,
    find_address,
    refuse_relative,
    refuse_unsafe_settings,
)


@pytest.fixture
def listener():
    """host:port where something answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.fixture
def calls(monkeypatch):
    """What `connect` asks of Ray."""
    asked = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        ray, "init", lambda **options: asked.append({"env": dict(os.environ), **options})
    )
    monkeypatch.setattr(ray, "shutdown", lambda: asked.append("shutdown"))
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/nonexistent")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")  # so that none is added for the session
    return asked


def write_address(directory, address) -> dict[str, str]:
    (directory / "ray").mkdir()
    (directory / "ray" / "ray_current_cluster").write_text(address)
    return {"RAY_TMPDIR": str(directory)}


@pytest.mark.parametrize(
    ("path", "is_refused"),
    [
        pytest.param("clips.parquet", True, id="relative"),
        pytest.param("../clips", True, id="relative upwards"),
        pytest.param("/data/clips", False, id="absolute"),
        pytest.param("s3://bucket/clips", False, id="URI"),
    ],
)
def test_relative_paths_are_refused_in_a_copy_of_the_working_directory(
    tmp_path, monkeypatch, path, is_refused
):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refuse_relative(path, "--input")
    monkeypatch.chdir(copy)
    if is_refused:
        with pytest.raises(ValueError, match=rf"--input {path} is relative.*absolute path"):
            refuse_relative(path, "--input")
    else:
        refuse_relative(path, "--input")


@pytest.mark.parametrize("name", ray_cluster._UNSAFE_SETTINGS)
def test_settings_that_let_files_run_code_are_refused(name):
    with pytest.raises(ValueError, match=f"unset {name}"):
        refuse_unsafe_settings({name: "1"})
    refuse_unsafe_settings({name: "0"})
    refuse_unsafe_settings({})


def test_without_a_cluster_ray_is_private(tmp_path):
    assert find_address({"RAY_TMPDIR": str(tmp_path)}) is None
    assert find_address({"RAY_ADDRESS": "local"}) is None


def test_the_cluster_of_ray_start_is_found_if_it_still_runs(tmp_path, listener):
    assert find_address(write_address(tmp_path, listener)) == "auto"


def test_the_note_of_a_dead_ray_start_is_ignored(tmp_path, silent_address):
    assert find_address(write_address(tmp_path, silent_address)) is None


def test_a_named_cluster_is_used_if_it_answers(listener, silent_address):
    assert find_address({"RAY_ADDRESS": listener}) == listener
    assert find_address({"RAY_ADDRESS": "auto"}) == "auto"
    with pytest.raises(ConnectionError, match=f"RAY_ADDRESS={silent_address}.*ray start --head"):
        find_address({"RAY_ADDRESS": silent_address})


@pytest.mark.parametrize("address", ["ray://head:10001", "http://127.0.0.1:8265", "head"])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(ValueError, match=f"RAY_ADDRESS={address}"):
        find_address({"RAY_ADDRESS": address})


def test_workers_can_import_this_repository(monkeypatch, calls):
    monkeypatch.setenv("PYTHONPATH", "/more")
    with connect():
        pass
    assert calls[0]["address"] == "local"
    assert calls[0]["env"]["PYTHONPATH"] == f"{ROOT}:/more"  # which its workers inherit
    assert "runtime_env" not in calls[0]  # else its first workers would wait in vain
    assert os.environ["PYTHONPATH"] == "/more"
    assert (ROOT / "pipeline" / "schema.py").exists()


def test_workers_of_a_running_cluster_can_import_this_repository(monkeypatch, calls, listener):
    monkeypatch.setenv("PYTHONPATH", "/more")
    monkeypatch.setenv("RAY_ADDRESS", listener)
    with connect():
        pass
    assert calls[0]["runtime_env"] == {"env_vars": {"PYTHONPATH": f"{ROOT}:/more"}}


def test_a_python_path_that_was_submitted_with_the_job_is_left_alone(monkeypatch, calls, listener):
    submitted = {"runtime_env": {"env_vars": {"PYTHONPATH": "/theirs"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    monkeypatch.setenv("RAY_ADDRESS", listener)
    with connect():
        pass
    assert (calls[0]["address"], calls[0]["runtime_env"]) == (listener, {})


def test_a_cluster_that_wants_a_token_is_explained(monkeypatch, calls, listener):
    def init(**options):
        raise ConnectionError("Failed to connect") from RuntimeError("InvalidAuthToken: missing")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", listener)
    with pytest.raises(ConnectionError, match="export RAY_AUTH_MODE=token"), connect():
        pass
    assert calls == ["shutdown"]


def test_a_ray_that_is_connected_already_is_used_and_stays(monkeypatch, calls):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with connect():
        pass
    assert calls == []


@pytest.fixture
def ctrl_c_arrives():
    """Python's own handler, also where the tests are a shell's background job, which ignores it."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("ctrl_c_arrives")
@pytest.mark.parametrize(
    ("stop", "code"),
    [
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGTERM), 143, id="SIGTERM"),
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGINT), 130, id="Ctrl-C"),
        pytest.param(lambda: sys.exit(3), 3, id="an exit of the job's own"),
    ],
)
def test_signals_leave_the_job_in_order(calls, stop, code):
    earlier = signal.getsignal(signal.SIGTERM)

    def job():
        with connect():
            stop()
            time.sleep(5)  # the signal comes meanwhile

    with pytest.raises(SystemExit) as end:
        job()
    assert end.value.code == code
    assert calls[-1] == "shutdown"
    assert signal.getsignal(signal.SIGTERM) is earlier


def wait_for_name(pid):
    """A process has no command line for a moment after it was started."""
    while not command_line(pid):
        time.sleep(0.01)


@pytest.mark.usefixtures("calls")
def test_a_worker_that_hangs_in_its_exit_is_killed_after_the_end(monkeypatch):
    monkeypatch.setattr("jobs.cli.ray_cluster._END_TIMEOUT_S", 0.1)
    program = "import time; time.sleep(60)"
    with subprocess.Popen(["ray::IDLE", "-c", program], executable=sys.executable) as other:
        wait_for_name(other.pid)
        with connect():
            hanging = subprocess.Popen(["ray::IDLE", "-c", program], executable=sys.executable)
            wait_for_name(hanging.pid)
        assert hanging.wait(5) == -signal.SIGKILL
        assert other.poll() is None  # not of the Ray that ended
        other.kill()


@pytest.mark.ray
def test_a_private_ray_leaves_no_token_file_and_no_process(tmp_path):
    program = """if True:
        import os, signal, ray
        from jobs.cli.ray_cluster import connect
        with connect():
            where = ray.remote(num_cpus=0)(lambda: __import__("pipeline").__file__)
            print(ray.get(where.remote()), os.environ["RAY_AUTH_MODE"], flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            ray.get(ray.remote(num_cpus=0)(lambda: __import__("time").sleep(60)).remote())
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = kept | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    job = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert job.returncode == 143, job.stderr
    assert job.stdout.split() == [str(ROOT / "pipeline" / "__init__.py"), "token"]
    assert not (tmp_path / ".ray").exists()
