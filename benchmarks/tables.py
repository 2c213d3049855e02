"""The tables of a report, as Markdown, from the JSON documents of runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kaoken.codegen.layout import MATRIX_TYPES

from benchmarks.bars import BARS, Bar
from benchmarks.models import task_of
from benchmarks.rows import ROWS
from benchmarks.summary import Summary, ratios, summarize

Document = dict[str, Any]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def header_lines(document: Document) -> str:
    """The machine, the commit and the threads."""
    machine = document["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    return (
        f"`python -m benchmarks {document['command']}`, commit `{document['commit']}`, {document['date']}, "
        f"{document['threads']} threads.\n\n"
        f"{machine['cpu']}, {machine['processors']} processors, {caches}, {machine['memory_gib']} GiB; "
        f"{' '.join(machine['features'])}; {machine['system']}, Python {machine['python']}.\n"
    )


def turn_ratios(document: Document, row: str, ours: str, peer: str) -> list[float]:
    """Our median over the peer's, turn by turn."""
    turns = [turn for turn in document["turns"] if (turn["row"], turn["ours"], turn.get("peer")) == (row, ours, peer)]
    return ratios(medians(turns, "ours_seconds"), medians(turns, "peer_seconds"))


def medians(turns: Iterable[Document], key: str) -> list[float]:
    """Of the steps of each turn, in seconds."""
    return [summarize(turn[key]).median for turn in turns]


def context_ratios(document: Document, engine: str) -> list[float]:
    """A step at context 1000 over one at context 16, pair by pair."""
    pairs = [turn for turn in document["turns"] if turn["row"] == "context" and turn["ours"] == engine]
    return ratios(medians(pairs, "long_seconds"), medians(pairs, "short_seconds"))


def cold_values(document: Document, engine: str, key: str) -> list[float]:
    """One value a round."""
    return [record[key] for record in document["cold"] if record["engine"] == engine]


def bar_values(document: Document, bar: Bar) -> list[float]:
    """What a bar is about, one value a round; none where it was not measured."""
    ours = f"kaoken {bar.dtype}"
    if bar.row == "context":
        return context_ratios(document, ours)
    if bar.row == "cold":
        mine, theirs = (cold_values(document, engine, "seconds") for engine in (ours, bar.peer))
        return ratios(mine, theirs) if len(mine) == len(theirs) else []
    if bar.row == "memory":
        weights = document.get("weights_bytes", {}).get(bar.dtype)
        return [] if weights is None else [(peak - weights) / 1e6 for peak in cold_values(document, ours, "peak_bytes")]
    return turn_ratios(document, bar.row, ours, bar.peer)


def bars_table(document: Document) -> str:
    """Every bar of the model with its verdict; "not measured" where the run lacks it."""
    rows = []
    for bar in (each for each in BARS if each.model == document["model"]):
        values = bar_values(document, bar)
        value = summarize(values) if values else None
        rows.append(
            [
                bar.work,
                bar.peer,
                f"{bar.at_most:g}",
                f"{bar.aim:g}",
                "" if value is None else _spread(value, 1 if bar.row == "memory" else 3),
                "not measured" if value is None else bar.verdict(value.median),
            ]
        )
    return markdown_table(["work", "beside", "at most", "aim", "ours (quartiles)", "verdict"], rows)


def _spread(value: Summary, digits: int) -> str:
    return f"{value.median:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def engine_times(document: Document, row: str) -> dict[str, Summary]:
    """Seconds of every engine that took turns in a row: the median turn, and the quartiles of turns."""
    found: dict[str, list[float]] = {}
    for turn in document["turns"]:
        if turn["row"] != row or row == "context":
            continue
        found.setdefault(turn["ours"], []).extend(medians([turn], "ours_seconds"))
        if "peer" in turn:
            found.setdefault(turn["peer"], []).extend(medians([turn], "peer_seconds"))
    return {engine: summarize(seconds) for engine, seconds in found.items()}


def row_table(document: Document, row: str) -> str:
    """Each engine's time, and ours over it for each of our types that took turns with it."""
    rows = []
    for engine, seconds in engine_times(document, row).items():
        pairs = dict.fromkeys(turn["ours"] for turn in document["turns"] if turn.get("peer") == engine)
        shown = []
        for ours in pairs:
            values = turn_ratios(document, row, ours, engine)
            if values:
                shown.append(f"{ours.removeprefix('kaoken ')} {_spread(summarize(values), 3)}")
        size = document["engines"].get(engine, {}).get("bytes_per_token")
        rate = f"{size / seconds.median / 1e9:.1f}" if size and row == "decode" else ""
        rows.append([engine, _spread(seconds.scaled(1e3), 2), rate, "; ".join(shown)])
    return markdown_table(["engine", "ms (quartiles)", "GB/s of weights", "ours over it (quartiles)"], rows)


