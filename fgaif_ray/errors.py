"""Errors that are meant for the person who runs a job."""


class UserError(Exception):
    """Input that a person has to change.

    The message is one clear sentence that says what to do; jobs print it alone, without a traceback, and exit with
    status 2.
    """
