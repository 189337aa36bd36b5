"""What the documentation names exists, and what exists is documented."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from autotune.cli.exit_codes import EXIT_CODES
from autotune.cli.main import app
from autotune.jobs.spec import JobSpec

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):.*?## ", (ROOT / "Makefile").read_text(), re.MULTILINE))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def code(page: Path) -> list[str]:
    """Code of a page: indented or fenced lines, and what stands between backticks."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    return [*"".join(fenced).splitlines(), *indented, *re.findall(r"`([^`\n]+)`", text)]


def cli_commands(command: Any, name: str = "autotune") -> dict[str, Any]:
    """Every command by its full name."""
    if not hasattr(command, "commands"):
        return {name: command}
    children = [cli_commands(child, f"{name} {part}") for part, child in command.commands.items()]
    return {full: child for found in children for full, child in found.items()}


COMMANDS = cli_commands(typer.main.get_command(app))


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@each_page
def test_make_targets_exist(page: Path) -> None:
    named = {name for line in code(page) for name in re.findall(r"^make ([a-z-]+)", line)}
    assert named <= MAKE_TARGETS


@each_page
def test_commands_parse(page: Path) -> None:
    lines = [line for line in code(page) if re.match(r"autotune [a-z-]+ \S", line) and line not in COMMANDS]
    for words in (shlex.split(line, comments=True) for line in lines):
        length = 3 if words[1] in ("db", "token") else 2
        name = " ".join(words[:length])
        COMMANDS[name].make_context(name, words[length:])


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert set(re.findall(r"^\| `(autotune [a-z -]+)` \|", page, re.MULTILINE)) == set(COMMANDS)


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    documented = {int(number): meaning for number, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)}
    assert documented.items() >= dict(EXIT_CODES.values()).items()
    assert documented.keys() - dict(EXIT_CODES.values()).keys() == {0, 1, 130}


def test_decisions_are_numbered_and_listed() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^(\d+\. .*)$", page, re.MULTILINE)
    titles = [path.read_text().partition("\n")[0].removeprefix("# ") for path in DECISIONS]
    expected = [
        re.sub(r"(\d+\.) (.*)", rf"\1 [\2](decisions/{path.name})", title)
        for path, title in zip(DECISIONS, titles, strict=True)
    ]
    assert listed == expected
    assert [path.name[:4] for path in DECISIONS] == [f"{number:04}" for number in range(1, len(DECISIONS) + 1)]


def test_readme_claims_of_gpus_what_is_recorded() -> None:
    readme = (ROOT / "README.md").read_text()
    recorded = (ROOT / "docs" / "gpu-tests.json").exists()
    assert ("docs/gpu-tests.json" in readme) == recorded
    assert ("has run on no GPU" in readme) != recorded


def test_the_job_file_in_the_readme_is_one() -> None:
    (job_file,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert JobSpec.parse(yaml.safe_load(job_file)).rules()


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_decision_says_why_what_and_what_follows(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert len(text.splitlines()) <= 25