def cold_times(document: Document) -> dict[str, Summary]:
    """Seconds of the whole process of each engine's cold starts."""
    engines = dict.fromkeys(record["engine"] for record in document["cold"])
    return {engine: summarize(cold_values(document, engine, "seconds")) for engine in engines}


def cold_table(document: Document) -> str:
    """Cold starts: seconds to the first result and of the whole process, and the peak memory."""
    rows = []
    for engine, whole in cold_times(document).items():
        first, peak = (summarize(cold_values(document, engine, key)) for key in ("first_token_seconds", "peak_bytes"))
        rows.append([engine, f"{first.median:.3f}", _spread(whole, 3), f"{peak.median / 2**20:.0f}"])
    return markdown_table(["engine", f"{_first(document)} (s)", "whole process (s)", "peak memory (MiB)"], rows)


def _first(document: Document) -> str:
    """What a cold start ends with."""
    return "first vector" if task_of(document["model"]) == "encode" else "first token"


def processes_table(document: Document) -> str:
    """What several processes of each engine hold, in MiB."""
    rows = []
    for record in document["processes"]:
        resident, shares = record["resident_bytes"], record["proportional_bytes"]
        together = sum(shares)
        further = (together - record["alone_bytes"]) / (len(shares) - 1)
        figures = (sum(resident) / len(resident), record["alone_bytes"], together, further)
        rows.append([record["engine"], *(f"{figure / 2**20:.0f}" for figure in figures)])
    return markdown_table(["engine", "resident, each", "one alone", "all together", "each after the first"], rows)


def build_table(document: Document) -> str:
    """Build time, the largest process and the library."""
    rows = []
    for dtype, facts in document["build"].items():
        seconds, peak = facts.get("wall_seconds"), facts.get("peak_bytes")
        rows.append(
            [
                dtype,
                "unknown" if seconds is None else f"{seconds:.1f}",
                "unknown" if peak is None else f"{peak / 2**20:.0f}",
                f"{facts['library_bytes'] / 2**20:.1f}",
            ]
        )
    return markdown_table(["type", "build (s)", "largest process (MiB)", "library (MiB)"], rows)


def peers_sections(document: Document) -> list[str]:
    """The report of a run of `peers`."""
    sections = [f"# Kaoken beside its peers: {document['model']}\n", header_lines(document)]
    if any(bar.model == document["model"] for bar in BARS):
        sections += ["## The bars\n", bars_table(document)]
    for name, row in ROWS.items():
        if engine_times(document, name):
            sections += [f"## {row.title[0].upper()}{row.title[1:]}\n", row_table(document, name)]
    contexts = dict.fromkeys(turn["ours"] for turn in document["turns"] if turn["row"] == "context")
    if contexts:
        rows = [[engine, _spread(summarize(context_ratios(document, engine)), 3)] for engine in contexts]
        sections += ["## Decode at context 1000 over context 16\n", markdown_table(["engine", "ratio"], rows)]
    if document["cold"]:
        sections += [f"## Cold start to the {_first(document)}, in a fresh Python\n", cold_table(document)]
    if processes := document.get("processes"):
        count = len(processes[0]["resident_bytes"])
        sections += [
            f"## {count} processes that loaded the model and computed one result, MiB\n",
            processes_table(document),
            "All but the first column are of proportional memory: a page counts once for all that map it.\n",
        ]
    if document["build"]:
        sections += ["## Baking\n", build_table(document)]
    return [*sections, *_notes(document)]


def _notes(document: Document) -> list[str]:
    """Versions and what differs; what was missing and what was skipped."""
    lines = []
    for engine, facts in document["engines"].items():
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        note = f": {facts['note']}" if facts["note"] else ""
        lines.append(f"- {engine} ({versions}){note}")
    sections = ["## Engines\n", "\n".join(lines) + "\n"]
    for key, title in (("missing", "## Missing\n"), ("skipped", "## Skipped\n")):
        if document[key]:
            sections += [title, "\n".join(f"- {name}: {why}" for name, why in document[key].items()) + "\n"]
    return sections


def service_sections(document: Document) -> list[str]:
    """The report of a run of `service`."""
    return _callers_of_an_encoder(document) if "shared" in document else _callers_of_a_decoder(document)


def _callers_of_an_encoder(document: Document) -> list[str]:
    threads = document["threads"]
    rows = []
    for record in document["shared"]:
        running = {int(count): samples for count, samples in record["running"].items()}
        more = sum(samples for count, samples in running.items() if count > threads) / max(1, sum(running.values()))
        rows.append(
            [
                record["kind"],
                _spread(summarize([document["texts"] / seconds for seconds in record["together_seconds"]]), 0),
                _spread(_over(record["alone_seconds"], record["together_seconds"]), 3),
                f"{summarize(record['p50_milliseconds']).median:.1f}",
                f"{summarize(record['p99_milliseconds']).median:.1f}",
                f"{100 * more:.1f} %, {max(running, default=0)}",
            ]
        )
    count = document["count"]
    head = ["callers", "texts/s (quartiles)", "of one caller's (quartiles)", "p50 (ms)", "p99 (ms)", "threads that run"]
    return [
        f"# {count} callers of an encoder: {document['model']}, {document['dtype']}\n",
        header_lines(document),
        f"Each of {count} callers sends a single text at a time, of the corpus' lengths; one caller encodes the same "
        f"{document['texts']} texts in one call. Threads that run: the share of samples with more than {threads}, and "
        "the most.\n",
        markdown_table(head, rows),
        *(f"- Missing: {why}\n" for why in document["missing"]),
    ]


