"""The errors a user can cause or meet, each with the exit status the command line gives it."""


class UserError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what to do."""

    exit_code = 2


class SettingsError(UserError):
    """The configuration is not valid. Found before any data is read."""


class DataError(UserError):
    """A data file is missing, corrupt or disagrees with the configuration."""


class DivergenceError(UserError):
    """Training produced a loss or metric that is not a number."""

    exit_code = 1


class ModelError(UserError):
    """A model that others wrote stopped in its own code."""

    exit_code = 1


class StorageError(UserError):
    """A file cannot be written or read: the disk is full or read-only, or permission lacks."""

    exit_code = 1


class EngineError(UserError):
    """What runs the processes, such as a Ray cluster, lost them."""

    exit_code = 1


class DeviceError(UserError):
    """A GPU or its driver failed."""

    exit_code = 1


class MemoryShortage(UserError):
    """What was asked for does not fit into memory."""

    exit_code = 1


class Terminated(BaseException):
    """SIGTERM asked the process to end; no Exception, as KeyboardInterrupt is none."""

    exit_code = 143
