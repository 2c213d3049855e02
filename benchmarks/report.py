"""`report`: the JSON files of a directory as Markdown and plots beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.distill_tables import distill_sections
from benchmarks.tables import Document, kernels_sections, layers_sections, peers_sections, service_sections

SECTIONS: dict[str, Callable[[Document], list[str]]] = {
    "peers": peers_sections,
    "layers": layers_sections,
    "kernels": kernels_sections,
    "service": service_sections,
    "distill": distill_sections,
}


def write_report(directory: Path, plots: bool = True) -> list[Path]:
    """Writes <name>.md, and plots, for every <name>.json that a run left, and returns the files."""
    written = []
    for path in sorted(directory.glob("*.json")):
        kind = path.stem.split("-")[0]
        sections = SECTIONS.get(kind)
        if sections is None:
            continue
        document = json.loads(path.read_bytes())
        images = _plot(kind, document, path.with_suffix(".png")) if plots else []
        links = [f"![{image.stem}]({image.name})\n" for image in images]
        markdown = path.with_suffix(".md")
        markdown.write_text("\n".join([*sections(document), *links]), encoding="utf-8")
        written += [markdown, *images]
    if not written:
        raise SystemExit(f"{directory} holds no results: run peers, layers or kernels first, with the same --out")
    return written


def _plot(kind: str, document: Document, path: Path) -> list[Path]:
    if kind in ("layers", "service"):
        return []
    from benchmarks import plots

    plot = {"peers": plots.plot_peers, "kernels": plots.plot_kernels, "distill": plots.plot_distill}[kind]
    return plot(document, path)
