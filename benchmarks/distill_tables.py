"""The report of a run of `distill`: what was trained, what it costs when it is baked, and what that says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import mean, stdev

from benchmarks.summary import ratios, summarize
from benchmarks.tables import Document, header_lines, markdown_table

# The arms that are compared, by how long they train. What follows in the document are variations of "one-shot".
EQUAL_STEPS = ("one-shot", "direct", "pruned", "random start")
EQUAL_TOKENS = (*(f"{name} long" for name in EQUAL_STEPS), "direct as long as the teacher")
VARIATIONS = ("temperature 2", "temperature 4", "mse", "reverse kl", "half hard", "online", "int8 labels")
SHAPES = ("half the width", "half of each")


def distill_sections(document: Document) -> list[str]:
    """The report as Markdown."""
    study, arms = document["study"], by_arm(document)
    half = f"{study['factors'][-1]:g}"
    chain = [name for name in arms if name.startswith("iterative ") and "random" not in name]
    groups = {
        "Down by steps, each step the next one's teacher": ["teacher", *chain],
        "Half, trained as long as one step, beside the chain's last": [f"iterative {half}", *EQUAL_STEPS],
        "Half, trained for as many tokens as the whole chain": [
            f"iterative {half}",
            f"iterative random start {half}",
            *EQUAL_TOKENS,
        ],
        "The one-shot half in other ways": ["one-shot", *VARIATIONS],
        "Other shapes, at once": ["one-shot", *SHAPES],
    }
    sections = [
        f"# Smaller models: {study['name']}\n",
        header_lines(document),
        _setting(document),
        "".join(f"- {line}\n" for line in _findings(document, arms)),
    ]
    for title, names in groups.items():
        rows = [_trained_row(name, arms, document) for name in names if name in arms]
        if len(rows) > 1:
            sections += [f"## {title}\n", markdown_table(_HEAD, rows)]
    if document["baked"]:
        sections += ["## Baked\n", markdown_table(_BAKED_HEAD, map(_baked_row, document["baked"])), _BAKED_NOTE]
    return sections


def by_arm(document: Document) -> dict[str, dict[int, Document]]:
    """The runs by arm and seed."""
    arms: dict[str, dict[int, Document]] = {}
    for run in document["runs"]:
        arms.setdefault(run["arm"], {})[run["seed"]] = run
    return arms


def losses(arm: dict[int, Document]) -> list[float]:
    """One a seed, in nats a token."""
    return [run["evaluation"]["loss"] for run in arm.values()]


def differences(ours: dict[int, Document], theirs: dict[int, Document]) -> list[float]:
    """Of the losses, seed by seed; a teacher is that of all seeds."""
    return [
        run["evaluation"]["loss"] - theirs.get(seed, next(iter(theirs.values())))["evaluation"]["loss"]
        for seed, run in ours.items()
        if seed in theirs or len(theirs) == 1
    ]


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation."""
    text = f"{mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values):.{digits}f}"


_HEAD = (
    "model",
    "parameters",
    "of the teacher's",
    "loss (nats)",
    "over the teacher's",
    "bits a byte",
    "accuracy",
    "million tokens",
    "minutes",
)


def _trained_row(name: str, arms: dict[str, dict[int, Document]], document: Document) -> list[str]:
    arm, teacher = arms[name], arms["teacher"]
    runs = list(arm.values())
    whole = next(iter(teacher.values()))["parameters"]

    def of(value: Callable[[Document], float]) -> list[float]:
        return [value(run) for run in runs]

    return [
        name,
        f"{runs[0]['parameters']:,}",
        f"{runs[0]['parameters'] / whole:.3f}",
        spread(losses(arm)),
        f"{mean(differences(arm, teacher)):+.4f}",
        spread(of(lambda run: run["evaluation"]["bits_per_byte"]), 3),
        f"{mean(of(lambda run: run['evaluation']['accuracy'])):.3f}",
        f"{mean(of(lambda run: run['total_tokens'])) / 1e6:.2f}",
        f"{mean(of(lambda run: run['total_seconds'])) / 60:.1f}",
    ]


