"""Errors that are meant for the person who runs a job."""


class UserError(Exception):
    """Input that a person has to change.

    The message is one clear sentence that says what to do; jobs print it alone, without a traceback, and exit with
    status 2.
    """


class BrokenFileError(UserError):
    """A file is damaged or missing; ``str`` says which, why, and what to do.

    Example: ``BrokenFileError("runs/a/policy/_manifest.json", "it is not JSON", "remove runs/a/policy")``
    """

    def __init__(self, file: str, reason: str, advice: str) -> None:
        super().__init__(file, reason, advice)  # what pickle calls it with again
        self.file, self.reason, self.advice = file, reason, advice

    def __str__(self) -> str:
        return f"broken: {self.file} ({self.reason}): {self.advice}."


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError behind an exception, also where Ray has wrapped it on its way from a worker."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError):
            return error
        for name in ("cause", "worker_failures"):
            inner = getattr(error, name, None)
            candidates = inner.values() if isinstance(inner, dict) else [inner]
            for candidate in candidates:
                if isinstance(candidate, BaseException) and (found := find_user_error(candidate)) is not None:
                    return found
        error = error.__cause__ or error.__context__
    return None


class ItemError(ValueError):
    """One response cannot be scored; the message says why, `code` is stable and for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class NonFiniteScoreError(ItemError):
    """The reward model's score of a response is NaN or infinite: never a reward."""
