"""What the models of a run take of every GPU, and whether it fits, found out before anything is started.

The rows of a plan (``fgaif_ray.cluster.plan``) say which node types take which actors; here each actor that holds a
model is counted on its GPU (``fgaif_ray.cluster.actor_memory``), and actors that ask for fractions are put together
as Ray puts them: onto as few GPUs as they go.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fgaif_ray.cluster.accelerators import gpu_bytes
from fgaif_ray.cluster.actor_memory import GIB, SERVER, Footprint, footprint
from fgaif_ray.cluster.dry_run import UncountableModelError
from fgaif_ray.cluster.node_types import ClusterFile, NodeType
from fgaif_ray.cluster.plan import Assignment
from fgaif_ray.cluster.remedies import remedy
from fgaif_ray.cluster.resources import ALIGN_STAGE, SERVE_STAGE, ResourceRequest
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError

TITLES: Final = ("stage", "actor", "what", "GiB each", "total", "GPU", "fits")
RIGHT: Final = ("GiB each", "total", "GPU")


@dataclass(frozen=True, slots=True)
class Holding:
    """Equal actors on nodes of one type, and what each of them keeps on its device."""

    config: Config
    stage: str
    request: ResourceRequest
    node_type: str
    count: int
    gpu: int | None
    """Bytes of the GPU, where it has one and its memory is known."""
    footprint: Footprint | None
    reason: str = ""
    """Why there is no footprint."""

    @property
    def total(self) -> int:
        """Bytes that are known."""
        return self.footprint.total if self.footprint else 0


@dataclass(frozen=True, slots=True)
class Load:
    """Actors that share a GPU, or one alone on it."""

    holdings: tuple[tuple[Holding, int], ...]
    """Each with the number of its actors on this GPU."""

    @property
    def total(self) -> int:
        """Bytes that are known."""
        return sum(holding.total * count for holding, count in self.holdings)

    @property
    def weights(self) -> int:
        """Bytes of models' weights."""
        return sum(one.footprint.weights * count for one, count in self.holdings if one.footprint)

    @property
    def gpu(self) -> int | None:
        """Bytes of the GPU."""
        return self.holdings[0][0].gpu

    @property
    def actors(self) -> str:
        """E.g. ``Learner + 2 RolloutWorker``."""
        return " + ".join(
            f"{count} {one.request.actor}" if count > 1 else one.request.actor for one, count in self.holdings
        )

    @property
    def crowded(self) -> Holding | None:
        """An engine that looks for a larger share of the GPU at its start than the others leave."""
        for one, _ in self.holdings:
            claim = one.footprint.claim if one.footprint else 0
            if self.gpu is not None and self.total - one.total + claim > self.gpu:
                return one
        return None

    @property
    def fits(self) -> bool | None:
        """None where it cannot be known."""
        footprints = [one.footprint for one, _ in self.holdings]
        if self.gpu is not None and self.total > self.gpu:
            return False
        if self.crowded is not None or any(one is not None and one.shortage for one in footprints):
            return False
        if self.gpu is None or any(one is None or not one.is_whole for one in footprints):
            return None
        return True


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """All holdings, and what lies together on each kind of GPU."""

    holdings: tuple[Holding, ...]
    loads: tuple[Load, ...]

    def table(self) -> str:
        """As text for a terminal."""
        rows = [TITLES, *(row for one in self.holdings for row in _rows(one, Load(((one, 1),))))]
        rows += [_shared_row(load) for load in self.loads if _is_shared(load)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
        lines = [
            "  ".join(
                cell.rjust(width) if title in RIGHT else cell.ljust(width)
                for cell, width, title in zip(row, widths, TITLES)
            ).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    def warnings(self) -> Iterator[str]:
        """A sentence about each GPU that does not hold what is on it, and each actor that cannot use what it gets."""
        for load in self.loads:
            if load.fits is False:
                yield _too_large(load)
        for one in self.holdings:
            if not one.request.num_gpus and one.footprint is not None and one.footprint.shortage:
                yield f"{one.stage}: {one.request.actor} cannot start: {one.footprint.shortage}."
            if one.request.num_gpus > 1:
                yield (
                    f"{one.stage}: a {one.request.actor} asks for {one.request.num_gpus:g} GPUs and computes on one of "
                    f"them: set what {one.request.section} asks for to 1, and start more of them instead."
                )

    def check(self) -> None:
        """Raises UserError where weights alone are more than a GPU holds."""
        for load in self.loads:
            if load.gpu is not None and load.weights > load.gpu:
                first = load.holdings[0][0]
                settings = "".join(f"{found}, " for found in _remedies(load))
                raise UserError(
                    f"{first.stage}: the weights alone of {load.actors} take {_gib(load.weights)} GiB, more than the "
                    f"{_gib(load.gpu)} GiB of a GPU of {first.node_type}: {settings}take a node type with larger GPUs, "
                    "a smaller model" + (", or let fewer actors share a GPU." if _is_shared(load) else ".")
                )


def plan_memory(
    config: Config, cluster: ClusterFile, plan: Sequence[Assignment], gpu_memory: int | None = None
) -> MemoryPlan:
    """Count what every actor of a plan keeps on its device.

    Args:
        config: the configuration.
        cluster: what it is planned for.
        plan: from ``plan_cluster``.
        gpu_memory: bytes of every GPU; None takes what the node types tell of theirs.
    """
    types = {node_type.name: node_type for node_type in cluster.node_types}
    holdings: list[Holding] = []
    for row in plan:
        wanted = [(row.request, types[name], count) for name, count in row.node_types.items()]
        if (server := _server(config, row.request, types[cluster.head])) is not None:
            wanted.append((server, types[cluster.head], 1))
        for request, node_type, count in wanted:
            gpu = None
            if request.num_gpus:
                gpu = gpu_bytes(node_type.accelerator) if gpu_memory is None else gpu_memory
            found, reason = None, ""
            try:
                found = footprint(config, request, gpu)
            except UncountableModelError as error:
                reason = str(error)
            if found is not None or reason:
                holdings.append(Holding(config, row.stage, request, node_type.name, count, gpu, found, reason))
    loads = [load for stage in dict.fromkeys(one.stage for one in holdings) for load in _loads(stage, holdings)]
    return MemoryPlan(tuple(holdings), tuple(loads))


def _server(config: Config, request: ResourceRequest, head: NodeType) -> ResourceRequest | None:
    """The server that the job starts on the driver's machine beside these actors, if any."""
    calls = {"FactExtraction": config.label.extractor, "Generator": config.evaluate.judge}.get(request.actor)
    if calls is None or calls.serve_model is None:
        return None
    return ResourceRequest(SERVER, f"{calls.section}.engine", 1, 0, 1 if head.resources.get("GPU", 0) > 0 else 0)


def _loads(stage: str, holdings: Sequence[Holding]) -> list[Load]:
    """What lies together on GPUs while a stage runs."""
    beside = [one for one in holdings if one.stage == SERVE_STAGE] if stage == ALIGN_STAGE else []
    own = [one for one in holdings if one.stage == stage and one.request.num_gpus > 0]
    loads: list[Load] = []
    for node_type in dict.fromkeys(one.node_type for one in own):
        here = [one for one in (*beside, *own) if one.node_type == node_type and one.request.num_gpus > 0]
        packed = [*_packed([one for one in here if one.request.actor != SERVER])]
        # The server is no actor: Ray does not know of it, and gives its GPU to others.
        server = next((one for one in here if one.request.actor == SERVER), None)
        if server is not None:
            packed = [Load(((server, 1), *(packed[0].holdings if packed else ()))), *packed[1:]]
        different = {load.actors: load for load in packed}
        loads += [load for load in different.values() if any(one.stage == stage for one, _ in load.holdings)]
    return loads


def _packed(holdings: Sequence[Holding]) -> Iterator[Load]:
    """GPUs of a node type: actors that ask for one or more are alone, fractions fill as few as they go on."""
    left: list[float] = []
    bins: list[Counter[int]] = []
    order = sorted(range(len(holdings)), key=lambda index: -holdings[index].request.num_gpus)
    for index in order:
        share = holdings[index].request.num_gpus
        if share >= 1:
            yield Load(((holdings[index], 1),))
            continue
        for _ in range(holdings[index].count):
            place = next((place for place, room in enumerate(left) if room >= share), None)
            if place is None:
                place = len(left)
                left.append(1.0)
                bins.append(Counter())
            left[place] = round(left[place] - share, 4)  # Ray counts in ten-thousandths
            bins[place][index] += 1
    for together in bins:
        yield Load(tuple((holdings[index], together[index]) for index in sorted(together)))


def _is_shared(load: Load) -> bool:
    return sum(count for _, count in load.holdings) > 1


def _too_large(load: Load) -> str:
    first = load.holdings[0][0]
    where = f"{first.stage}: {load.actors} on {first.node_type}"
    shortage = next(
        (one.footprint.shortage for one, _ in load.holdings if one.footprint and one.footprint.shortage), ""
    )
    if shortage:
        return f"{where} cannot start: {shortage}, or take a node type with larger GPUs."
    assert load.gpu is not None
    if load.total <= load.gpu and (engine := load.crowded) is not None:
        left = math.floor(100 * (load.gpu - load.total + engine.total) / load.gpu) / 100
        return (
            f"{where} cannot start: a {engine.request.actor} looks for a larger share of the GPU than the others "
            f"leave: set {engine.request.section}.gpu_memory_utilization={left:g}."
        )
    fewer = ["let fewer actors share a GPU (a larger num_gpus)"] if _is_shared(load) else []
    advice = ", or ".join([*_remedies(load), *fewer, "take a node type with larger GPUs"])
    return f"{where} may need {_gib(load.total)} GiB of a GPU of {_gib(load.gpu)} GiB: {advice}."


def _remedies(load: Load) -> list[str]:
    """Settings, each of one kind of actor, that make the whole load fit."""
    found = []
    for one, count in load.holdings:
        if one.footprint is not None and load.gpu is not None:
            room = (load.gpu - load.total + count * one.total) // count
            found.append(remedy(one.config, one.request, one.footprint, load.gpu, room))
    return [f"set {settings}" for settings in found if settings]


def _rows(holding: Holding, alone: Load) -> Iterator[tuple[str, ...]]:
    """One for each part, the totals in the first."""
    request = holding.request
    actor = f"{holding.count} {request.actor}"
    gpu = ("?" if holding.gpu is None else _gib(holding.gpu)) if request.num_gpus else "none"
    if holding.footprint is None:
        yield holding.stage, actor, holding.reason, "?", "?", gpu, "?" if request.num_gpus else ""
        return
    over = "" if holding.footprint.is_whole else "over "
    answers: Mapping[bool | None, str] = {True: "yes", False: "NO", None: "?"}
    fits = answers[alone.fits] if request.num_gpus or holding.footprint.shortage else ""
    first = (holding.stage, actor)
    last = (over + _gib(holding.total), gpu, fits)
    for part in holding.footprint.parts:
        yield *first, part.what, "?" if part.size is None else _gib(part.size), *last
        first, last = ("", ""), ("", "", "")


def _shared_row(load: Load) -> tuple[str, ...]:
    answers: Mapping[bool | None, str] = {True: "yes", False: "NO", None: "?"}
    first = load.holdings[0][0]
    gpu = "?" if load.gpu is None else _gib(load.gpu)
    known = all(one.footprint is not None and one.footprint.is_whole for one, _ in load.holdings)
    total = ("" if known else "over ") + _gib(load.total)
    return first.stage, load.actors, f"together on one GPU of {first.node_type}", "", total, gpu, answers[load.fits]


def _gib(size: int) -> str:
    """Two digits behind the point of small figures, one of large ones."""
    value = size / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
