"""Whoever asks for a device gets it before those that ask later."""

import threading
from pathlib import Path

import pytest

from workers.progress import Step
from workers.timing import device_lock
from workers.timing.device_lock import DeviceLock

#: Seconds that a busy machine may take for what takes none.
PATIENCE_S = 60.0


class Asker:
    """A thread that asks for the device, notes in ``order`` that it has it, and releases it."""

    def __init__(self, kind: str, order: list[str]) -> None:
        self._kind, self._order = kind, order
        #: Set once it waits or has the device.
        self.asked = threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        with getattr(DeviceLock("cpu", self._waits), self._kind)():
            self._order.append(self._kind)
        self.asked.set()

    def _waits(self, step: Step) -> None:
        self.asked.set()


def test_whoever_asks_while_another_one_waits_has_the_device_after_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    order: list[str] = []
    askers = []
    with DeviceLock("cpu").shared():
        # The second one could share the device at once if the first one did not wait.
        for kind in ("exclusive", "shared"):
            askers.append(Asker(kind, order))
            assert askers[-1].asked.wait(PATIENCE_S)
        assert order == [], "both wait"
    for asker in askers:
        asker.thread.join(PATIENCE_S)
    assert order == ["exclusive", "shared"]
