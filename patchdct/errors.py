"""The one exception for mistakes in a user's input."""


class UserError(ValueError):
    """A data set, file, config key or argument that cannot be used as given.

    The message is complete: it names the file or key and the way out. Command-line tools print it without a
    traceback and exit with status 1 (see :func:`patchdct.cli.run`).
    """
