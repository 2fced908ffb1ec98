"""The commands in the documentation: their options, keys and files are there, and each is run by a test or marked."""

import ast
import importlib
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.documented_commands import (
    PAGES,
    DocumentedCommand,
    all_commands,
    blocks_in,
    inline_code,
    makefile_recipes,
    sources_of_tests,
)
from support.paths import ROOT
from support.reward_helpers import CHECKPOINT

from fgaif_ray.config import load_config
from jobs.cli import SUMMARIES, main
from scripts.docs.commands import load_commands
from scripts.docs.configuration import Key, walk

NEEDS = {"GPU", "cloud", "key", "network", "another program"}
"""What a command may be marked with."""
SHELL = {"cp", "cd"}
"""Programs of every machine."""
GENERIC = {"COMMAND", "NAME"}
"""Stand for any command."""
YOURS = {"my.yaml", "FILE"}
"""Configurations that a person writes."""
FOLDERS = ("benchmarks/", "configs/", "deploy/", "docs/", "examples/", "scripts/", "tests/")
MODELS = ("policy.model", "label.verifier.model", "rewards.backbone")
MAINTENANCE = {
    *("setup", "test", "test-fast", "proofs", "lint", "format", "lock", "check-pythons"),
    *("audit-deps", "sbom", "docs", "screenshots", "release", "clean"),
}
"""Targets for those who change the code, which continuous integration and the tests of `scripts/` run."""

COMMANDS = all_commands()


def job_words(command: DocumentedCommand) -> tuple[str, ...]:
    """The words of `fgaif` in a command, whichever way it is called; empty where it calls no job."""
    words = command.words
    if words[0] == "ray" and "--" in words:
        words = words[words.index("--") + 1 :]
    if words[0] == "fgaif":
        return words[1:]
    if words[1:2] == ("-m",) and len(words) > 2 and words[2].startswith("jobs."):
        return (words[2].removeprefix("jobs.").replace("_", "-"), *words[3:])
    return ()


