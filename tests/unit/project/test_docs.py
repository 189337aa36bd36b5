"""What the documentation names exists, and what exists is documented."""

import ast
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
#: Packages whose folders the architecture page describes; search_spaces has none.
DESCRIBED = ("autotune", "workers", "dashboard")
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


def headings(page: Path) -> set[str]:
    """Names by which links reach the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def is_named(node: ast.Assign, name: str) -> bool:
    """Whether an assignment is to that name."""
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == name


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@each_page
def test_links_lead_to_headings(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    missing = [(file, name) for file, name in links if name not in headings(page.parent / file if file else page)]
    assert missing == []


@each_page
def test_make_targets_exist(page: Path) -> None:
    named = {name for line in code(page) for name in re.findall(r"^make ([a-z-]+)", line)}
    assert named <= MAKE_TARGETS


@each_page
def test_python_examples_compile(page: Path) -> None:
    for source in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        compile(source, page.name, "exec")


@each_page
def test_commands_parse(page: Path) -> None:
    lines = [line for line in code(page) if re.match(r"autotune [a-z-]+ \S", line) and line not in COMMANDS]
    for words in (shlex.split(line, comments=True) for line in lines):
        length = 3 if words[1] in ("db", "token") else 2
        name = " ".join(words[:length])
        COMMANDS[name].make_context(name, words[length:])


def test_start_page_lists_every_page_once() -> None:
    docs = ROOT / "docs"
    lists = re.findall(r"^- \[[^]]+\]\(([a-z-]+\.md)\)", (docs / "README.md").read_text(), re.MULTILINE)
    assert sorted(lists) == sorted(path.name for path in docs.glob("*.md") if path.name != "README.md")


def test_readme_opens_with_install_commands_and_a_picture() -> None:
    opening = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert len(opening.splitlines()) <= 35
    assert "make install" in opening
    assert "autotune run" in opening
    assert "![" in opening


@pytest.mark.parametrize("page", [page for page in PAGES if page not in DECISIONS], ids=lambda page: page.name)
def test_prose_is_wrapped_at_100_columns(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in prose.splitlines() if len(line) > 100 and not re.match(r"\||#| {4}|\d+\. \[", line)]
    assert [line for line in long if " " in line.strip()[:100]] == []


def test_architecture_lists_the_doors_that_are_tested() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| ([a-zA-Z0-9_, ]+) \| (`.+`) \|$", page.partition("## Doors")[2], re.MULTILINE)
    doors = {name: tuple(re.findall(r"`([^`]+)`", paths)) for names, paths in rows for name in names.split(", ")}
    tested = ast.parse((Path(__file__).parent / "test_architecture.py").read_text())
    (expected,) = [node.value for node in tested.body if isinstance(node, ast.Assign) and is_named(node, "DOORS")]
    assert doors == ast.literal_eval(expected)


def test_architecture_describes_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = set(re.findall(r"^\| `((?:autotune|workers|dashboard)/[a-z_/]+)/` \|", page, re.MULTILINE))
    modules = [path for name in DESCRIBED for path in (ROOT / name).rglob("__init__.py")]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in modules}
    assert listed == folders - set(DESCRIBED) - {"autotune/store/migrations/versions"}


def test_architecture_answers_with_paths_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    answers = page.partition("## Where is the code that")[2].partition("\n## ")[0]
    paths = re.findall(r"`([a-z_]+(?:/[a-z_0-9.*]+)+/?)`", answers)
    assert len(paths) >= 10
    assert [path for path in paths if not list(ROOT.glob(path.rstrip("/")))] == []


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
    assert ("not yet tested on a GPU" in " ".join(readme.split())) != recorded


def test_the_job_file_in_the_readme_is_one() -> None:
    (job_file,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert JobSpec.parse(yaml.safe_load(job_file)).rules()


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_decision_says_why_what_and_what_follows(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert len(text.splitlines()) <= 25
