"""The documentation site: it builds without a warning, loads nothing from elsewhere, and has every page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tools.site import OUTSIDE, with_links_for_the_site

ROOT = Path(__file__).resolve().parents[3]
# What makes a browser fetch something. A link that a reader may follow is none of these.
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Page(HTMLParser):
    """The addresses that a page loads, and the text of its paragraphs."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.paragraphs: list[str] = []
        self._inside = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p":
            self._inside = True
            self.paragraphs.append("")
        self.loads += [value or "" for name, value in attrs if name == FETCHED.get(tag)]

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.paragraphs[-1] += data


def _pages(site: Path) -> Iterator[tuple[str, _Page]]:
    for path in sorted(site.rglob("*.html")):
        yield str(path.relative_to(site)), _Page(path)


def test_the_site_has_every_page(site: Path) -> None:
    sources = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} | set(OUTSIDE.values())

    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}

    assert built - {"404.html"} == {re.sub(r"(README)?\.md$", "", name) + _ending(name) for name in sources}


def _ending(name: str) -> str:
    return "index.html" if name.endswith("README.md") else ".html"


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    assert [(name, to) for name, page in _pages(site) for to in page.loads if re.match(r"(https?:)?//", to)] == []


def test_lists_and_tables_are_recognised(site: Path) -> None:
    """GitHub sees a list right below a paragraph, this renderer needs an empty line between them."""
    marks = re.compile(r"^(\* |- |[0-9]+\. |\|)", re.MULTILINE)

    assert [(name, text) for name, page in _pages(site) for text in page.paragraphs if marks.search(text)] == []


@pytest.mark.parametrize(
    ("page", "link", "becomes"),
    [
        ("index.md", "docs/sizing.md", "sizing.md"),
        ("index.md", "docs/architecture.md#testing", "architecture.md#testing"),
        ("index.md", "docs/benchmarks", "benchmarks/README.md"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("install.md", "../README.md#try-it", "index.md#try-it"),
        ("install.md", "upgrade.md", "upgrade.md"),
        ("decisions/0008-lease.md", "../../CHANGELOG.md", "../changelog.md"),
        ("reference/api.md", "../glossary.md", "../glossary.md"),
        ("architecture.md", "decisions/", "decisions/README.md"),
        ("index.md", "https://example.com/docs", "https://example.com/docs"),
        ("index.md", "#here", "#here"),
    ],
)
def test_links_between_files_become_links_between_pages(page: str, link: str, becomes: str) -> None:
    assert with_links_for_the_site(f"a [b]({link}) c", page) == (f"a [b]({becomes}) c", [])


def test_code_is_left_alone() -> None:
    text = "`[a](docs/sizing.md)`\n\n```\n[a](docs/sizing.md)\n```\n"
    assert with_links_for_the_site(text, "index.md") == (text, [])


def test_a_link_to_what_the_site_lacks_is_a_problem() -> None:
    _, problems = with_links_for_the_site("[licence](LICENSE)", "index.md")
    assert len(problems) == 1
    assert "README.md links to LICENSE" in problems[0]


@pytest.mark.parametrize("folder", ["decisions", "benchmarks", "examples"])
def test_the_page_of_a_folder_lists_all_of_it(folder: str) -> None:
    files = {path.name for path in (ROOT / "docs" / folder).iterdir() if path.suffix in (".md", ".yaml")}

    linked = re.findall(r"\]\(([^)/]+)\)", (ROOT / "docs" / folder / "README.md").read_text())

    assert sorted(linked) == sorted(files - {"README.md"})
