"""Offline soft labels: a teacher's distributions for every sample of a corpus, made once and read in any order.

A directory holds them:
    labels.json   what they are of (`Plan`); its presence means that the space of labels.bin has been reserved
    labels.bin    one record a sample (`Plan.dtype`), memory-mapped for reading
    labels.crc    the CRC-32 of each chunk of labels.bin, appended when the chunk is complete
A killed process thus leaves a beginning that is whole, and the next one goes on behind it. The data are not synced:
after a power failure the checksums tell what has reached the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kaoken.arguments import integer
from kaoken.cache import locked
from kaoken.compress.losses import SoftLabels, check_temperature, ensemble, top_k_labels, whole_labels
from kaoken.errors import InputError, KaokenError
from kaoken.model import load

FORMAT = 1
HEADER, DATA, CHECKSUMS, LOCK = "labels.json", "labels.bin", "labels.crc", "labels.lock"

# Up to this vocabulary labels are whole by default: at most 2 KiB a position, and good for every temperature. Size
# decides, as reading labels, whole or not, takes a few per cent of the time of the loss and its gradient.
WHOLE_VOCABULARY = 1024
TOP_K = 64

# What the teacher is given at once, a chunk: tokens, for its activations, and logits.
_CHUNK_TOKENS = 8192
_CHUNK_LOGITS = 32 << 20

_LEAST = float(np.finfo(np.float16).min)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Samples(Protocol):
    """A corpus cut into rows of token ids, as labels see it."""

    @property
    def context(self) -> int:
        """Tokens in each sample."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the ids and of how they are cut, in hexadecimal."""

    def __len__(self) -> int: ...

    def inputs(self, start: int, stop: int) -> NDArray[np.int64]:
        """The samples from start to before stop, int64 [stop - start, context]."""


@dataclass(frozen=True)
class Teacher:
    """What labels are made with.

    logits: int64 ids [n, T] to logits [n, T, vocab_size], a tensor or an array.
    digest: Differs for teachers that give other logits.
    """

    logits: Callable[[NDArray[np.int64]], Any]
    digest: str
    vocab_size: int
    n_positions: int

    def check(self, samples: Samples) -> None:
        """Raises InputError for samples of another vocabulary, or longer than the teacher's context."""
        if self.vocab_size != samples.vocab_size:
            raise InputError(
                f"the teacher's vocabulary has {self.vocab_size} tokens, the samples' {samples.vocab_size}; expected "
                "the same: encode the text with the teacher's tokenizer"
            )
        if self.n_positions < samples.context:
            raise InputError(
                f"the samples have {samples.context} tokens, but the teacher takes {self.n_positions} at most: cut the "
                "text into shorter samples"
            )


