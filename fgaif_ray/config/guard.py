"""Section of the guard, the proxy that judges answers about images."""

from typing import Literal

from pydantic import Field

from fgaif_ray.config.base import LabelSelector, RayConfig, Section

GuardMode = Literal["annotate", "best-of-n", "strip"]


class ChatGuardConfig(Section):
    """The guard: what it stands before, what it does with answers, and how it is served."""

    upstream: str | None = None
    """Endpoint whose answers are judged, e.g. ``http://127.0.0.1:8001/v1``. Its key is in the environment variable
    OPENAI_API_KEY."""
    rewards: str | None = None
    """Root of the reward service, whose token is in FGAIF_REWARD_TOKEN. None serves the reward models of the run."""
    mode: GuardMode = "annotate"
    """``annotate``: the answer is untouched, with the verdicts in a field beside it. ``best-of-n``: ``n`` answers are
    asked for, the best one is returned. ``strip``: segments judged hallucinated are cut."""
    n: int = Field(default=4, ge=2, le=64)
    """Answers of which ``best-of-n`` returns the best."""
    choose_by: Literal["reward", "mean_reward", "hallucination"] = "reward"
    """What is best: the highest reward, the highest reward per segment, or the lowest hallucination score."""
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """``strip`` cuts a segment whose P(hallucinated) is above this for a type that speaks of truth."""
    nothing_left: str = ""
    """Answer of ``strip`` where everything is cut."""
    unjudged: Literal["refuse", "pass"] = "refuse"
    """What becomes of a request that cannot be judged (its image is a link, the reward service does not answer):
    ``refuse`` answers with an error, ``pass`` with the endpoint's own answer and a note."""
    host: str = "127.0.0.1"
    """Address to listen at; on another than loopback callers need FGAIF_GUARD_TOKEN."""
    port: int = Field(default=8080, ge=0, le=65535)
    """HTTP port; 0 takes a free one."""
    app_name: str = Field(default="guard", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Of the Serve application."""
    route_prefix: str = Field(default="/", pattern=r"^/([A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*)?$")
    """Path below which it answers; another one than ``/`` where something else is there already."""
    min_replicas: int = Field(default=1, ge=1)
    """Processes that judge, at the least."""
    max_replicas: int = Field(default=1, ge=1)
    """How many there become with their load."""
    target_requests: float = Field(default=16, gt=0)
    """Requests of a replica at a time, above which another one is started."""
    num_cpus: float = Field(default=0.2, ge=0)
    """Logical CPUs that each of them asks Ray for."""
    label_selector: LabelSelector = {}
    """Labels of the nodes that the replicas may run on."""
    max_waiting_answers: int = Field(default=256, ge=1)
    """Answers of a replica that are being written or judged; a request that does not fit gets 429."""
    max_wait_s: float = Field(default=60, gt=0)
    """Seconds after which the last answer of a request would be there, by how many wait and how many were lately
    answered a second; a request that would take longer gets 429."""
    request_timeout_s: float = Field(default=120, gt=0)
    """Seconds for a whole answer, and between two pieces of a stream."""


class GuardTree(Section):
    """What the guard needs where no run has a part in it."""

    ray: RayConfig = RayConfig()
    guard: ChatGuardConfig = ChatGuardConfig()
