"""Define what ``push`` is asked: which folder goes to which repository of the Hugging Face hub."""

from pydantic import field_validator

from wm.cards import is_repo_id
from wm.config import Recipe
from wm.paths import ModelPath


class PushRecipe(Recipe):
    """A folder and its repository. The token is never a key: it is HF_TOKEN, or that of ``hf auth login``."""

    folder: ModelPath
    """Model folder, run folder of wm train or wm pretrain (its model is uploaded), or output folder of a stage that
    makes data (wm ingest, annotate, select, imagine, export, evaluate, contradict …)."""
    repo: str
    """Repository, owner/name; made if it is not there."""
    private: bool = True
    """Make a new repository private. With true, one that is there and public is refused."""
    allow_license: list[str] = []
    """Licences that forbid redistribution or derivatives, by their exact names, where you have leave to share."""
    message: str = ""
    """Of the commit; empty: "Upload with wm"."""

    @field_validator("repo")
    @classmethod
    def _check_repo(cls, value: str) -> str:
        if not is_repo_id(value):
            raise ValueError(f"{value!r:.100} is no repository of the hub; expected owner/name")
        return value
