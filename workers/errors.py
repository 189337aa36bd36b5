"""Errors of measuring; all are ``search_spaces.errors.AutotuneError``."""

from search_spaces.errors import AutotuneError


class TaskError(AutotuneError):
    """An unknown task, a wrong task parameter, or data that a task needs and does not find."""


class BackendError(AutotuneError):
    """A backend that does not exist or cannot run on this hardware."""


class CalibrationError(AutotuneError):
    """Calibration data from which no range can be taken."""


class PoolError(AutotuneError):
    """Workers that cannot be started, or a cluster that cannot be reached."""


class ClusterLostError(PoolError):
    """A cluster that is gone or does not answer; another one can take its place."""
