"""A hook of MkDocs: pages of the site from outside docs/, and links that work on GitHub and on the site.

Sources link to each other by their paths in the repository, because GitHub needs that. The README is the site's front
page, and files such as CONTRIBUTING.md are pages too. A link to any other file outside docs/ is a warning, which
`--strict` turns into an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
}
"""Path in the repository -> page of the site."""

_SOURCES = {page: source for source, page in OUTSIDE.items()}
_DOCS = "docs/"
# Code comes first, so that links inside code do not match.
_LINK = re.compile(r"(?P<code>^ *```.*?^ *```|`[^`\n]+`)|\]\((?P<target>[^()\s]+)\)", re.MULTILINE | re.DOTALL)
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:|/|#")

log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between pages."""
    text, problems = with_links_for_the_site(markdown, page.file.src_uri)
    for problem in problems:
        log.warning("%s", problem)
    return text


def with_links_for_the_site(markdown: str, page: str) -> tuple[str, list[str]]:
    """The text of a page with its links rewritten, and one sentence for each link to a file that is not on the site.

    `page` is the path of the page on the site: "install.md", "decisions/0008-lease.md".
    """
    source = _SOURCES.get(page, _DOCS + page)
    problems = []

    def rewritten(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or _ABSOLUTE.match(target):
            return match[0]
        path, hash_sign, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if (ROOT / file).is_dir():
            file = f"{file}/README.md"
        there = OUTSIDE.get(file) or (file.removeprefix(_DOCS) if file.startswith(_DOCS) else None)
        if there is None:
            problems.append(
                f"{source} links to {target}: the site has no such page, add it to OUTSIDE in tools/site.py"
            )
            return match[0]
        return f"]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{hash_sign}{anchor})"

    return _LINK.sub(rewritten, markdown), problems
