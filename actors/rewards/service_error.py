"""What the reward service answers in place of a reward."""


class ServiceError(Exception):
    """An answer that is not a reward: HTTP status, stable code, message, seconds until a new try makes sense."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(status, code, message, retry_after_s)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s

    def __str__(self) -> str:
        return self.message
