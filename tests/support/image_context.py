"""What a Dockerfile says, and which files a build of it is sent."""

import os
import re
from pathlib import Path


def read_instructions(text: str) -> list[tuple[str, str]]:
    """Name and words of each instruction; comments are left out, and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(rest).strip()) for name, *rest in found]


def context_files(folder: Path) -> list[str]:
    """Paths below a folder that are sent to the build: all but those that `.dockerignore` names.

    A pattern is matched with a path and all folders above it, from the top; the last one that matches decides
    (https://docs.docker.com/build/concepts/context/#dockerignore-files).
    """
    ignored = folder / ".dockerignore"
    lines = ignored.read_text().splitlines() if ignored.exists() else []
    patterns = [
        (line.startswith("!"), _pattern(line.lstrip("!")))
        for line in map(str.strip, lines)
        if line and not line.startswith("#")
    ]

    def is_kept(path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        kept = True
        for exception, pattern in patterns:
            if any(pattern.fullmatch(one) for one in above):
                kept = exception
        return kept

    found = []
    for at, folders, files in os.walk(folder):
        here = Path(at).relative_to(folder)
        folders[:] = [name for name in folders if is_kept((here / name).as_posix())]
        found += [(here / name).as_posix() for name in files if is_kept((here / name).as_posix())]
    return sorted(found)


def _pattern(text: str) -> re.Pattern[str]:
    tokens = re.findall(r"\*\*/?|\*|\?|\[[^]]*\]|.", text.strip("/"))
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(special.get(one, one if one.startswith("[") else re.escape(one)) for one in tokens))
