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
from fgaif_ray.cluster.actor_memory import GIB, SERVER, Footprint, Part, footprint
from fgaif_ray.cluster.dry_run import UncountableModelError
from fgaif_ray.cluster.node_types import ClusterFile, NodeType
from fgaif_ray.cluster.plan import Assignment
from fgaif_ray.cluster.remedies import remedy
from fgaif_ray.cluster.resources import ALIGN_STAGE, SERVE_STAGE, ResourceRequest
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.tables import table_lines

TITLES: Final = ("stage", "actor", "what", "GiB each", "total", "GPU", "fits")
RIGHT: Final = (3, 4, 5)
ANSWERS: Final[Mapping[bool | None, str]] = {True: "yes", False: "NO", None: "?"}


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
    footprint: Footprint
    """Of a model that cannot be counted, one unknown part that says why."""

    @property
    def total(self) -> int:
        """Bytes that are known."""
        return self.footprint.total


@dataclass(frozen=True, slots=True)
class Load:
    """Actors that share a GPU, or one alone on it."""

    holdings: tuple[tuple[Holding, int], ...]
    """Each with the number of its actors on this GPU."""

    @property
    def first(self) -> Holding:
        """One of them; stage, node type and GPU are the same for all."""
        return self.holdings[0][0]

    @property
    def gpu(self) -> int | None:
        """Bytes of the GPU."""
        return self.first.gpu

    @property
    def total(self) -> int:
        """Bytes that are known."""
        return sum(one.total * count for one, count in self.holdings)

    @property
    def weights(self) -> int:
        """Bytes of models' weights."""
        return sum((one.footprint.parts[0].size or 0) * count for one, count in self.holdings)

    @property
    def actors(self) -> str:
        """E.g. ``Learner + 2 RolloutWorker``."""
        names = ((one.request.actor, count) for one, count in self.holdings)
        return " + ".join(f"{count} {name}" if count > 1 else name for name, count in names)

    @property
    def is_shared(self) -> bool:
        """Whether there are several actors."""
        return sum(count for _, count in self.holdings) > 1

    @property
    def shortage(self) -> str:
        """Why one of them cannot start, whatever the others take."""
        return next((one.footprint.shortage for one, _ in self.holdings if one.footprint.shortage), "")

    @property
    def crowded(self) -> Holding | None:
        """An engine that looks for a larger share of the GPU at its start than the others leave."""
        for one, _ in self.holdings:
            if self.gpu is not None and self.total - one.total + one.footprint.claim > self.gpu:
                return one
        return None

    @property
    def is_whole(self) -> bool:
        """Whether all that is on it is known."""
        return all(one.footprint.is_whole for one, _ in self.holdings)

    @property
    def fits(self) -> bool | None:
        """None where it cannot be known."""
        if self.shortage or self.crowded or (self.gpu is not None and self.total > self.gpu):
            return False
        return None if self.gpu is None or not self.is_whole else True


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """All holdings, and what lies together on each kind of GPU."""

    holdings: Sequence[Holding]
    loads: Sequence[Load]

    def table(self) -> str:
        """As text for a terminal."""
        rows = [row for one in self.holdings for row in _rows(one)]
        for load in self.loads:
            if load.is_shared:
                place = f"together on one GPU of {load.first.node_type}"
                rows.append((load.first.stage, load.actors, place, "", *_last_cells(load)))
        return "\n".join(table_lines([TITLES, *rows], RIGHT, rule=True))

    def warnings(self) -> Iterator[str]:
        """A sentence about each GPU that does not hold what is on it, and each actor that cannot use what it gets."""
        for load in self.loads:
            if load.fits is False:
                yield _too_large(load)
        for one in self.holdings:
            if not one.request.num_gpus and one.footprint.shortage:
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
                settings = "".join(f"{found}, " for found in _remedies(load))
                raise UserError(
                    f"{load.first.stage}: the weights alone of {load.actors} take {_gib(load.weights)} GiB, more than "
                    f"the {_gib(load.gpu)} GiB of a GPU of {load.first.node_type}: {settings}take a node type with "
                    "larger GPUs, a smaller model" + (", or let fewer actors share a GPU." if load.is_shared else ".")
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
            try:
                found = footprint(config, request, gpu)
            except UncountableModelError as error:
                found = Footprint([Part(str(error), None)])
            if found is not None:
                holdings.append(Holding(config, row.stage, request, node_type.name, count, gpu, found))
    stages = dict.fromkeys(row.stage for row in plan)
    return MemoryPlan(holdings, [load for stage in stages for load in _loads(stage, holdings)])


def _server(config: Config, request: ResourceRequest, head: NodeType) -> ResourceRequest | None:
    """The server that the job starts on the driver's machine beside these actors, if any."""
    calls = {"FactExtraction": config.label.extractor, "Generator": config.evaluate.judge}.get(request.actor)
    if calls is None or calls.serve_model is None:
        return None
    return ResourceRequest(SERVER, f"{calls.section}.engine", 1, 0, 1 if head.resources.get("GPU", 0) > 0 else 0)


def _loads(stage: str, holdings: Sequence[Holding]) -> Iterator[Load]:
    """What lies together on GPUs while a stage runs, each combination once."""
    stages = (SERVE_STAGE, stage) if stage == ALIGN_STAGE else (stage,)
    there = [one for one in holdings if one.stage in stages and one.request.num_gpus > 0]
    for node_type in dict.fromkeys(one.node_type for one in there):
        packed = _packed([one for one in there if one.node_type == node_type])
        for load in {load.actors: load for load in packed}.values():
            if any(one.stage == stage for one, _ in load.holdings):
                yield load


def _packed(holdings: Sequence[Holding]) -> Iterator[Load]:
    """GPUs of a node type: actors that ask for one or more are alone, fractions fill as few as they go on."""
    requests = [one.request for one in holdings]
    left: list[float] = []
    gpus: list[Counter[int]] = []
    for index in sorted(
        range(len(holdings)), key=lambda index: (requests[index].actor == SERVER, -requests[index].num_gpus)
    ):
        share = requests[index].num_gpus
        for _ in range(holdings[index].count if share < 1 else 1):
            place = next((place for place, room in enumerate(left) if room >= share), len(gpus))
            if requests[index].actor == SERVER and gpus:
                place = 0  # the server is no actor: Ray does not know of it, and gives its GPU to others
            if place == len(gpus):
                left.append(max(1.0, share))
                gpus.append(Counter())
            left[place] = round(left[place] - share, 4)  # Ray counts in ten-thousandths
            gpus[place][index] += 1
    for together in gpus:
        order = sorted(together, key=lambda index: (requests[index].actor != SERVER, index))
        yield Load(tuple((holdings[index], together[index]) for index in order))


def _too_large(load: Load) -> str:
    where = f"{load.first.stage}: {load.actors} on {load.first.node_type}"
    if load.shortage:
        return f"{where} cannot start: {load.shortage}, or take a node type with larger GPUs."
    assert load.gpu is not None
    if load.total <= load.gpu and (engine := load.crowded) is not None:
        share = math.floor(100 * (load.gpu - load.total + engine.total) / load.gpu) / 100
        return (
            f"{where} cannot start: a {engine.request.actor} looks for a larger share of the GPU than the others "
            f"leave: set {engine.request.section}.gpu_memory_utilization={share:g}."
        )
    fewer = ["let fewer actors share a GPU (a larger num_gpus)"] if load.is_shared else []
    advice = ", or ".join([*_remedies(load), *fewer, "take a node type with larger GPUs"])
    return f"{where} may need {_gib(load.total)} GiB of a GPU of {_gib(load.gpu)} GiB: {advice}."


def _remedies(load: Load) -> list[str]:
    """Settings, each of one kind of actor, that make the whole load fit."""
    assert load.gpu is not None
    found = []
    for one, count in load.holdings:
        room = (load.gpu - load.total + count * one.total) // count
        if one.total and (settings := remedy(one.config, one.request, one.footprint, load.gpu, room)):
            found.append(f"set {settings}")
    return found


def _rows(holding: Holding) -> Iterator[tuple[str, ...]]:
    """One for each part, the totals in the first."""
    first: tuple[str, ...] = (holding.stage, f"{holding.count} {holding.request.actor}")
    last = _last_cells(Load(((holding, 1),)))
    for part in holding.footprint.parts:
        yield *first, part.what, "?" if part.size is None else _gib(part.size), *last
        first, last = ("", ""), ()


def _last_cells(load: Load) -> tuple[str, ...]:
    """Total, GPU and whether it fits."""
    total = _gib(load.total) if load.is_whole else f"over {_gib(load.total)}" if load.total else "?"
    if not load.first.request.num_gpus:
        return total, "none", ANSWERS[False] if load.shortage else ""
    return total, "?" if load.gpu is None else _gib(load.gpu), ANSWERS[load.fits]


def _gib(size: int) -> str:
    """Two digits behind the point of small figures, one of large ones."""
    value = size / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
