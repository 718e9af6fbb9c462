"""The one exception for mistakes in a user's input."""


class UserError(ValueError):
    """A data set, file, config key or argument that cannot be used as given.

    The message is complete: it names the file or key and the way out. Command-line tools print it without a
    traceback and exit with status 1 (see :func:`pixelmask.cli.run`).

    Raised in a worker process, it is made again by PyTorch's data loader, with the worker's traceback around the
    message; the message alone is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2].strip())
