"""What a served world model is made of: the typed arguments of ``serve_apps.world_model:build``."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from serve_apps.keys import read_keys
from serve_apps.middleware.cors import check_origins
from serve_apps.openai import MAX_GUIDANCE, Limits
from serve_apps.openai.pictures import TOGETHER
from wm.config import Recipe
from wm.errors import InputError
from wm.paths import InputPath, OptionalInputPath

FDM, IDM = "fdm", "idm"
"""Names of the two roles, and of the models that are always there."""
ADAPTER = "base:"
"""Any other model's name is this and the name of its folder."""
OTHER_CODEC = "the FDM's image codec is {}, the IDM's {}: they cannot read each other's images"


class ServeRecipe(Recipe):
    """What is served and how much of it. Values may be text (``serve run … best_of=8`` passes only text)."""

    model_config = ConfigDict(strict=False)

    fdm: InputPath
    """Folder of the forward dynamics model: full, or an adapter."""
    idm: InputPath
    """Folder of the inverse dynamics model that verifies: full, or an adapter."""
    base: OptionalInputPath = None
    """Folder of the base the adapters belong to; the one their manifests name if left out."""
    adapters: OptionalInputPath = None
    """Folder with more adapters of the same base, one a folder: each is served as base:NAME, read when it is first
    asked for. fdm and idm are then adapters of that base too, applied as they run; not with roles = merged."""
    max_adapters: int = Field(4, ge=1)
    """Of them in the memory of a replica at a time; the one that was asked for longest ago makes room."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights; bfloat16 halves their memory."""
    roles: Literal["apart", "merged", "shared"] = "apart"
    """apart: FDM and IDM in processes of their own, as many of each as their load asks for. merged: both in one
    process, each with weights of its own. shared: both in one process over one copy of their base, for a single GPU;
    both must be adapters of it, which are applied as they run: a little slower, half the memory."""
    sampler_replicas: int = Field(1, ge=1)
    """Replicas of the FDM; of both models unless roles = apart."""
    verifier_replicas: int = Field(1, ge=1)
    """Replicas of the IDM, with roles = apart."""
    sampler_max_replicas: int = Field(0, ge=0)
    """Replicas of the FDM under load, from sampler_replicas on; 0: always as many as sampler_replicas."""
    verifier_max_replicas: int = Field(0, ge=0)
    """Replicas of the IDM under load, from verifier_replicas on; 0: always as many as verifier_replicas."""
    ingress_replicas: int = Field(1, ge=1)
    """Processes that speak HTTP; the limits of a key, and max_requests, are each one's."""
    target_ongoing_requests: float = Field(8, gt=0)
    """Requests a replica has on average before another is added, where there may be more."""
    upscale_delay_s: float = Field(10, ge=0)
    """Seconds that the load stays above it before replicas are added."""
    downscale_delay_s: float = Field(120, ge=0)
    """Seconds that the load stays below it before replicas are taken away."""
    cpus_per_replica: float = Field(1, gt=0)
    """CPU cores of each replica; its threads too."""
    gpus_per_replica: float = Field(0, ge=0)
    """GPUs of each replica; two replicas can share one with 0.5."""
    max_ongoing_requests: int = Field(16, ge=1)
    """Requests a replica works on at once: their images grow together, as many as the memory holds. The others wait."""
    health_check_timeout_s: float = Field(60, gt=0)
    """Seconds in which a replica must decode a token when asked; one that does not is replaced. Asked every 10 s."""
    shutdown_timeout_s: float = Field(30, ge=0)
    """Seconds that a replica which is taken away has to end its requests."""
    max_queued_requests: int = Field(64, ge=1)
    """Requests that may wait for a model; more are answered 503."""
    max_requests: int = Field(256, ge=1)
    """Requests that are answered at a time, or wait to be; more are answered 503."""
    max_held_bytes: int = Field(500_000_000, ge=1)
    """Size of all of them together, in one process that speaks HTTP; more are answered 503."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds for a request, from its first byte to the end of its answer; then it is given up (408), in the models
    too."""
    keys: OptionalInputPath = None
    """Key file: every request needs `Authorization: Bearer KEY`; the pages and /health do not. Asks for no key if left
    out. `python -m serve_apps.keys name=NAME` makes a key, `--help` tells what an entry can say. The file is read again
    when it changes."""
    key_names_in_metrics: bool = False
    """Whether metrics call a key by its name. If not, by the first 8 digits of its sha256 in the key file: whoever can
    read the metrics then learns no names."""
    cors_origins: list[str] = []
    """Origins of other web pages that may ask this server from a browser, such as https://app.example or
    http://localhost:3000; ["*"]: all. None if left out. Keys are asked for all the same."""
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
    best_of: int = Field(8, ge=1)
    """Candidates drawn for a request that does not say."""
    max_best_of: int = Field(64, ge=1)
    """Candidates a request may ask for."""
    margin: float | None = Field(None, ge=0)
    """Adaptive N for requests that do not say: fewer candidates where one more is expected to gain no more than so
    many nats an action token; left out: always best_of."""
    max_actions: int = Field(64, ge=1)
    """Steps of a rollout, and actions of a request for scores."""
    max_beam: int = Field(8, ge=1)
    """Sequences that a rollout may keep after each step."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens of a chat completion at most, also where it asks for more; 32 for one that does not say."""
    max_scores: int = Field(256, ge=1)
    """Targets x actions that a request may score."""
    temperature: float = Field(1.0, ge=0)
    """Of the image tokens, for requests that do not say; 0 = greedy."""
    top_k: int = Field(0, ge=0)
    """Draw among the k most likely codes; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the most likely codes that hold this share of the probability."""
    guidance: float = Field(1.0, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    """Classifier-free guidance of requests that do not say: scale of what the action adds to the source; 1: none."""
    guidance_image: float = Field(1.0, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    """Scale of what the source image adds to nothing at all; both 1: no guidance, else three times the work."""
    block: int = Field(0, ge=0)
    """Codes drafted a pass from the source image (speculative sampling): the same candidates in fewer passes, where
    actions leave most of an image as it was. 0: one code a pass."""

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        """``serve run`` and ``key=value`` pass a list as text: A,B."""
        return [origin.strip() for origin in value.split(",")] if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: list[str]) -> list[str]:
        check_origins(origins)
        return origins

    @model_validator(mode="after")
    def _counted_once(self) -> Self:
        for name in ("verifier_replicas", "verifier_max_replicas"):
            if self.roles != "apart" and getattr(self, name) > type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} = {getattr(self, name)} with roles = {self.roles!r}: both models are in one "
                    f"process, counted by {name.replace('verifier', 'sampler')}; leave it out"
                )
        if self.max_held_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_held_bytes = {self.max_held_bytes} is less than max_body_bytes = {self.max_body_bytes}: of one "
                "request alone"
            )
        if self.max_pending_pixels is not None and self.max_pending_pixels < TOGETHER * self.max_pixels:
            raise ValueError(
                f"max_pending_pixels = {self.max_pending_pixels} is less than {TOGETHER} x max_pixels = "
                f"{TOGETHER * self.max_pixels}: of one request alone"
            )
        if self.adapters and self.roles == "merged":
            raise ValueError(
                "adapters with roles = 'merged': merged weights are of one adapter each; say shared or apart"
            )
        for role in ("sampler", "verifier"):
            least, most = getattr(self, f"{role}_replicas"), getattr(self, f"{role}_max_replicas")
            if 0 < most < least:
                raise ValueError(f"{role}_max_replicas = {most} is less than {role}_replicas = {least}")
        return self

    def sampling(self, asked: Any) -> dict[str, Any]:
        """Return settings of ``wm.sampling.Sampling`` by name: a request's, this recipe's where it gives none."""
        temperature = self.temperature if asked.temperature is None else asked.temperature
        return {
            "temperature": temperature or 1.0,
            "greedy": temperature == 0,
            "top_k": self.top_k if asked.top_k is None else asked.top_k,
            "top_p": self.top_p if asked.top_p is None else asked.top_p,
            "guidance_scale": self.guidance if asked.guidance is None else asked.guidance,
            "image_guidance_scale": self.guidance_image if asked.guidance_image is None else asked.guidance_image,
        }

    def pixel_budget(self) -> tuple[int, int]:
        """Pixels that may wait to be decoded: of all clients together, and of each."""
        each = 8 * self.max_pixels if self.max_pending_pixels is None else self.max_pending_pixels
        return 4 * each, each

    def limits(self) -> Limits:
        return Limits(
            max_body_bytes=self.max_body_bytes,
            max_pixels=self.max_pixels,
            max_prompt_chars=self.max_prompt_chars,
            max_best_of=self.max_best_of,
            default_best_of=min(self.best_of, self.max_best_of),
            max_actions=self.max_actions,
            max_beam=self.max_beam,
            max_new_tokens=self.max_new_tokens,
            default_new_tokens=min(Limits.default_new_tokens, self.max_new_tokens),
            max_scores=self.max_scores,
        )


