import os
import subprocess
import sys

from autotune.search.process_identity import is_gone, this_driver


def test_this_process_is_there() -> None:
    assert not is_gone(this_driver())


def test_another_process_is_there_until_it_ends() -> None:
    code = "from autotune.search.process_identity import this_driver; print(this_driver(), flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        identity = process.stdout.readline().strip()
        assert not is_gone(identity)
        host, pid, started, space = identity.split(":")
        assert is_gone(f"{host}:{pid}:{int(started) + 1}:{space}"), "a later process with the same id is another one"
        assert not is_gone(f"{host}:{pid}:{int(started) + 1}:elsewhere"), "ids of another container cannot be seen"
        process.stdin.write("\n")
        process.stdin.flush()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its pipes close a moment before it has ended
        assert is_gone(identity), "a process that has ended is gone, whether or not its parent has noticed"
    assert is_gone(identity)


def test_other_hosts_cannot_be_seen() -> None:
    assert not is_gone("elsewhere:1:5:6")
