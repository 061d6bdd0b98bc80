"""The errors that a user can meet, as one tree.

``DifftiltError``
 ├── ``InputError``       an argument is out of range or of the wrong kind (also a ``ValueError``)
 ├── ``RewardError``      the reward returned, or raised, something unusable (also a ``ValueError``)
 ├── ``CheckpointError``  a file or run folder cannot be read, written or used (also an ``OSError``)
 ├── ``TrainingError``    a quantity of the training became non-finite (also a ``RuntimeError``)
 └── ``MissingPackage``   an optional package is not installed (also an ``ImportError``)

Every message is one sentence that says what is wrong, where, and what to do.
"""


class DifftiltError(Exception):
    """Any error that difftilt raises on purpose."""


class InputError(DifftiltError, ValueError):
    """An argument is out of range or of the wrong kind."""


class RewardError(DifftiltError, ValueError):
    """The reward returned, or raised, something unusable."""


class CheckpointError(DifftiltError, OSError):
    """A checkpoint or run folder cannot be read, written or does not fit this run."""


class TrainingError(DifftiltError, RuntimeError):
    """A quantity of the training became non-finite."""


class MissingPackage(DifftiltError, ImportError):
    """An optional package is not installed; the message holds the ``pip install`` line."""


def require(package: str, extra: str):
    """Import ``package`` or say which extra brings it.

    Raises:
        MissingPackage: the package is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.split(".")[0]:
            raise
        raise MissingPackage(
            f"{package!r} is not installed; run: pip install 'difftilt[{extra}]'"
        ) from None
