"""What is raised for data and files that the user gave; the command line prints it."""


class DataError(ValueError):
    """What the user gave cannot be used; the message is one sentence that says why."""
