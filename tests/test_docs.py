"""The documentation: links lead somewhere, the index is whole, and nothing points outside the repository."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RECORDS = [page for page in PAGES if page.parent.name == "experiments" and page.name != "README.md"]

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[(?:[^\]`]|`[^`]*`)*\]\(([^)\s]+)\)")
_NAMED = re.compile(r"`((?:benchmarks|docs|examples|tests|tools)/[\w./-]+|[\w/.]+\.py)`")
_ROOTS = (ROOT, ROOT / "vllm_palign", ROOT / "tools" / "palign_fit")
"""Where the files that pages name may lie; they leave the package's name out, or even the folder's."""

_OUTSIDE = re.compile(
    r"\b(?:(?:the|this|our) (?:contract|plan|issue|brief|ticket)|today|yesterday|tomorrow"
    r"|(?:earlier|this|last|previous) session)\b",
    re.IGNORECASE,
)
"""What only whoever wrote the page can follow. A date or a link says it to everybody."""


def prose(page: Path) -> str:
    """A page without its code blocks, whose contents are nobody's links or words."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Relative targets of a page's links and pictures."""
    return [link for link in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub names a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{link}: no such heading")
    assert not wrong


@pytest.mark.parametrize("folder", [DOCS, DOCS / "experiments"], ids=name)
def test_no_page_is_missing_from_the_index_of_its_folder(folder: Path) -> None:
    index = folder / "README.md"
    listed = {(folder / link.partition("#")[0]).resolve() for link in links(index)}
    pages = {*folder.glob("*.md"), *folder.glob("*/README.md")} - {index}
    assert not {name(page) for page in pages - listed}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_points_outside_the_repository(page: Path) -> None:
    assert not _OUTSIDE.findall(prose(page))


def exists(file: str) -> bool:
    named = any((root / file).exists() for root in _ROOTS)
    return named or ("/" not in file and any(next(root.rglob(file), None) for root in _ROOTS[1:]))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    assert not {file for file in _NAMED.findall(prose(page)) if not exists(file)}


@pytest.mark.parametrize("page", RECORDS, ids=name)
def test_a_record_says_when_it_was_measured(page: Path) -> None:
    assert re.search(r"^(?:Measured|Tried) .*\b20\d\d\b", prose(page), re.MULTILINE)