def chosen(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Name of the command with its subcommand, and what comes after it."""
    commands = load_commands()
    if len(words) > 1 and f"{words[0]} {words[1]}" in commands:
        return f"{words[0]} {words[1]}", words[2:]
    return words[0], words[1:]


def values_of(option: str, words: tuple[str, ...]) -> list[str]:
    return [value for word, value in pairwise(words) if word == option]


JOBS = [command for command in COMMANDS if (words := job_words(command)) and words[0] not in (*GENERIC, "--help")]
WHOLE = [command for command in JOBS if command.in_block]


@cache
def keys() -> list[Key]:
    return list(walk())


def is_key(path: str) -> bool:
    """Whether it is a key, a section, or an entry of a key that holds several values by name."""
    parts = path.split(".")
    for key in keys():
        own = key.path.split(".")
        shared = min(len(own), len(parts))
        same = all(one in ("TYPE", other) for one, other in zip(own, parts, strict=False))
        if same and (shared == len(parts) or (shared == len(own) and " by " in key.kind)):
            return True
    return False


def test_commands_are_found_in_every_kind_of_place() -> None:
    found = [command.words for command in COMMANDS if command.page == "docs/operations.md"]
    assert any(words[:2] == ("fgaif", "plan") and len(words) > 15 for words in found)  # with $ROLES
    assert any(words[:3] == ("ray", "job", "submit") and "jobs.pipeline" in words for words in found)
    assert len(WHOLE) > 30 and len(JOBS) - len(WHOLE) > 30


def refused(command: DocumentedCommand) -> str:
    """What the program says to a command line; empty where it takes it."""
    name, rest = chosen(job_words(command))
    try:
        load_commands()[name].make_context(name, [word for word in rest if word != "..."])
    except Exception as error:
        return f"{command}: {error}"
    return ""


def test_command_lines_are_such_that_the_program_takes_them() -> None:
    assert list(filter(None, map(refused, WHOLE))) == []


def test_a_command_in_a_sentence_has_the_options_that_it_names() -> None:
    wrong = []
    for command in (command for command in JOBS if not command.in_block):
        name, rest = chosen(job_words(command))
        known = {option for parameter in load_commands()[name].params for option in parameter.opts} | {"--help"}
        wrong += [f"{command}: {word}" for word in rest if word.startswith("--") and word not in known]
    assert wrong == []


def test_keys_on_command_lines_are_keys() -> None:
    changes = [(command, change) for command in JOBS for change in values_of("--set", job_words(command))]
    assert len(changes) > 20
    assert [f"{command}: {change}" for command, change in changes if not is_key(change.partition("=")[0])] == []


def test_configurations_are_valid_with_what_is_changed_in_them() -> None:
    files = [
        (file, values_of("--set", job_words(command)))
        for command in JOBS
        for file in values_of("--config", job_words(command))
        if file not in YOURS and not file.startswith("runs/")  # which a command before it writes
    ]
    assert len(files) > 20
    for file, changes in files:
        load_config(ROOT / file, changes)


def test_the_files_that_they_name_are_there() -> None:
    missing = []
    for command in COMMANDS:
        paths = [path for word in command.words for path in re.findall(r"[\w./-]+", word) if path.startswith(FOLDERS)]
        missing += [f"{command}: {path}" for path in paths if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_keys_in_sentences_are_keys(page: str) -> None:
    sections = {key.path.partition(".")[0] for key in keys()}
    pattern = re.compile(rf"(?:--set )?((?:{'|'.join(sections)})(?:\.[a-z_]+)+)(?:[:=].*)?")
    files = (".html", ".json", ".jsonl", ".yaml", ".md", ".py", ".partial")
    theirs = {"data.answer_key", "data.label_key"}  # of EasyR1 and OpenRLHF
    wrong = []
    for line, code in inline_code(page):
        found = pattern.fullmatch(code)
        if found and not found[1].endswith(files) and found[1] not in theirs and not is_key(found[1]):
            wrong.append(f"{page}:{line}: {found[1]}")
    assert wrong == []


def test_targets_are_in_the_makefile_and_take_what_is_passed_on() -> None:
    recipes, wrong = makefile_recipes(), []
    for command in (command for command in COMMANDS if command.words[0] == "make"):
        targets = [word for word in command.words[1:] if "=" not in word and not word.startswith(("-", "."))]
        wrong += [f"{command}: {target}" for target in targets if target not in recipes]
        modules = re.findall(r"-m (benchmarks\.\w+)", "".join(recipes.get(target, "") for target in targets))
        passed_on = " ".join(word.removeprefix("ARGS=") for word in command.words if word.startswith("ARGS=")).split()
        for module in modules:
            options = [word for word in passed_on if word.startswith("--")]
            wrong += [f"{command}: {option}" for option in options if option not in module_source(module)]
    assert wrong == []


def module_source(module: str) -> str:
    """The text of a benchmark and of what it shares with the others, where options are declared."""
    shared = ROOT / "benchmarks"
    return "".join(path.read_text() for path in (*shared.glob("*.py"), shared / f"{module.partition('.')[2]}.py"))


def test_modules_that_are_run_are_there_and_have_the_options() -> None:
    wrong = []
    for command in (one for one in COMMANDS if one.words[1:2] == ("-m",) and not job_words(one)):
        module = command.words[2]
        if module.partition(".")[0] not in ("benchmarks", "scripts"):
            wrong += [] if command.needs else [str(command)]
            continue
        options = [word for word in command.words[3:] if word.startswith("--")]
        there = (ROOT / f"{module.replace('.', '/')}.py").exists()
        wrong += [str(command)] if not there or any(one not in module_source(module) for one in options) else []
    assert wrong == []


def test_ray_knows_its_commands() -> None:
    from ray.scripts.scripts import cli

    wrong = []
    for command in (one for one in COMMANDS if one.words[0] == "ray" and len(one.words) > 1):
        found: Any = cli
        words = command.words[1 : command.words.index("--")] if "--" in command.words else command.words[1:]
        for word in words:
            found = getattr(found, "commands", {}).get(word, found)
        options = {option for parameter in found.params for option in parameter.opts}
        unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in options]
        wrong += [str(command)] if found is cli or unknown else []
    assert wrong == []


def calls_of(name: str) -> re.Pattern[str]:
    """How tests call a command of `fgaif`: by its name, as a module, or by the functions of its file."""
    module, name = name.replace("-", "_"), name.replace("_", "-")
    return re.compile(rf'main\(\s*"{name}"|jobs\.{module}\b|from jobs import [^\n]*\b{module}\b')


def test_every_command_is_called_by_a_test() -> None:
    named = {job_words(command)[0] for command in JOBS}
    tests = "".join(text for path, text in sources_of_tests().items() if path != Path(__file__))
    assert named <= set(SUMMARIES)
    assert {name for name in named if not calls_of(name).search(tests)} == set()


def test_what_every_target_runs_is_called_by_a_test() -> None:
    tests = "".join(text for path, text in sources_of_tests().items() if path != Path(__file__))
    named = {command.words[1] for command in COMMANDS if command.words[0] == "make"}
    untested = []
    for target in {target for target in named if "=" not in target} - MAINTENANCE:
        for folder, name in re.findall(r"-m (benchmarks|jobs)\.(\w+)", makefile_recipes()[target]):
            benchmark = rf"{folder}\.{name}\b|from {folder} import [^\n]*\b{name}\b"
            called = re.search(benchmark, tests) if folder == "benchmarks" else calls_of(name).search(tests)
            untested += [] if called else [f"{target}: {folder}.{name}"]
    assert untested == []


def test_all_other_programs_are_marked_with_what_they_need() -> None:
    ours = {"fgaif", "make", "ray", *SHELL}
    others = [
        command
        for command in COMMANDS
        if command.in_block
        and command.words[0] not in ours
        and command.words[1:2] != ("-m",)
        and not "".join(command.words[:2]).removeprefix("python").startswith("examples/")
    ]
    assert [str(command) for command in others if command.needs is None] == []


def test_commands_stand_in_blocks_of_the_shell() -> None:
    called = re.compile(r"^(fgaif|make|ray|kubectl|python3? -m) ", re.MULTILINE)
    blocks = [(page, *block) for page in PAGES for block in blocks_in(page)]
    assert [f"{page}:{line}" for page, line, kind, text in blocks if kind == "" and called.search(text)] == []


def test_python_in_pages_imports_what_is_there() -> None:
    wrong = []
    blocks = [(page, text) for page in PAGES for _, kind, text in blocks_in(page) if kind == "python"]
    for page, text in blocks:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("fgaif_ray", "ray"):
                module = importlib.import_module(node.module)
                wrong += [f"{page}: {name.name}" for name in node.names if not hasattr(module, name.name)]
    assert wrong == []


def test_examples_that_are_called_are_tested() -> None:
    tests = "".join(text for path, text in sources_of_tests().items() if path != Path(__file__))
    named = {name for command in COMMANDS for word in command.words for name in re.findall(r"^examples/([\w.]+)", word)}
    assert named and {name for name in named if name not in tests} == set()


def test_marks_are_known() -> None:
    marks = {mark.strip() for command in COMMANDS if command.needs for mark in command.needs.split(",")}
    assert marks <= NEEDS


@pytest.mark.parametrize("command", [one for one in WHOLE if job_words(one)[0] == "plan"], ids=str)
def test_a_plan_is_made(
    command: DocumentedCommand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the small models of the embedded world; `test_recipes.py` plans the real ones."""
    monkeypatch.chdir(ROOT)
    copied = [one.words[1] for one in COMMANDS if one.page == command.page and one.words[0] == "cp"]
    yours = (copied or ["configs/llava-1.5-7b.yaml"])[0]
    words = [yours if word in YOURS else word for word in job_words(command)[1:]]
    changes = [f"{key}={CHECKPOINT}" for key in MODELS]
    if "--cluster" not in words:
        changes += ["ray.logical_gpus=8", "ray.num_cpus=64"]
    assert main("plan", [*words, *(word for change in changes for word in ("--set", change))]) == 0
    assert "Learner" in capsys.readouterr().out
