"""The testbench ends all that it started, however it was interrupted, and nothing else; its mistakes are one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from real_cluster import SCRIPT, Cluster, free_folder, start_time, why_not


def _network(pid: str | int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _networks(folder: Path) -> set[str]:
    """The network namespaces of all processes whose command line or environment names the folder, save the machine's."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in text:
            found.add(_network(process.name))
    return found - {_network(os.getpid()), ""}


def _living_in(networks: set[str]) -> list[str]:
    here = [path.name for path in Path("/proc").glob("[0-9]*") if _network(path.name) in networks]
    return [f"{pid}: {Path(f'/proc/{pid}/cmdline').read_text()!r}" for pid in here if _alive(pid)]


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _pids(cluster: Cluster) -> dict[str, str]:
    return {file.name: file.read_text() for file in (cluster.folder / "pids").iterdir()}


@pytest.mark.slow
def test_up_is_idempotent_and_mends(cluster: Cluster) -> None:
    before = _pids(cluster)
    cluster.testbench("up")
    assert _pids(cluster) == before
    cluster.testbench("node", "node1", "unplug")
    cluster.testbench("node", "node2", "slurmd-kill")
    cluster.testbench("node", "node3", "crash")
    cluster.run(["scontrol", "update", "nodename=node4", "state=down", "reason=test"])
    assert cluster.testbench("status", check=False).returncode == 1
    assert "node3: not running" in cluster.testbench("status", check=False).stdout
    for words, rule in (
        (["node", "node2", "slurmd-kill"], "no slurmd runs there"),
        (["node", "node3", "unplug"], "is not running"),
        (["node", "node3", "slurmd-start"], "is not running"),
        (["node", "node5", "crash"], "none of that name"),
        (["node", "node1", "explode"], "is no action"),
        (["controller", "explode"], "is no action"),
        (["up", "--nodes", "5"], "is up, with other settings"),
    ):
        _one_line([SCRIPT, words[0], "--at", cluster.folder, *words[1:]], rule)
    cluster.testbench("up")
    assert cluster.testbench("status").returncode == 0
    after = _pids(cluster)
    assert {name for name in before if before[name] != after[name]} == {"node3"}
    assert len(cluster.run(["srun", "-N4", "hostname"]).stdout.split()) == 4
    assert cluster.on("node2", ["pgrep", "-c", "-x", "slurmd"]).stdout == "1\n"


