"""The upload of folders to the Hugging Face Hub, or to a server that speaks its protocol."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.publish.repositories import HubRepository

TOKEN_VARIABLE: Final = "HF_TOKEN"
DATA_FILES: Final = "data/*"
"""Files of a data set: those of an earlier upload that are not there any more are removed."""


def read_token() -> str:
    """The token of the Hub, from the environment alone.

    Raises:
        UserError: there is none.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise UserError(f"Set {TOKEN_VARIABLE} to a token of the Hub that may write, or give --dry-run.")
    return token


def upload(repositories: Sequence[HubRepository], folder: Path, *, token: str, private: bool) -> list[str]:
    """Make the repositories where they are not there, and upload a folder into each (``HF_ENDPOINT``, or the Hub).

    Args:
        repositories: in this order.
        folder: holds one for each, named after its stage.
        token: that may write there.
        private: make private ones, whatever the owner's default; those that are there stay as they are.

    Returns:
        The address of each.

    Raises:
        UserError: the server cannot be reached or refuses; what was uploaded before stays, and the same call goes on.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    done: list[str] = []
    for one in repositories:
        try:
            made = api.create_repo(one.name, repo_type=one.repo_type, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder / one.stage,
                repo_type=one.repo_type,
                commit_message="Upload of FGAIF-Ray",
                delete_patterns=DATA_FILES if one.repo_type == "dataset" else None,
            )
        # What the client raises: its own and its transport's errors, and plain ones around single files.
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            raise UserError(_failure(one.name, error, done, token)) from error
        done.append(str(made.url) if hasattr(made, "url") else str(made))
        say(f"export: {one.stage} is at {done[-1]}")
    return done


def _failure(name: str, error: Exception, done: Sequence[str], token: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    words = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    reason = f"status {status}: {words[0]}" if status else words[0]
    kept = f"uploaded so far: {', '.join(done)}" if done else "nothing was uploaded"
    advice = f"check that {TOKEN_VARIABLE} may write there, and " if status in (401, 403) else ""
    return f"{name} could not be uploaded ({reason.replace(token, '***')}); {kept}: {advice}run the same command again."
