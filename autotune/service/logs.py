"""Logs of the service: a line of text for people or a JSON object for programs, with the job's id."""

import json
import logging
import sys
from datetime import UTC, datetime

#: Optional fields of a record that identify its subject.
_FIELDS = ("job", "trial")


def configure(*, as_json: bool, job_id: str | None = None) -> None:
    """Write this process's logs to standard error; with ``job_id``, label them with that job."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    handler.addFilter(_About(job_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("autotune").setLevel(logging.INFO)


class _About(logging.Filter):
    """Adds the job to records that do not name one."""

    def __init__(self, job_id: str | None) -> None:
        super().__init__()
        self._job_id = job_id

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "job") and self._job_id:
            record.job = self._job_id
        return True


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        about = "".join(f" {name}={value}" for name, value in _about(record).items())
        line = f"{_time(record):%Y-%m-%d %H:%M:%S} {record.levelname.lower()}{about} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        data = {
            "time": _time(record).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_about(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(data)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _about(record: logging.LogRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