def _callers_of_a_decoder(document: Document) -> list[str]:
    choosing = [
        [
            f"{record['choice']}, batch {record['batch']}",
            _spread(summarize(record["append_seconds"]).scaled(1e3), 2),
            _spread(summarize(ratios(record["generate_seconds"], record["append_seconds"])), 3),
        ]
        for record in document["choosing"]
    ]
    calls = [
        [
            f"{record['callers']} threads",
            _spread(summarize(record["calls_per_second"]), 0),
            _spread(_over(record["calls_per_second"], record["single_thread_calls_per_second"]), 3),
        ]
        for record in document["callers"]
    ]
    processes = document["processes"]
    together, one = processes["together_calls_per_second"], processes["one_calls_per_second"]
    row = [f"{processes['processes']} processes", _spread(summarize(together), 0), _spread(_over(together, one), 3)]
    return [
        f"# Choosing tokens, and many callers: {document['model']}, {document['dtype']}\n",
        header_lines(document),
        "## A step of generate over one of Session.append\n",
        markdown_table(["choice", "append (ms, quartiles)", "ratio (quartiles)"], choosing),
        "## Calls of logits a second, over those with KAOKEN_THREADS=1; of processes, over those of one process\n",
        markdown_table(["callers", "calls/s (quartiles)", "ratio (quartiles)"], [*calls, row]),
    ]


def _over(ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    return summarize(ratios(ours, theirs))


def layers_sections(document: Document) -> list[str]:
    """The report of a run of `layers`, in microseconds."""
    rows = []
    for record in document["layers"]:
        ours = summarize(record["ours_seconds"]).median
        cells = [f"{record['layer']}, {record['rows']} rows", f"{1e6 * ours:.2f}"]
        if record["torch_seconds"]:
            theirs = summarize(record["torch_seconds"]).median
            ratio = summarize(ratios(record["ours_seconds"], record["torch_seconds"]))
            cells += [f"{1e6 * theirs:.2f}", _spread(ratio, 3)]
        else:
            cells += ["missing", ""]
        mine, torch = record["published_milliseconds"]
        cells.append("" if torch is None else f"{'not reported' if mine is None else f'{mine} ms'} / {torch} ms")
        rows.append(cells)
    head = ["layer", "ours (us)", "PyTorch eager (us)", "ratio (quartiles)", "published / its PyTorch, on Arm"]
    notes = [document["note"], *(f"{name}: {why}" for name, why in document["missing"].items())]
    return ["# Single layers, float32\n", header_lines(document), markdown_table(head, rows), "\n\n".join(notes) + "\n"]


def kernels_sections(document: Document) -> list[str]:
    """The report of a run of `kernels`."""
    limits = document["limits"]
    names = ("read", "float32", "bfloat16", "int8")
    head = ["instruction set", "read (GB/s)", *(f"{name} (TOP/s)" for name in names[1:])]
    table = [
        [isa, f"{found['read']:.1f}", *(f"{found[name]:.3f}" for name in names[1:])] for isa, found in limits.items()
    ]
    sections = ["# Every kernel beside the machine's limits\n", header_lines(document)]
    sections += ["## Limits, by own loops\n", markdown_table(head, table)]
    best_read = max(found["read"] for found in limits.values())
    for isa in limits:
        rows = [
            [
                f"{record['kernel']} {record['dtype']}, {record['rows']} rows",
                f"{1e6 * record['seconds']:.1f}",
                f"{record['gigabytes_per_second']:.1f}",
                f"{100 * record['gigabytes_per_second'] / best_read:.0f} %",
                f"{record['teraops_per_second']:.3f}",
                f"{100 * record['teraops_per_second'] / peak_operations(limits, record['dtype']):.0f} %",
            ]
            for record in document["kernels"]
            if record["isa"] == isa
        ]
        head = ["kernel", "us", "GB/s", "of the limit", "TOP/s", "of the best peak"]
        sections += [f"## {isa}\n", markdown_table(head, rows)]
    return sections


def peak_operations(limits: dict[str, dict[str, float]], dtype: str) -> float:
    """TOP/s of the best instruction set, for the products that a type's kernels make."""
    return max(found[MATRIX_TYPES[dtype].product] for found in limits.values())