def torch_teacher(model: nn.Module, digest: str) -> Teacher:
    """A causal language model of transformers, on whatever device it is; `digest` is that of its weights.

    It is put into eval mode, and runs outside of any autocast, in the type of its weights.
    """

    def logits(ids: NDArray[np.int64]) -> Tensor:
        model.eval()
        device = next(model.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return model(input_ids=torch.tensor(ids, device=device), use_cache=False).logits.float()

    key = _digest([digest, str(next(model.parameters()).dtype)])
    return Teacher(logits, key, model.config.vocab_size, model.config.max_position_embeddings)


def baked_teacher(path: str | os.PathLike[str], *, threads: int | None = None) -> Teacher:
    """A decoder's library that `kaoken.bake` made, of any type; errors as for `kaoken.load`."""
    model = load(path, threads=threads)
    if model.kind != "decoder":
        raise InputError(f"{path} holds an {model.kind}; expected a decoder, which continues texts: name another")
    info = model.info
    facts = [info.weights_sha256, info.dtype, info.tensor_dtypes, info.cache_dtype, asdict(model.config)]
    return Teacher(model.logits, _digest(facts), model.config.vocab_size, model.config.n_positions)


def ensemble_teacher(teachers: Sequence[Teacher]) -> Teacher:
    """The mean of several teachers' probabilities at temperature 1. InputError unless they share a vocabulary."""
    vocabularies = {teacher.vocab_size for teacher in teachers}
    if len(vocabularies) != 1:
        found = f"vocabularies of {', '.join(map(str, sorted(vocabularies)))} tokens" if teachers else "no teachers"
        raise InputError(f"the ensemble has {found}; expected teachers of one vocabulary: choose others")

    def logits(ids: NDArray[np.int64]) -> Tensor:
        each = [torch.as_tensor(teacher.logits(ids)) for teacher in teachers]
        return ensemble([one.to(each[0].device) for one in each])

    key = _digest(["ensemble", *sorted(teacher.digest for teacher in teachers)])
    return Teacher(logits, key, vocabularies.pop(), min(teacher.n_positions for teacher in teachers))


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What labels are of: they are reused only where all of this is the same.

    top_k: 0 for whole distributions. temperature: of top-k labels; None for whole ones, which hold for all.
    """

    teacher: str
    samples: str
    count: int
    context: int
    vocab_size: int
    top_k: int
    temperature: float | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one sample: float16 log-probabilities; of top-k the ids, in the smallest type, and the remaining mass."""
        if not self.top_k:
            return np.dtype([("values", "<f2", (self.context, self.vocab_size))])
        ids = np.min_scalar_type(self.vocab_size - 1).newbyteorder("<")
        shape = (self.context, self.top_k)
        return np.dtype([("values", "<f2", shape), ("ids", ids, shape), ("rest", "<f2", (self.context,))])

    @property
    def nbytes(self) -> int:
        """What the labels take on the disk."""
        return self.count * self.dtype.itemsize

    @property
    def chunk(self) -> int:
        """Samples that the teacher is given at once."""
        tokens = min(_CHUNK_TOKENS, _CHUNK_LOGITS // self.vocab_size)
        return max(1, tokens // self.context)

    @property
    def chunks(self) -> int:
        return -(-self.count // self.chunk)


def plan_labels(samples: Samples, teacher: Teacher, *, top_k: int | None = None, temperature: float = 1.0) -> Plan:
    """What `write_labels` would write, and how many bytes (`nbytes`).

    top_k: Tokens kept at each position; 0 keeps all, None too for a vocabulary of up to 1024, and 64 for a larger one.
    temperature: At which top-k labels are taken; whole labels hold for every temperature.
    Raises InputError where the teacher does not fit the samples, and for options outside their ranges.
    """
    teacher.check(samples)
    check_temperature(temperature)
    vocab_size = samples.vocab_size
    if top_k is None:
        top_k = 0 if vocab_size <= WHOLE_VOCABULARY else TOP_K
    top_k = integer("top_k", top_k, minimum=0)
    if top_k > vocab_size:
        raise InputError(f"top_k is {top_k}; expected at most the vocabulary's {vocab_size}, and 0 keeps all")
    at = float(temperature) if top_k else None
    return Plan(teacher.digest, samples.digest, len(samples), samples.context, vocab_size, top_k, at)


class LabelFile:
    """Labels on the disk, memory-mapped: `labels[i]` is sample i's, `labels[[5, 2]]` a batch's in that order.

    Reading is safe from several threads, after a fork, and by processes to which this was pickled.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.plan = plan
        self._directory = directory
        self._records = np.memmap(directory / DATA, plan.dtype, "r", shape=(plan.count,))

    def __len__(self) -> int:
        return self.plan.count

    def __getitem__(self, indices: int | Sequence[int] | NDArray[np.int64]) -> SoftLabels:
        """A copy of [n, T, ...], n = 1 for a lone index; values are float16, ids int64. Raises IndexError."""
        chosen = np.atleast_1d(np.asarray(indices, np.int64))
        if ((chosen < 0) | (chosen >= len(self))).any():
            raise IndexError(f"samples {chosen.tolist()} are not all in 0 to {len(self) - 1}")
        records = self._records[chosen]
        values = torch.from_numpy(np.ascontiguousarray(records["values"]))
        if not self.plan.top_k:
            return SoftLabels(values)
        ids = torch.from_numpy(records["ids"].astype(np.int64))
        return SoftLabels(values, ids, torch.from_numpy(np.ascontiguousarray(records["rest"])), self.plan.temperature)

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelFile, (self._directory, self.plan)


def open_labels(directory: Path, plan: Plan) -> LabelFile:
    """The labels of a plan, every byte read and checked once.

    Raises InputError where there are none, and where they are of another plan, incomplete or damaged.
    """
    _check_header(directory, plan)
    intact, recorded = _checked_chunks(directory, plan)
    if intact < recorded:
        raise InputError(
            f"{directory / DATA} is damaged in the samples from {intact * plan.chunk} on: make the labels again, which "
            "keeps those before"
        )
    if intact < plan.chunks:
        raise InputError(
            f"the soft labels in {directory} are incomplete ({intact * plan.chunk} of {plan.count} samples): make them "
            "again, which goes on from there"
        )
    return LabelFile(directory, plan)


def write_labels(
    directory: Path,
    samples: Samples,
    teacher: Teacher,
    *,
    top_k: int | None = None,
    temperature: float = 1.0,
    progress: bool | None = None,
) -> LabelFile:
    """Makes the labels of `plan_labels` in a directory, or what is missing of them, and opens them.

    Labels do not depend on which samples were made together, beyond the rounding of the teacher's arithmetic in a
    batch; a baked teacher's do not at all. Those of an interrupted run are the same bytes as of an uninterrupted one.

    progress: Whether to draw a bar on stderr; None draws it on a terminal.
    Raises InputError for labels of another plan, which are left as they are; KaokenError where the disk is full, with
    all complete chunks kept, or where the teacher's logits are not finite.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    plan = plan_labels(samples, teacher, top_k=top_k, temperature=temperature)
    with _explained(directory, plan):
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / LOCK, lambda: print(f"waiting for another writer of {directory}", file=sys.stderr)):
            first = plan.chunk * _prepare(directory, plan)
            disable = None if progress is None else not progress
            with tqdm(total=plan.count, initial=first, unit="sample", desc="soft labels", disable=disable) as bar:
                for start in range(first, plan.count, plan.chunk):
                    stop = min(start + plan.chunk, plan.count)
                    records = _records(plan, start, stop, teacher.logits(samples.inputs(start, stop)))
                    _append(directory, start * plan.dtype.itemsize, records.tobytes())
                    bar.update(stop - start)
    return LabelFile(directory, plan)


def _prepare(directory: Path, plan: Plan) -> int:
    """How many chunks are complete; space has been reserved for the others."""
    done = 0
    if (directory / HEADER).exists():
        _check_header(directory, plan)
        done, _ = _checked_chunks(directory, plan)
    if done < plan.chunks:
        _reserve(directory, plan, done)
    return done


def _records(plan: Plan, start: int, stop: int, given: Any) -> NDArray[np.void]:
    """The records of the samples from start to before stop, from the teacher's logits [stop - start, T, V]."""
    logits = torch.as_tensor(given)
    expected = [stop - start, plan.context, plan.vocab_size]
    if list(logits.shape) != expected:
        raise InputError(f"the teacher gave logits of the shape {list(logits.shape)}; expected {expected}: check it")
    if not torch.isfinite(logits).all():
        raise KaokenError(
            f"the teacher's logits are NaN or infinite in the samples {start} to {stop - 1}; expected finite "
            "ones: check its weights, or run it in float32"
        )
    records = np.empty(stop - start, plan.dtype)
    if plan.temperature is None:
        records["values"] = _float16(whole_labels(logits).values)
        return records
    labels = top_k_labels(logits, plan.top_k, plan.temperature)
    assert labels.ids is not None
    assert labels.rest is not None
    records["values"] = _float16(labels.values)
    records["ids"] = labels.ids.cpu().numpy()
    records["rest"] = labels.rest.half().cpu().numpy()
    return records


def _float16(log_p: Tensor) -> NDArray[np.float16]:
    values: NDArray[np.float16] = log_p.clamp(min=_LEAST).half().cpu().numpy()
    return values


def _append(directory: Path, offset: int, data: bytes) -> None:
    """Writes a chunk, and then its checksum: without that it does not count."""
    with (directory / DATA).open("r+b") as file:
        file.seek(offset)
        file.write(data)
    with (directory / CHECKSUMS).open("ab") as file:
        file.write(zlib.crc32(data).to_bytes(4, "little"))


def _reserve(directory: Path, plan: Plan, done: int) -> None:
    """Space for all labels, so that a full disk is found before hours of work; keeps the first `done` chunks."""
    data, header, checksums = (directory / name for name in (DATA, HEADER, CHECKSUMS))
    new = not header.exists()
    with data.open("wb" if new else "r+b") as file:
        taken = 512 * os.fstat(file.fileno()).st_blocks
        try:
            if plan.nbytes - taken > shutil.disk_usage(directory).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _allocate(file.fileno(), plan.nbytes)
        except OSError:
            if new:
                data.unlink()
            raise
    checksums.touch()
    os.truncate(checksums, 0 if new else 4 * done)
    if new:
        temporary = header.with_suffix(".tmp")
        temporary.write_text(json.dumps(_header(plan), indent=2) + "\n", encoding="utf-8")
        temporary.replace(header)


def _allocate(descriptor: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # of file systems that cannot reserve
            raise
        os.truncate(descriptor, nbytes)


@contextmanager
def _explained(directory: Path, plan: Plan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise KaokenError(
                f"the soft labels in {directory} cannot be written ({error}): check the directory and its permissions"
            ) from error
        raise KaokenError(
            f"the disk is full: the soft labels in {directory} take {plan.nbytes} bytes, and "
            f"{shutil.disk_usage(directory).free} are free beside what is written: free some, give another directory, "
            "or keep fewer tokens (top_k), and run again; what is complete is kept"
        ) from error


def _header(plan: Plan) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(plan), "chunk": plan.chunk}


def _check_header(directory: Path, plan: Plan) -> None:
    """Raises InputError unless labels of this plan are there."""
    try:
        stored = json.loads((directory / HEADER).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{directory} has no {HEADER}, so there are no soft labels in it: make them first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{directory / HEADER} cannot be read ({error}): delete the directory and make them"
        ) from error
    found = stored if isinstance(stored, dict) else {}
    others = [
        f"{name} {_short(found.get(name))} instead of {_short(value)}"
        for name, value in _header(plan).items()
        if found.get(name) != value
    ]
    if others:
        raise InputError(
            f"the soft labels in {directory} are others than asked for: {', '.join(others)}; give another directory, "
            "or delete this one to make them again"
        )


def _short(value: object) -> str:
    """As much of a digest, or of what was read from a file, as tells it from another."""
    return repr(value)[:13].strip("'")


def _checked_chunks(directory: Path, plan: Plan) -> tuple[int, int]:
    """How many chunks fit their checksums, up to the first that does not, and how many checksums there are."""
    data, checksums = directory / DATA, directory / CHECKSUMS
    nbytes = plan.chunk * plan.dtype.itemsize
    try:
        recorded = min(checksums.stat().st_size // 4, plan.chunks)
        with data.open("rb") as file, checksums.open("rb") as expected:
            size = os.fstat(file.fileno()).st_size
            if size != plan.nbytes:
                raise InputError(
                    f"{data} has {size} bytes; expected {plan.nbytes}: it was cut or changed, so delete {directory} "
                    "and make the labels again"
                )
            for chunk in range(recorded):
                if zlib.crc32(file.read(nbytes)).to_bytes(4, "little") != expected.read(4):
                    return chunk, recorded
    except OSError as error:
        raise InputError(
            f"{error.filename or data} cannot be read ({error.strerror}): delete {directory} and make the labels again"
        ) from error
    return recorded, recorded
