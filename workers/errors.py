"""Measurement errors; all derive from ``search_spaces.errors.AutotuneError``."""

from search_spaces.errors import AutotuneError


class TaskError(AutotuneError):
    """An unknown task, a wrong task parameter, or missing task data."""


class BackendError(AutotuneError):
    """A backend that does not exist or cannot run on this hardware."""


class CalibrationError(AutotuneError):
    """Calibration data that yields no range."""


class PoolError(AutotuneError):
    """Workers that cannot be started, or a cluster that cannot be reached."""


class ClusterLostError(PoolError):
    """A cluster that is gone or does not respond; another one can replace it."""


class WindowError(AutotuneError):
    """A record of watched layers that cannot be read or added."""
