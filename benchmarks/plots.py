"""Plots: our bars beside the peers', and rooflines of the kernels. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

from benchmarks.distill_tables import by_arm, losses
from benchmarks.rows import ROWS
from benchmarks.summary import Summary, summarize
from benchmarks.tables import Document, cold_times, engine_times, peak_operations

matplotlib.use("Agg")
from matplotlib import pyplot

OURS, THEIRS = "#c8501e", "#8fa3b5"


def plot_peers(document: Document, path: Path) -> list[Path]:
    """One panel a row of work, one for cold starts and one for the memory of processes: medians, with quartiles."""
    times = {ROWS[row].title: engine_times(document, row) for row in ROWS}
    times["cold start, the whole process"] = cold_times(document)
    panels = {
        f"{title} (ms, less is better)": {engine: seconds.scaled(1e3) for engine, seconds in found.items()}
        for title, found in times.items()
        if found
    }
    if processes := document.get("processes"):
        panels[f"{len(processes[0]['resident_bytes'])} processes together (MiB, less is better)"] = {
            record["engine"]: summarize([sum(record["proportional_bytes"]) / 2**20]) for record in processes
        }
    if not panels:
        return []
    count = len(panels)
    figure, axes = pyplot.subplots(count, 1, figsize=(8, 0.6 + 4 * count), squeeze=False, layout="constrained")
    for (title, values), panel in zip(panels.items(), axes[:, 0], strict=True):
        _bars(panel, values)
        panel.set_title(title, fontsize=10)
    figure.suptitle(f"{document['model']}, {document['machine']['cpu']}, {document['threads']} threads", fontsize=10)
    return [_save(figure, path)]


def _bars(panel: Any, values: dict[str, Summary]) -> None:
    """The medians, the largest below."""
    ordered = sorted(values.items(), key=lambda item: -item[1].median)
    medians = [value.median for _, value in ordered]
    spread = [[value.median - value.low for _, value in ordered], [value.high - value.median for _, value in ordered]]
    colours = [OURS if engine.startswith("kaoken") else THEIRS for engine, _ in ordered]
    bars = panel.barh([engine for engine, _ in ordered], medians, xerr=spread, color=colours)
    panel.bar_label(
        bars, labels=[f"{median:.{1 if max(medians) >= 10 else 2}f}" for median in medians], padding=4, fontsize=8
    )
    panel.tick_params(labelsize=8)
    panel.margins(x=0.12)


def plot_kernels(document: Document, path: Path) -> list[Path]:
    """A roofline for each type: operations a byte against TOP/s, beneath what memory and the units allow."""
    dtypes = list(dict.fromkeys(record["dtype"] for record in document["kernels"]))
    figure, axes = pyplot.subplots(
        1, len(dtypes), figsize=(4.5 * len(dtypes), 4.5), squeeze=False, layout="constrained"
    )
    for dtype, panel in zip(dtypes, axes[0], strict=True):
        _roofline(panel, document, dtype)
    figure.suptitle(f"{document['machine']['cpu']}, {document['threads']} threads", fontsize=10)
    return [_save(figure, path)]


def plot_distill(document: Document, path: Path) -> list[Path]:
    """The loss beside parameters, and beside the tokens that a model was trained on behind its teacher."""
    arms = by_arm(document)
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    scales = ("parameters", "total_tokens")
    for panel, scale, label in zip(panels, scales, ("parameters", "tokens behind the teacher"), strict=True):
        for name, arm in arms.items():
            values = losses(arm)
            x, y = mean(run[scale] for run in arm.values()), mean(values)
            colour = OURS if name.startswith(("iterative", "pruned")) else THEIRS
            panel.errorbar(x, y, stdev(values) if len(values) > 1 else None, fmt="o", color=colour, markersize=4)
            panel.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6)
        panel.set(xlabel=label)
    panels[0].set(ylabel="loss on the held out text (nats)")
    figure.suptitle(f"study {document['study']['name']}", fontsize=10)
    return [_save(figure, path)]


def _roofline(panel: Any, document: Document, dtype: str) -> None:
    limits = document["limits"]
    read, peak = max(found["read"] for found in limits.values()), peak_operations(limits, dtype)
    intensities = [10 ** (step / 20) for step in range(-10, 80)]
    panel.plot(intensities, [min(peak, read * x / 1e3) for x in intensities], color="black", linewidth=1)
    for isa in limits:
        records = [r for r in document["kernels"] if r["isa"] == isa and r["dtype"] == dtype]
        x = [record["operations"] / record["bytes"] for record in records]
        panel.scatter(x, [record["teraops_per_second"] for record in records], s=14, label=isa)
    panel.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TOP/s", title=dtype)
    panel.legend(fontsize=7)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