_BAKED_HEAD = (
    "model",
    "type",
    "MB read a token",
    "MB on disk",
    "loss (nats)",
    "bits a byte",
    "accuracy",
    "ms a token",
    "tokens/s",
    "times the teacher's",
)
_BAKED_NOTE = (
    "One seed. Decoding from one token to a full context, greedily; the ratio is the median of turns with the teacher "
    "in the same type.\n"
)


def _baked_row(record: Document) -> list[str]:
    speed = summarize(record["tokens_per_second"]).median
    ratio = summarize(ratios(record["tokens_per_second"], record["teacher_tokens_per_second"])).median
    return [
        record["arm"],
        record["dtype"],
        f"{record['bytes_per_token'] / 1e6:.2f}",
        f"{record['library_bytes'] / 1e6:.2f}",
        f"{record['loss']:.4f}",
        f"{record['bits_per_byte']:.3f}",
        f"{record['accuracy']:.3f}",
        f"{1e3 / speed:.4f}",
        f"{speed:,.0f}",
        f"{ratio:.2f}",
    ]


def _setting(document: Document) -> str:
    study = document["study"]
    config, schedule = study["config"], study["schedule"]
    length = f"{schedule['max_steps']} steps" if schedule["max_steps"] else f"{schedule['epochs']:g} epochs"
    return (
        f"The teacher: {config['n_layer']} layers, width {config['n_embd']}, {config['n_head']} heads, context "
        f"{config['n_positions']}, {study['teacher_steps']} times {length} of {schedule['batch_size']} samples. The "
        f"chain scales {', '.join(study['axes'])} by {', '.join(map(str, study['factors']))} and trains each step for "
        f"{length}; arms named long train {len(study['factors'])} times that. Students learn by KL at "
        "temperature 1 from labels that were made before, and begin with their teacher's weights, unless said "
        f"otherwise. Means and deviations over {len({run['seed'] for run in document['runs']})} seeds of one teacher's "
        "students; tokens and minutes are all that came after the teacher, and in its row its own.\n"
    )


def _findings(document: Document, arms: dict[str, dict[int, Document]]) -> Iterator[str]:
    """What the figures say, in words."""
    half = f"{document['study']['factors'][-1]:g}"
    teacher = arms["teacher"]
    for name, start in (
        ("iterative", "the teacher's weights"),
        ("iterative random start", "random weights at each step"),
    ):
        chain = arms.get(f"{name} {half}", {})
        for other, equal in (("direct", "steps"), ("direct long", "tokens"), ("one-shot long", "tokens")):
            if chain.keys() & arms.get(other, {}).keys():
                what = f"The half that was distilled by steps from {start}"
                yield f"{what} {_comparison(chain, arms[other], other)} at equal {equal}"
    for name in ("pruned", "pruned long"):
        if name in arms:
            over = differences(arms[name], teacher)
            share = next(iter(arms[name].values()))["parameters"] / next(iter(teacher.values()))["parameters"]
            within = f"{'' if mean(over) <= 0.05 else 'not '}within 0.05"
            yield f"{name}, with {share:.3f} of the parameters: {spread(over)} nats over the teacher, {within}"
    for record in document["baked"]:
        if record["arm"] == "one-shot":
            ratio = summarize(ratios(record["tokens_per_second"], record["teacher_tokens_per_second"])).median
            yield f"The half in {record['dtype']} makes {ratio:.2f} times the teacher's tokens a second"


def _comparison(ours: dict[int, Document], theirs: dict[int, Document], other: str) -> str:
    gap = differences(ours, theirs)
    wins = sum(value < 0 for value in gap)
    verdict = "beats" if wins == len(gap) else "does not beat" if not wins else f"beats on {wins} of {len(gap)} seeds"
    return f"{verdict} {other} ({spread(gap)} nats)"
