"""A hook of MkDocs: pages of the documentation site that are generated, and links that lead to the right place there.

Keys come from the declarations of every command, the guide, the tour and the change log from their files at the top of
the checkout, results from benchmarks/results.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from toolkit.composition import COMMANDS  # noqa: E402
from toolkit.reference import markdown  # noqa: E402

_RESULTS = "benchmarks/results"
_MOVED = {"finetune.md": "guide.md", "CONTRIBUTING.md": "tour.md", "CHANGELOG.md": "changelog.md"}  # checkout: site
_NAMED = re.compile(r"`(benchmarks/results/[\w./-]+\.md)`")  # by name only, since a published tree has no results
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    sections: dict[str, list[Any]] = {
        name: entries for entry in config.nav or [] if isinstance(entry, dict) for name, entries in entry.items()
    }
    names = {
        name: command.start.removeprefix("python ").removeprefix("-m ").split()[0] for name, command in COMMANDS.items()
    }
    sections["Reference"].append(
        {"Commands and keys": [{shown: f"reference/{name}.md"} for name, shown in names.items()]}
    )
    sections["Project"].append({"Results": [_on_site(path) for path in reversed(_results()) if path.endswith(".md")]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files that results show."""
    for name in COMMANDS:
        page = markdown(name).replace("## ", "# ", 1).replace("\n### ", "\n## ")
        files.append(File.generated(config, f"reference/{name}.md", content=page))
    for path in [*_MOVED, *_results()]:
        if (ROOT / path).is_file():
            files.append(File.generated(config, _on_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(text: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Point every relative link at the site's page; a file of the checkout that the site lacks is only named."""
    here = _in_checkout(page.file.src_uri)

    def pointed(link: re.Match[str]) -> str:
        image, words, target, anchor = link.groups()
        found = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if not (ROOT / found).exists():
            return link[0]  # MkDocs reports it
        site = _on_site(found)
        if files.get_file_from_path(site) is None:
            return words if "`" in words else f"`{words}`"
        return f"{image}[{words}]({os.path.relpath(site, posixpath.dirname(page.file.src_uri) or '.')}{anchor or ''})"

    up = "../" * here.count("/")
    return _LINK.sub(pointed, _NAMED.sub(rf"[measured]({up}\1)", text))


def _results() -> list[str]:
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / _RESULTS).rglob("*")
        if path.suffix in (".md", ".html", ".png", ".webp", ".json")
    )


def _on_site(path: str) -> str:
    """Where a file of the checkout lies on the site."""
    return _MOVED.get(path) or path.removeprefix("docs/").removeprefix("benchmarks/")


def _in_checkout(path: str) -> str:
    """Where a page of the site comes from."""
    moved = {site: checkout for checkout, site in _MOVED.items()}
    return moved.get(path) or (f"benchmarks/{path}" if path.startswith("results/") else f"docs/{path}")
