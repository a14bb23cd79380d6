"""Which form of the Triton kernels of deformable attention runs: block shape, warps, and three switches.

A `Candidate` is one form. For each problem (kernel, dtypes, layer shape, coarse class of query counts) the first of
these that applies decides:

1. `use_candidate` or the environment variable CODETR_DEFORM_ATTN_TRITON, where it names a candidate;
2. what was measured before, in this process or in another one on the same kind of GPU (a file in the cache folder);
3. a measurement on first use, in one process of each machine (LOCAL_RANK 0). Processes never wait for it: they see
   different image sizes at different times, so that a collective operation could hang. They use 4 and look for the
   file now and then;
4. `SHIPPED`, for the architecture: also for small problems, inside a CUDA graph capture, where a fixed order is wanted,
   and always with CODETR_DEFORM_ATTN_TRITON=shipped. CODETR_DEFORM_ATTN_TRITON=tune measures again and ignores files.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codetr_cli.errors import ConfigError, ResourceError
from codetr_cli.files import cache_dir, replace_file
from codetr_cli.reading import parse_json, read_bytes

VARIABLE = "CODETR_DEFORM_ATTN_TRITON"
"""Environment variable: "auto", "shipped", "tune", or the name of a candidate."""

MODES = ("auto", "shipped", "tune")

ELEMENTS_PER_THREAD = (4, 32)
"""Least and most numbers of a tile for each thread: fewer leave threads idle, more do not fit the registers."""

MAX_FILE_BYTES = 100_000

log = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """One form of the kernels; its name is "ROWSxCOLUMNSwWARPS", with "+clamped" and "+together" behind.

    Attributes:
        rows: of the tile of queries. 1: consecutive queries; more: a rectangle of an encoder's grid.
        columns: of that tile.
        warps: of a program.
        clamped: corners outside the map read the nearest cell and count nothing, instead of a masked load.
        together: samples of all levels in one tile, instead of a loop over levels.
    """

    rows: int
    columns: int
    warps: int
    clamped: bool = False
    together: bool = False

    def __str__(self) -> str:
        switches = "+clamped" * self.clamped + "+together" * self.together
        return f"{self.rows}x{self.columns}w{self.warps}{switches}"

    @classmethod
    def parse(cls, name: str) -> Candidate:
        """The candidate of a name.

        Raises:
            ValueError: it is no such name.
        """
        found = re.fullmatch(r"(\d+)x(\d+)w(\d+)(\+clamped)?(\+together)?", name)
        numbers = [int(number) for number in found.groups()[:3]] if found else []
        if not found or any(number < 1 or number & (number - 1) for number in numbers):
            raise ValueError(f"{name!r} is not ROWSxCOLUMNSwWARPS in powers of two, with +clamped and +together behind")
        return cls(numbers[0], numbers[1], numbers[2], bool(found[4]), bool(found[5]))

    @property
    def queries(self) -> int:
        """Queries of a program."""
        return self.rows * self.columns

    @property
    def constants(self) -> dict[str, Any]:
        """The compile-time constants of the kernels that it sets."""
        tile = {"BLOCK_Q": self.queries, "TILE_ROWS": self.rows}
        return tile | {"CLAMPED": self.clamped, "TOGETHER": self.together}

    def programs(self, queries: int, spatial_shapes: tuple[tuple[int, int], ...]) -> int:
        """Programs that cover all queries of an image and head.

        Args:
            queries: their number.
            spatial_shapes: (H, W) of each level; of the grids of queries too where `rows` is more than 1.
        """
        if self.rows == 1:
            return -(-queries // self.columns)
        return sum(-(-height // self.rows) * -(-width // self.columns) for height, width in spatial_shapes)


LINES = ("1x8w1", "1x8w2", "1x8w4", "1x16w2", "1x16w4", "1x32w4", "1x64w8")
"""Blocks of consecutive queries: many queries of a warp share arithmetic, few leave registers for more warps."""

CANDIDATES = {
    "forward": tuple(
        Candidate.parse(name)
        for name in (
            *LINES,
            *("1x8w1+clamped", "1x32w4+clamped", "1x1w1+clamped+together", "1x2w2+clamped+together"),
            *("4x8w4", "2x4w1+clamped", "4x8w4+clamped", "8x8w8+clamped"),
        )
    ),
    "backward": tuple(Candidate.parse(name) for name in (*LINES, "1x2w2+together", "2x4w1", "4x8w4", "8x8w8")),
}
"""What is measured, by kernel. Backward has masks anyway, for its additions: +clamped makes it longer."""

MOST_QUERIES = max(candidate.queries for candidates in CANDIDATES.values() for candidate in candidates)

DEFAULT = Candidate(1, 8, 4)

_ENCODER_FORWARD = {("forward", True): Candidate(4, 8, 4, clamped=True)}

SHIPPED: dict[str, dict[tuple[str, bool], Candidate]] = {
    # Backward: the least instructions without spilled registers.
    **{key: {**_ENCODER_FORWARD, ("backward", True): Candidate(2, 4, 1)} for key in ("sm_80", "sm_86", "sm_89")},
    "sm_90": {**_ENCODER_FORWARD, ("backward", True): Candidate(4, 8, 4)},
    "gfx942": _ENCODER_FORWARD,
}
"""Architecture -> (kernel, whether the queries are an encoder's grid) -> candidate.

Estimated from compiled code, not measured (docs/triton_kernels.md). `DEFAULT` elsewhere: decoders have too few queries
to fill a GPU with larger blocks.
"""


class Problem(NamedTuple):
    """What a choice depends on.

    Attributes:
        kernel: "forward" or "backward".
        device: the GPU.
        query_class: coarse class of query counts; 0 is too small to be measured.
        is_grid: whether the queries are the tokens of the levels, as in an encoder.
        dtypes: of the tensors.
        constants: compile-time constants of the kernel besides the candidate's.
    """

    kernel: str
    device: torch.device
    query_class: int
    is_grid: bool
    dtypes: tuple[torch.dtype, ...]
    constants: tuple[tuple[str, Any], ...]

    def elements_per_thread(self, candidate: Candidate) -> float:
        """Numbers of the candidate's tile (queries, samples, channels) for each thread."""
        sizes = dict(self.constants)
        samples = sizes["TERMS_PAD" if candidate.together else "POINTS_PAD"]
        threads = candidate.warps * warp_size(self.device)
        return candidate.queries * samples * sizes["CHANNELS_PAD"] / threads

    def adapted(self, candidate: Candidate) -> Candidate:
        """The candidate, with consecutive queries where they are no grid."""
        return candidate if self.is_grid else candidate._replace(rows=1, columns=candidate.queries)

    def candidates(self) -> list[Candidate]:
        """Those worth measuring."""
        possible = [candidate for candidate in CANDIDATES[self.kernel] if candidate == self.adapted(candidate)]
        least, most = ELEMENTS_PER_THREAD
        fitting = [candidate for candidate in possible if least <= self.elements_per_thread(candidate) <= most]
        return fitting or [min(possible, key=self.elements_per_thread)]

    def shipped(self) -> Candidate:
        """The choice without a measurement, with smaller tiles where they would not fit the registers."""
        table = SHIPPED.get(architecture(self.device), {})
        candidate = self.adapted(table.get((self.kernel, self.is_grid), DEFAULT))
        while candidate.queries > 1 and self.elements_per_thread(candidate) > ELEMENTS_PER_THREAD[1]:
            rows, columns = candidate.rows, candidate.columns
            rows, columns = (rows // 2, columns) if rows > columns else (rows, columns // 2)
            candidate = candidate._replace(rows=rows, columns=columns)
        return candidate


@functools.cache
def architecture(device: torch.device) -> str:
    """The name of a GPU's instruction set, "sm_90" or "gfx942"; the type of other devices."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def warp_size(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's data centre GPUs, 32 on all others."""
    return 64 if architecture(device).startswith("gfx9") else 32


# ------------------------------------------------------------------------------------------------------------ choosing

_forced: Candidate | None = None
_chosen: dict[Problem, Candidate] = {}
_lookups: Counter[Problem] = Counter()
_measuring = threading.Lock()


@contextmanager
def use_candidate(candidate: Candidate) -> Iterator[None]:
    """Forces a candidate for all calls in the context, in all threads."""
    global _forced
    before, _forced = _forced, candidate
    try:
        yield
    finally:
        _forced = before


def forced_candidate() -> Candidate | None:
    """The candidate that `use_candidate` or the environment forces."""
    if _forced is not None:
        return _forced
    name = os.environ.get(VARIABLE, MODES[0])
    if name in MODES:
        return None
    try:
        return Candidate.parse(name)
    except ValueError as error:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(MODES)}, or a candidate: {error}") from None


def choose(problem: Problem, *, fixed: bool) -> Candidate | None:
    """The candidate to use; None where `measure` must find it first.

    Args:
        problem: what runs.
        fixed: the choice must be the same in every run, so it does not depend on a measurement.

    Raises:
        ConfigError: the environment names something else.
    """
    if (forced := forced_candidate()) is not None:
        return problem.adapted(forced)
    mode = os.environ.get(VARIABLE, MODES[0])
    if fixed or problem.query_class == 0 or mode == "shipped":
        return problem.shipped()
    if problem in _chosen:
        return _chosen[problem]
    if (mode != "tune" or not _measures()) and _is_time_to_look(problem) and (saved := _load(problem)) is not None:
        return _chosen.setdefault(problem, saved)
    if not _measures() or torch.cuda.is_current_stream_capturing():
        return problem.shipped()
    return None


def measure(problem: Problem, run: Callable[[Candidate], object]) -> Candidate:
    """Times all candidates, keeps the fastest and writes it to the cache folder.

    Args:
        problem: what runs.
        run: launches a candidate.
    """
    with _measuring:
        if problem in _chosen:
            return _chosen[problem]
        times: dict[Candidate, float] = {}
        for candidate in problem.candidates():
            try:
                times[candidate] = milliseconds(functools.partial(run, candidate))
            except Exception as error:  # a candidate that this compiler or GPU refuses, or no memory for the timing
                log.debug("Triton candidate %s of %s fails: %s", candidate, problem.kernel, error)
        chosen = min(times, key=times.__getitem__) if times else problem.shipped()
        if times:
            _save(problem, chosen, times)
        return _chosen.setdefault(problem, chosen)


def milliseconds(call: Callable[[], object]) -> float:
    """Median time of a call on the current GPU, with an empty L2 cache."""
    do_bench = importlib.import_module("triton.testing").do_bench
    return float(do_bench(call, warmup=10, rep=40, return_mode="median"))


def _measures() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _is_time_to_look(problem: Problem) -> bool:
    """Whether to look for a file: at the calls 1, 2, 4, 8, ..."""
    _lookups[problem] += 1
    return _lookups[problem] & (_lookups[problem] - 1) == 0


def _description(problem: Problem) -> dict[str, Any]:
    """All that a measurement depends on."""
    folder = Path(__file__).parent
    sources = (folder / name for name in ("deform_attn_triton_kernels.py", Path(__file__).name))
    name = torch.cuda.get_device_properties(problem.device).name if problem.device.type == "cuda" else "none"
    return {
        "gpu": name,
        "architecture": architecture(problem.device),
        "torch": torch.__version__,
        "triton": str(importlib.import_module("triton").__version__),
        "sources": hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest(),
        "problem": [str(part) for part in problem._replace(device=torch.device(problem.device.type))],
    }


def _path(problem: Problem) -> Path:
    text = json.dumps(_description(problem))
    return cache_dir() / "triton" / f"{problem.kernel}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _load(problem: Problem) -> Candidate | None:
    """The candidate that was measured before; only one that this program would measure is taken.

    Others could be compiled for hours, or ask a GPU for more than it has.
    """
    path, description = _path(problem), _description(problem)
    try:
        table = parse_json(read_bytes(path, MAX_FILE_BYTES))
        chosen = Candidate.parse(table["chosen"])
        if chosen in problem.candidates() and {key: table.get(key) for key in description} == description:
            return chosen
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    log.info("the measurement in the cache, %s, is damaged: it is made again", path)
    return None


def _save(problem: Problem, chosen: Candidate, times: dict[Candidate, float]) -> None:
    found = {"chosen": str(chosen), "milliseconds": {str(candidate): time for candidate, time in times.items()}}
    with suppress(ResourceError), replace_file(_path(problem), parents=True) as temporary:  # a read-only cache folder
        temporary.write_text(json.dumps(found | _description(problem), indent=1), encoding="utf-8")
