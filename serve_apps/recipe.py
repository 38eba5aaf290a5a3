"""Define what a served world model is made of: the typed arguments of ``serve_apps.world_model:build``."""

import tomllib
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from serve_apps.deployment_options import SERVER_DEFAULTS, DeploymentOptions, check_options, merge_options
from serve_apps.middleware.cors import check_origins
from serve_apps.model_keys import ModelKeys
from serve_apps.names import FDM, MAX_GUIDANCE_SCALE
from serve_apps.openai.errors import Limits
from serve_apps.openai.images import MAX_PIXELS_FACTOR
from serve_apps.renamed_keys import RENAMED_KEYS
from wm.files.mirror import uri_of
from wm.logs import log_format
from wm.paths import OptionalInputPath, OutputPath

# Any other model's name is this and the name of its folder.
ADAPTER = "base:"
OTHER_CODEC = "the FDM's image codec is {}, the IDM's {}: they cannot read each other's images"
# Requests at a time beyond those being answered: pages, health checks, and those that are refused as too many.
REFUSALS = 256


class ServeRecipe(ModelKeys):
    """What is served and how much of it. Values may be text (``serve run … num_candidates=8`` passes only text)."""

    RENAMED_KEYS = RENAMED_KEYS

    fdm_server: DeploymentOptions = {}
    """Ray Serve's options of the FDM's deployment, of both models' unless base_sharing = separate: num_replicas, or
    autoscaling_config = {min_replicas, max_replicas, target_ongoing_requests, …}, ray_actor_options = {num_cpus,
    num_gpus, …}, max_ongoing_requests, max_queued_requests, health_check_timeout_s, graceful_shutdown_timeout_s, …;
    num_cpus is the number of threads too."""
    idm_server: DeploymentOptions = {}
    """Those of the IDM's deployment, with base_sharing = separate."""
    ingress: DeploymentOptions = {}
    """Those of the processes that speak HTTP; max_requests and the bounds in bytes and pixels are each one's, the
    limits of a key are those of all together."""
    max_requests: int = Field(256, ge=1)
    """Requests that are answered at a time, or wait to be; more are answered 503."""
    max_held_bytes: int = Field(500_000_000, ge=1)
    """Size of all of them together, in one process that speaks HTTP; more are answered 503."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds for a request, from its first byte to the end of its answer; then it is given up (408), in the models
    too."""
    replica_wait_s: float | None = Field(None, ge=0)
    """Seconds that a request waits where a model has no replica (min_replicas = 0, or all are gone); then it is
    answered 503 with Retry-After, and the replica starts all the same. Half of timeout_s if left out."""
    log_format: Literal["text", "json"] | None = None
    """Format of the log lines of all replicas, each with its request's id; what WM_LOG_FORMAT says if left out."""
    keys: OptionalInputPath = None
    """Key file: every request needs `Authorization: Bearer KEY`; the pages and /health do not. Asks for no key if left
    out. `python -m serve_apps.keys name=NAME` makes a key, `--help` says what an entry can hold. The file is read again
    when it changes."""
    open: bool = False
    """Whether other machines may ask without a key. If not, a server that listens beyond this machine needs keys."""
    key_names_in_metrics: bool = False
    """Whether metrics call a key by its name. If not, by the first 8 digits of its sha256 in the key file: whoever can
    read the metrics then learns no names."""
    cors_origins: list[str] = []
    """Origins of other web pages that may ask this server from a browser, such as https://app.example or
    http://localhost:3000; ["*"]: all. None if left out. Keys are asked for all the same."""
    examples: OptionalInputPath = None
    """Folder of images that the playground offers to click: PNG, JPEG, WebP or BMP, at most 24. actions.json beside
    them says what can be done in each, {"NAME.png": ["move the red cup left", …]}, or actions.csv with the columns
    image and action; the first of an image is what a click predicts. They are read once, at the start; clients get
    their middle squares. If left out: those installed with the package where the models are of its toy world, else
    none."""
    comparisons: OutputPath = ""
    """File on a disk of the head node, made if it is not there: the playground then compares the predictions of two
    models blind, and choices are kept there as votes, which `wm study export store=FILE` reads. Of what was compared
    the action, the models and the seed are kept, no image and nothing about anybody. No comparisons if left out."""
    max_body_bytes: int = Field(20_000_000, ge=1)
    """Size of a request."""
    max_pixels: int = Field(40_000_000, ge=1)
    """Width x height of the source image, checked before it is decoded."""
    max_pending_pixels: int | None = Field(None, ge=1)
    """Pixels of the images that one client (a key, or an address where no keys are given) may have waiting to be
    decoded or being decoded; more are answered 429. All clients together may have four times as many, more are answered
    503. 8 x max_pixels if left out."""
    max_prompt_chars: int = Field(1000, ge=1)
    """Length of the action."""
    num_candidates: int = Field(8, ge=1)
    """Candidates sampled for a request without best_of."""
    max_best_of: int = Field(64, ge=1)
    """Candidates a request may ask for."""
    min_gain_nats: float | None = Field(None, ge=0)
    """Adaptive N for requests that do not say: fewer candidates where one more is expected to gain no more than so
    many nats an action token; left out: always best_of."""
    max_actions: int = Field(64, ge=1)
    """Steps of a rollout, and actions of a request for scores."""
    max_beams: int = Field(8, ge=1)
    """Sequences of a rollout that may remain after each step."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens of a chat completion at most, also where it asks for more; 32 for one that does not say."""
    max_scores: int = Field(256, ge=1)
    """Targets x actions that a request may score."""
    temperature: float = Field(1.0, ge=0)
    """Of the image tokens, for requests that do not say; 0 = greedy."""
    top_k: int = Field(0, ge=0)
    """Sample among the k most likely codes; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the most likely codes that hold this share of the probability."""
    guidance_scale: float = Field(1.0, ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)
    """Classifier-free guidance of requests that do not say: scale of what the action adds to the source; 1: none."""
    image_guidance_scale: float = Field(1.0, ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)
    """Scale of what the source image adds to nothing at all; both 1: no guidance, else three times the work."""
    num_draft_tokens: int = Field(0, ge=0)
    """Codes drafted a pass from the source image (speculative sampling): the same candidates in fewer passes, where
    actions leave most of an image as it was. 0: one code a pass."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, values: object) -> object:
        """Name today's keys to Ray too, which builds recipes from YAML without :meth:`parse`."""
        if isinstance(values, Mapping):
            # All of them at once, so that a file is mended in one go.
            messages = [
                f"unknown key {key!r}: it is called {name} now"
                for key, name in cls.RENAMED_KEYS.items()
                if key in values
            ]
            # The one value of an old key that was renamed with it.
            if values.get("roles") == "apart":
                messages.append("roles = 'apart' is base_sharing = 'separate'")
            if messages:
                raise ValueError("; ".join(messages))
        return values

    @field_validator("fdm_server", "idm_server", "ingress", mode="before")
    @classmethod
    def _read_options(cls, value: object) -> object:
        """Check a table of Ray's options; ``serve run`` passes it as text: {num_replicas = 2}."""
        if isinstance(value, str):
            try:
                value = tomllib.loads(f"table = {value}")["table"]
            except tomllib.TOMLDecodeError as error:
                raise ValueError("expected a table such as {num_replicas = 2}") from error
        if isinstance(value, dict):
            check_options(value)
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        """``serve run`` and ``key=value`` pass a list as text: A,B."""
        return [origin.strip() for origin in value.split(",")] if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: list[str]) -> list[str]:
        check_origins(origins)
        return origins

    @field_validator("comparisons")
    @classmethod
    def _check_is_local(cls, path: str) -> str:
        if uri_of(path) is not None:
            raise ValueError(f"{uri_of(path)} is in a bucket; SQLite needs a local disk: give a file of the head node")
        return path

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.base_sharing != "separate" and self.idm_server:
            raise ValueError(
                f"idm_server with base_sharing = {self.base_sharing!r}: both models are in one process, whose options "
                "are fdm_server; leave it out"
            )
        # A bound of all must let one request through, or nobody is ever answered.
        if self.max_held_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_held_bytes = {self.max_held_bytes} is less than max_body_bytes = {self.max_body_bytes}: of one "
                "request alone"
            )
        if self.max_pending_pixels is not None and self.max_pending_pixels < MAX_PIXELS_FACTOR * self.max_pixels:
            raise ValueError(
                f"max_pending_pixels = {self.max_pending_pixels} is less than {MAX_PIXELS_FACTOR} x max_pixels = "
                f"{MAX_PIXELS_FACTOR * self.max_pixels}: of one request alone"
            )
        if self.replica_wait_s is not None and self.replica_wait_s >= self.timeout_s:
            raise ValueError(
                f"replica_wait_s = {self.replica_wait_s:g} is no less than timeout_s = {self.timeout_s:g}: a request "
                "would be given up before"
            )
        if self.comparisons and not (self.baseline or self.adapters):
            raise ValueError("comparisons without a second forward model: give baseline = DIR or adapters = DIR too")
        if self.adapters and self.base_sharing == "merged":
            raise ValueError(
                "adapters with base_sharing = 'merged': merged weights are of one adapter each; say shared or separate"
            )
        return self

    def server_options(self, task: str) -> DeploymentOptions:
        """Return the options of the deployment that does a task, this recipe's before the defaults."""
        options = self.fdm_server if task == FDM or self.base_sharing != "separate" else self.idm_server
        return merge_options(SERVER_DEFAULTS | self.log_options(), options)

    def ingress_options(self) -> DeploymentOptions:
        """Return the options of the deployment that speaks HTTP, this recipe's before the defaults."""
        num_requests = self.max_requests + REFUSALS
        # It waits more than it computes: no core is reserved, so that two cores serve both models.
        defaults: DeploymentOptions = {
            # What it refuses, it refuses again: a missing key file, or keys that are left out.
            "max_constructor_retry_count": 2,
            "max_ongoing_requests": num_requests,
            "max_queued_requests": num_requests,
            "ray_actor_options": {"num_cpus": 0},
        }
        return merge_options(defaults | self.log_options(), self.ingress)

    def log_options(self) -> DeploymentOptions:
        """Return the option of every deployment that says how its log is written; none where Ray's setting holds."""
        encoding = self.log_format or ("json" if log_format() == "json" else None)
        return {} if encoding is None else {"logging_config": {"encoding": encoding.upper()}}

    @property
    def max_replica_wait_s(self) -> float:
        """Seconds that a request waits for a first replica."""
        return self.timeout_s / 2 if self.replica_wait_s is None else self.replica_wait_s

    def deployment_of(self, task: str) -> str:
        """Return the name of the deployment that does a task."""
        if self.base_sharing != "separate":
            return "WorldModelServer"
        return "FDMServer" if task == FDM else "IDMServer"

    def scales_to_zero(self, task: str) -> bool:
        """Return whether the deployment that does a task has no replica after a pause."""
        autoscaling = self.server_options(task).get("autoscaling_config")
        return isinstance(autoscaling, Mapping) and autoscaling.get("min_replicas") == 0

    @property
    def has_several_ingresses(self) -> bool:
        """Whether several processes may speak HTTP."""
        autoscaling = self.ingress.get("autoscaling_config")
        max_replicas = autoscaling.get("max_replicas", 1) if isinstance(autoscaling, Mapping) else 1
        return self.ingress.get("num_replicas") not in (None, 1) or max_replicas != 1

    @property
    def shares_limits(self) -> bool:
        """Whether keys have limits that several processes keep together."""
        return self.keys is not None and self.has_several_ingresses

    def num_threads(self, task: str) -> int:
        """Return the number of threads of the process that does a task: its cores, at least 1."""
        actor_options = self.server_options(task)["ray_actor_options"]
        num_cpus = actor_options.get("num_cpus", 1) if isinstance(actor_options, Mapping) else 1
        return max(1, int(num_cpus))

    def pixel_budget(self) -> tuple[int, int]:
        """Return how many pixels may wait to be decoded: of all clients together, and of each."""
        each = 8 * self.max_pixels if self.max_pending_pixels is None else self.max_pending_pixels
        return 4 * each, each

    def limits(self) -> Limits:
        """Return what one request may ask for."""
        return Limits(
            max_body_bytes=self.max_body_bytes,
            max_pixels=self.max_pixels,
            max_prompt_chars=self.max_prompt_chars,
            max_best_of=self.max_best_of,
            default_best_of=min(self.num_candidates, self.max_best_of),
            max_actions=self.max_actions,
            max_beams=self.max_beams,
            max_new_tokens=self.max_new_tokens,
            default_new_tokens=min(Limits.default_new_tokens, self.max_new_tokens),
            max_scores=self.max_scores,
        )
