"""Self-contained HTML pages: one look, every text escaped, images and videos inside the file.

A page is a template in toolkit/pages/ that extends base.html. It needs no network and no second file, so that it can
be mailed, archived, or opened on a cluster's login node.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json

PAGES = Path(__file__).with_name("pages")
# Of curves and bars: each has a contrast of 3 to 1 (WCAG 1.4.11) with light and with dark paper.
COLORS = ("#2f7fc1", "#d9622b", "#2c9561", "#9a6ac8", "#b07d1e", "#d2548a", "#27919a", "#6478e0", "#7f8f22", "#a8673d",
          "#c05a5a")  # fmt: skip
GREY = "#7d858c"  # of baselines, and of what stands behind


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """The HTML of a template with `values`; texts are escaped, a name that is not given is an error."""
    return _environment().get_template(template).render(**values)


def data_uri(source: Path | bytes, kind: str = "") -> str:
    """A file, or bytes of MIME type `kind`, as a data: URI for src attributes."""
    if isinstance(source, Path):
        kind = kind or mimetypes.guess_type(source.name)[0] or "application/octet-stream"
        source = source.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(source).decode()}"


def numbers_beside(out: Path, kind: str) -> Path:
    """The JSON file for the numbers of the page `out`; refused where something that is no `kind` has that name."""
    numbers = out.with_suffix(".json")
    if out.suffix != ".html":
        raise ToolkitError(f"out={out}: the page is an HTML file. Write out={out.with_suffix('.html')}")
    if out.is_dir() or numbers.is_dir():
        raise ToolkitError(f"out={out}: a folder has this name, or that of {numbers}. Choose another out=FILE.html.")
    if numbers.exists() and read_json(numbers).get("kind") != kind:
        raise ToolkitError(
            f"out={out}: its numbers would take the place of {numbers}, which is no {kind.split()[-1]}. Choose another "
            "out=FILE.html."
        )
    return numbers


def percent(part: float) -> str:
    """0.634 as 63 %."""
    return f"{100 * part:.0f} %"


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(percent=percent, svg=Markup)
    environment.globals.update(data_uri=data_uri)
    return environment
