"""Reader of a YAML file as a tree of plain values; a mistake is one sentence with its line."""

from pathlib import Path
from typing import Any

import yaml

from fgaif_ray.errors import UserError


def read_tree(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file. Aliases become values of their own.

    Raises:
        UserError: the file cannot be read, is not UTF-8 text or not YAML, holds no sections, or gives a key twice.
    """
    text = _read_text(path)
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            _refuse_repeated_keys(root, "", str(path), set())
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {describe_yaml_error(error)}.") from error
    except ValueError as error:  # such as the date 2026-13-45
        raise UserError(f"{path} is not valid YAML: {error}; quote the value.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no sections; see configs/shapes.yaml for an example.")
    try:
        unshared: dict[str, Any] = _unshared(tree)
    except RecursionError as error:
        raise UserError(f"{path} has an alias that contains itself: write the value out.") from error
    return unshared


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """What is wrong and where, without a full stop."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or problem is None:
        return str(error).splitlines()[0].rstrip(".")
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    if r"'\t'" in problem:
        return f"{where} has a tab where YAML takes spaces only: indent with spaces"
    return f"{where}: {problem}"


def _read_text(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read the configuration {path}: {error.strerror}; give an existing file with --config."
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}): save the configuration as UTF-8.") from error
    if "\0" in text:
        raise UserError(f"{path} is not a text file: give a YAML file with --config.")
    return text


def _refuse_repeated_keys(node: yaml.Node, where: str, path: str, seen: set[int]) -> None:
    """Refuse repeated keys, of which YAML's own loader silently takes the last one."""
    if id(node) in seen:  # behind an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, where, path, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[Any, int] = {}
        for key, value in node.value:
            name = f"{where}{key.value}"
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, line) != line:
                raise UserError(f"{path} gives {name} twice, in lines {first[key.value]} and {line}: merge the two.")
            _refuse_repeated_keys(value, f"{name}.", path, seen)


def _unshared(node: Any) -> Any:
    """A copy in which aliases are values of their own: a change of one section does not change the others."""
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_unshared(value) for value in node]
    return node