@pytest.mark.slow
def test_cluster_beyond_repair_is_replaced(new_bench: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench("--nodes", "2", "--accounting", "no")
    old = _pids(bench)
    os.kill(int(old["ctl"].split()[0]), signal.SIGKILL)  # login host gone: all start anew, the queue is kept
    assert bench.testbench("status", check=False).returncode == 1
    bench.mend()
    assert not set(old.values()) & set(_pids(bench).values())
    for pid, began in map(str.split, old.values()):
        assert start_time(int(pid)) != began or not _alive(pid)
    assert [bench.sbatch("true", "--hold") for _ in range(2)] == ["1", "2"]

    def hopeless(*_: object) -> None:
        raise AssertionError("the queue does not become empty")

    with pytest.warns(UserWarning, match="starts anew"), monkeypatch.context() as patch:
        patch.setattr(bench, "wait_for", hopeless)
        bench.mend()
    assert bench.nodes == ["node1", "node2"]
    assert bench.sbatch("true") == "1"


@pytest.mark.slow
def test_down_ends_its_own_processes_only_and_keeps_the_queue(
    cluster: Cluster, new_bench: Callable[..., Cluster]
) -> None:
    other = new_bench("--nodes", "2")  # side by side with `cluster`
    untouched, bystander = _pids(cluster), subprocess.Popen(["sleep", "300"])
    try:
        waiting = other.sbatch("true", "--hold")
        done = other.sbatch("true")
        other.wait_for_state(done, "COMPLETED")
        running = other.sbatch("srun sleep 600", "-N2")
        other.wait_for_state(running, "RUNNING")
        assert _queue(cluster) == []
        networks = _networks(other.folder)
        assert len(networks) == 3
        assert len(_living_in(networks)) > 12
        other.testbench("down")
        assert _living_in(networks) == []
        assert bystander.poll() is None
        assert _pids(cluster) == untouched
        assert cluster.testbench("status").returncode == 0
        other.testbench("up")
        assert waiting in _queue(other)
        assert other.run(["sacct", "-n", "-X", "-P", "-j", done, "-o", "State"]).stdout == "COMPLETED\n"
        other.purge()
        assert not other.folder.exists()
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.slow
def test_settings_may_change_while_it_is_down_and_two_may_start_it(new_bench: Callable[..., Cluster]) -> None:
    bench = new_bench("--nodes", "3", "--accounting", "no")
    bench.testbench("down")
    options = ["--nodes", "2", "--gpus", "0", "--slurm-conf", "MaxArraySize=7"]
    both = [subprocess.Popen([SCRIPT, "up", "--at", bench.folder, *options], stderr=subprocess.PIPE) for _ in range(2)]
    for up in both:
        told = up.communicate(timeout=240)[1]
        assert up.returncode == 0, told
    assert bench.nodes == ["node1", "node2"]
    assert bench.run(["srun", "-N2", "hostname"]).stdout.split() != []
    _one_line([SCRIPT, "up", "--at", bench.folder, "--slurm-conf", "MaxArraySize=8"], "other settings: MaxArraySize=8")


def _queue(cluster: Cluster) -> list[str]:
    return cluster.run(["squeue", "-h", "-o", "%i"]).stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "stop"),
    [
        ("ctl", signal.SIGKILL),
        ("munged", signal.SIGINT),
        ("mariadbd", signal.SIGKILL),
        ("slurmctld", signal.SIGTERM),
        ("node1", signal.SIGKILL),
        ("node4", signal.SIGINT),
    ],
)
def test_interrupted_up_leaves_nothing_that_down_cannot_end(
    new_bench: Callable[..., Cluster], moment: str, stop: signal.Signals
) -> None:
    folder = free_folder()
    up = subprocess.Popen([SCRIPT, "up", "--at", folder], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while not (folder / "pids" / moment).exists() and time.monotonic() < until:
            time.sleep(0.001)
        (os.killpg if stop == signal.SIGINT else os.kill)(up.pid, stop)  # ^C reaches all of a group
        told = up.communicate(timeout=60)[1]
        assert up.returncode == (-stop if stop == signal.SIGKILL else 130), told
        while not (networks := _networks(folder)) and time.monotonic() < until:
            time.sleep(0.01)  # the login host was born a moment ago
        assert networks
    finally:
        down = subprocess.run([SCRIPT, "purge", "--at", folder], capture_output=True, text=True, timeout=120)
    assert down.returncode == 0, down.stderr
    assert _living_in(networks) == []
    assert not folder.exists()


@pytest.mark.slow
def test_line_that_slurm_refuses_is_named(new_bench: Callable[..., Cluster]) -> None:
    with pytest.raises(AssertionError) as wrong:
        new_bench("--nodes", "1", "--accounting", "no", "--slurm-conf", "SlurmdTimeOut2=5")
    assert "error: slurmctld has ended" in str(wrong.value)
    assert "SlurmdTimeOut2" in str(wrong.value)


def _one_line(words: list[str | Path], rule: str, code: int = 2) -> None:
    answer = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60)
    assert answer.returncode == code, answer.stderr
    assert answer.stdout == ""
    assert re.fullmatch(r"error: [^\n]+: [^\n]+\. Fix: [^\n]+\n", answer.stderr), answer.stderr
    assert rule in answer.stderr


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["flying"], "is no command"),
        (["up", "--nodes", "0"], "1 to 200"),
        (["up", "--nodes", "4x"], "whole number"),
        (["up", "--nodes", "99999999999999999999"], "too large"),
        (["up", "--nodes"], "needs a value"),
        (["up", "--gpus", "65"], "0 to 64"),
        (["up", "--cpus", "0"], "1 or more"),
        (["up", "--accounting", "maybe"], "yes or no"),
        (["up", "--slurm-conf", "SlurmdTimeout"], "KEY=VALUE"),
        (["up", "--slurm-conf", "A=1\nB=2"], "KEY=VALUE"),
        (["up", "--slurm-conf", "NodeName=x"], "KEY=VALUE"),
        (["up", "--slurm-conf", "=x"], "KEY=VALUE"),
        (["up", "--bogus"], "is no option"),
        (["up", "stray"], "is no option"),
        (["status", "--at", "/dev/shm/there is none"], "such characters"),
        (["status", "--at", "/"], "not shared"),
        (["status", "--at", "/dev/shm/there-is-none"], "no testbench lives there"),
        (["exec", "--at", "/dev/shm/there-is-none", "true"], "no testbench lives there"),
    ],
)
def test_mistakes_are_one_line(words: list[str], rule: str) -> None:
    _one_line([SCRIPT, *words], rule)


def test_rumpun_testbench_is_the_script(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main())"]
    _one_line([*command, "testbench", "status", "--at", tmp_path], "no testbench lives there")
    _one_line([*command, "testbench", "up", "--at", tmp_path, "--slurm-conf", "A=1", "--slurm-conf", "B"], "KEY=VALUE")
    told = subprocess.run([*command, "testbench", "--help"], capture_output=True, text=True, timeout=60).stdout
    commands = set(re.findall(r"^  ([a-z]+)  ", told, flags=re.MULTILINE))
    usage = subprocess.run([SCRIPT, "help"], capture_output=True, text=True, timeout=60).stdout
    assert commands == set(re.findall(r"^  testbench ([a-z]+)", usage, flags=re.MULTILINE))


