"""The errors a user sees: one line that says what is wrong, where, and how to mend it; and the exit code of each kind."""


class MtnlgError(Exception):
    """Base of every error that is the user's, the data's or the machine's, not a fault in this code.

    what: the fault in a few words; where: file, key or step; cure: a command or a change that mends it.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", cure: str = ""):
        super().__init__(what)
        self.what, self.where, self.cure = what, where, cure

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        cure = f". Try: {self.cure}" if self.cure else ""
        return f"{self.what}{where}{cure}"


class ConfigError(MtnlgError):
    """A key, a value or a command line that cannot be honoured."""

    exit_code = 2


class DataError(MtnlgError):
    """Data or a checkpoint that is damaged, or that does not fit what reads it."""

    exit_code = 65


class MissingInput(MtnlgError):
    """A file or folder that should be read is not there."""

    exit_code = 66


class CannotWrite(MtnlgError):
    """An output cannot be created, or belongs to somebody else."""

    exit_code = 73


class NumericalError(MtnlgError):
    """Steps without a finite loss or gradient, too many one after the other."""

    exit_code = 16


class ReplayError(MtnlgError):
    """The same step gave other numbers the second time, or copies of one array differ: a device computes wrongly."""

    exit_code = 17


class WorkerLost(MtnlgError):
    """A process of the job is gone, or does not answer any more."""

    exit_code = 69


class Stuck(MtnlgError):
    """A phase of the run took longer than it may."""

    exit_code = 74


class TemporaryFailure(MtnlgError):
    """Something outside failed (a full disk, say): free the cause and start again, nothing saved is lost."""

    exit_code = 75
