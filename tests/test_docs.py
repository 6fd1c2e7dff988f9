"""Every code block of the pages that show how to use the library is run, or says why not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollsight.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for folder in ("docs/start", "docs/how_to", "docs/concepts", "docs")
    for path in (ROOT / folder).glob("*.md")
    if path.name not in ("language_scoring.md", "trl.md", "contributing.md", "changelog.md", "citation.md")
)
_BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>python|sh)\n(?P<code>.*?)\n```", re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: .{10,} -->$")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and code of the blocks to run, in order."""
    for match in _BLOCK.finditer("\n" + page.read_text("utf-8")):
        if not _NOT_RUN.match(match["before"]):
            yield match["language"], match["code"]


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, f"{page.name}", "exec", dont_inherit=True), names)
            continue
        for line in code.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            assert command == "rollsight", f"{page.name}: only rollsight's own commands are run, not {command}"
            assert main(arguments) == 0, line


def test_no_line_of_the_front_page_is_long_and_no_link_is_dead() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (ROOT / link).exists(), f"{page.name}: {link}"


def test_the_test_of_the_contributing_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "own_target"}
    _, target = next(blocks(ROOT / "docs/how_to/own_target.md"))
    exec(compile(target, "own_target.md", "exec", dont_inherit=True), names)
    monkeypatch.setattr("rollsight.targets.Certainty", names["Certainty"], raising=False)
    (code,) = (code for language, code in blocks(ROOT / "CONTRIBUTING.md") if language == "python")
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    names["test_a_step_along_a_records_gradient_moves_certainty_by_its_score"]()