def test_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    for command in ("status", "purge"):
        _one_line([SCRIPT, command, "--at", tmp_path], "no testbench lives there")
    subprocess.run([SCRIPT, "down", "--at", tmp_path], check=True)
    if not why_not():
        _one_line([SCRIPT, "up", "--at", tmp_path], "holds other things")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_folder_of_a_start_that_was_killed_at_once_serves_again(tmp_path: Path) -> None:
    if lacks := why_not():
        pytest.skip(lacks)
    bench = tmp_path / "bench"
    (bench / "etc.new.4711").mkdir(parents=True)
    try:
        up = [SCRIPT, "up", "--at", bench, "--nodes", "1", "--accounting", "no"]
        answer = subprocess.run(up, capture_output=True, text=True, timeout=240)
        assert answer.returncode == 0, answer.stderr
    finally:
        subprocess.run([SCRIPT, "purge", "--at", bench], capture_output=True, timeout=120, check=True)


def test_folder_of_someone_else_is_not_believed(tmp_path: Path) -> None:
    if lacks := why_not():
        pytest.skip(lacks)
    theirs, trap = tmp_path / "bench", tmp_path / "trap"
    (theirs / "etc").mkdir(parents=True)
    (theirs / "etc" / "settings").write_text(f"GPUS=a[$(touch {trap})]\nNODES=a[$(touch {trap})]\n")
    os.chown(theirs, 65534, 65534)
    for command in ("status", "env", "exec", "down", "purge"):
        _one_line([SCRIPT, command, "--at", theirs], "belongs to someone else")
    _one_line([SCRIPT, "up", "--at", theirs], "not a folder of yours")
    assert not trap.exists()
    assert (theirs / "etc" / "settings").exists()


def test_what_the_machine_lacks_is_one_line(tmp_path: Path) -> None:
    if lacks := why_not():
        pytest.skip(lacks)
    tmp_path.chmod(0o777)
    _one_line(
        ["setpriv", "--reuid", "65534", "--clear-groups", SCRIPT, "up", "--at", "/dev/shm/there-is-none"], "needs root"
    )
    _one_line(["setpriv", "--bounding-set", "-sys_admin", SCRIPT, "up", "--at", tmp_path / "x"], "no namespaces")
    (tmp_path / "nothing").touch()
    hide = f'mount --bind {tmp_path}/nothing "$(readlink -f "$(command -v slurmctld)")"; exec "$@"'
    words = ["unshare", "--mount", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", hide, "sh", SCRIPT, "up"]
    _one_line([*words, "--at", tmp_path / "x"], "sudo apt-get install --no-install-recommends slurmctld ")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("mended_by", ["update", "nothing"])
def test_install_asks_for_what_is_missing_and_no_daemon_starts(tmp_path: Path, mended_by: str) -> None:
    if lacks := why_not():
        pytest.skip(lacks)
    policy, log = "/usr/sbin/policy-rc.d", tmp_path / "calls"
    fakes = {
        "dpkg-query": "case $* in *' munge' | *' procps') echo ok installed ;; *) exit 1 ;; esac",
        "apt-get": f'echo "$* $(sh {policy}; echo $?)" >> {log}\n'
        f"case $1 in update) touch {tmp_path}/update ;; *) [ -e {tmp_path}/{mended_by} ] || {{ echo E: no such package; exit 100; }} ;; esac",
    }
    for name, script in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    # our own /usr/sbin, over the machine's, seen by nobody else
    play = f"""cd {tmp_path} && mkdir layer && mount -t tmpfs layer layer && mkdir layer/new layer/work || exit 99
        mount -t overlay sbin -o lowerdir=/usr/sbin,upperdir=layer/new,workdir=layer/work /usr/sbin || exit 99
        rm -f {policy}; mv dpkg-query apt-get /usr/sbin/; {SCRIPT} install; echo $? $(ls {policy} 2>/dev/null)"""
    answer = subprocess.run(["unshare", "--mount", "sh", "-c", play], capture_output=True, text=True, timeout=60)
    if answer.returncode == 99:
        pytest.skip("no overlay mounts here")
    calls = log.read_text().splitlines()
    missing = "slurmctld slurmd slurm-client iproute2 util-linux slurmdbd mariadb-server-core mariadb-client-core"
    install = f"install -y -q -o DPkg::Lock::Timeout=120 --no-install-recommends {missing} 101"
    assert calls == [install, "update -q 101", install]  # 101: what keeps apt from starting a daemon
    assert answer.stdout == {"update": "0\n", "nothing": "2\n"}[mended_by]  # and it is gone in the end
    assert f"installing {missing}" in answer.stderr
    assert ("error: apt-get install: failed: E: no such package. Fix: read " in answer.stderr) == (
        mended_by == "nothing"
    )