def check_models(recipe: ServeRecipe) -> None:
    """Raise :class:`InputError` if a folder is no model, the two models speak of different image codecs, or the key
    file is none.

    Reads the codecs, not the language models: those are read by the replicas.
    """
    from wm.dynamics import check_draft_length, find_shared_base
    from wm.models import hub_hint, load_codec, read_manifest

    if recipe.keys:
        read_keys(recipe.keys)
    for key in ("fdm", "idm", "base", "adapters"):
        folder = getattr(recipe, key)
        if folder is not None and not Path(folder).is_dir():
            if key == "adapters":
                raise InputError(f"{key} = {folder!r}: no such folder")
            raise InputError(f"{key} = {folder!r}: no such model folder{hub_hint(folder)}")
    manifests = {folder: read_manifest(folder) for folder in (recipe.fdm, recipe.idm)}
    codecs = [
        manifest.codec_id if manifest is not None else load_codec(recipe.base or folder).codec_id
        for folder, manifest in manifests.items()
    ]
    if len(set(codecs)) > 1:
        raise InputError(OTHER_CODEC.format(*codecs))
    if recipe.roles == "shared" or recipe.adapters:
        find_shared_base(recipe.fdm, recipe.idm, recipe.base)
    if recipe.block:
        check_draft_length(recipe.block, load_codec(recipe.base or recipe.fdm).tokens_per_image)
