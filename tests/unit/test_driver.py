import subprocess
import sys

from autotune.driver import is_alive, this_driver


def test_this_process_is_no_other_driver() -> None:
    assert not is_alive(this_driver())


def test_another_live_process_is_a_driver_until_it_ends() -> None:
    code = "from autotune.driver import this_driver; print(this_driver(), flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    identity = process.stdout.readline().strip()
    assert is_alive(identity)
    host, pid, started = identity.rsplit(":", 2)
    assert not is_alive(f"{host}:{pid}:{int(started) + 1}"), "a later process with the same id is another one"
    process.communicate("\n")
    assert not is_alive(identity)


def test_other_hosts_cannot_be_seen() -> None:
    assert not is_alive("elsewhere:1:5")
