import subprocess
import sys

from autotune.driver import is_gone, this_driver


def test_this_process_is_there() -> None:
    assert not is_gone(this_driver())


def test_another_process_is_there_until_it_ends() -> None:
    code = "from autotune.driver import this_driver; print(this_driver(), flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    identity = process.stdout.readline().strip()
    assert not is_gone(identity)
    host, pid, started, space = identity.split(":")
    assert is_gone(f"{host}:{pid}:{int(started) + 1}:{space}"), "a later process with the same id is another one"
    assert not is_gone(f"{host}:{pid}:{int(started) + 1}:elsewhere"), "ids of another container cannot be seen"
    process.stdin.write("\n")
    process.stdin.flush()
    process.stdout.read()
    assert is_gone(identity), "a process that has ended is gone, whether or not its parent has noticed"
    process.wait()
    assert is_gone(identity)
    process.stdin.close()
    process.stdout.close()


def test_other_hosts_cannot_be_seen() -> None:
    assert not is_gone("elsewhere:1:5:6")
