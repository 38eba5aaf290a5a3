"""Upload files to a repository of the Hugging Face hub, by its own library. Knows nothing of what is in them."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from jobs.push.selection import Selection
from wm.errors import InputError, to_line

LOGIN = "hf auth login, or set HF_TOKEN to a token with the right to write (https://huggingface.co/settings/tokens)"

_MEANINGS: dict[int | None, str] = {
    401: f"the hub does not know the token: {LOGIN}",
    403: "the token may not write there: is the owner right, and has the token the right to write?",
    404: "no such repository or owner, or the token may not see it",
    413: "the files are too large for the repository",
    429: "too many requests: wait, then run it again, it resumes",
}
"""Status of the hub's answer → what it means."""


def upload(selection: Selection, rewritten: Mapping[str, bytes], repo: str, *, private: bool, message: str) -> str:
    """Make the repository if it is not there, and upload all files in one go.

    What the hub has already is not sent again, so that a stopped upload resumes.

    Args:
        selection: The files.
        rewritten: Contents that go in place of those on the disk.
        repo: ``owner/name``.
        private: Whether a new repository is private, and one that is there must be.
        message: Of the commit.

    Returns:
        Address of the commit.

    Raises:
        InputError: There is no token, it has not the right, or the hub cannot be reached.
    """
    # Of the environment or of the library's login: never of a recipe, which is stored.
    token = get_token()
    if not token:
        raise InputError(f"no token of the Hugging Face hub: {LOGIN}")
    api = HfApi(token=token)
    with _explain_errors(repo), _stage(selection, rewritten) as staged:
        _prepare_repo(api, repo, selection.kind, private=private)
        commit = api.upload_folder(
            repo_id=repo, folder_path=staged, repo_type=selection.kind, commit_message=message or "Upload with wm"
        )
    return str(commit.commit_url)


def _prepare_repo(api: HfApi, repo: str, kind: str, *, private: bool) -> None:
    """Make the repository, or check that one that is there is as private as it should be."""
    try:
        info = api.repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        return
    # Files would be public at once, which cannot be undone.
    if private and not info.private:
        raise InputError(f"repo = {repo!r} is there and public: private=false says that this is meant")


@contextmanager
def _stage(selection: Selection, rewritten: Mapping[str, bytes]) -> Iterator[Path]:
    """Make a folder of links to the files that go, and of those that go in another form."""
    with tempfile.TemporaryDirectory(prefix="wm-push-") as name:
        staged = Path(name)
        # Links cost nothing, whatever the weights weigh; the library reads through them.
        for file in selection.files:
            target = staged / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if file in rewritten:
                target.write_bytes(rewritten[file])
            else:
                target.symlink_to((selection.folder / file).resolve())
        yield staged


@contextmanager
def _explain_errors(repo: str) -> Iterator[None]:
    """Turn the library's errors into one line that says what to do."""
    # From the particular to the general: most of these are errors of HTTP too.
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise InputError(f"repo = {repo!r}: HF_HUB_OFFLINE is set: unset it to push") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        raise InputError(f"repo = {repo!r}: {_explain_status(status)} ({_first_line(error)})") from error
    except httpx2.HTTPError as error:
        raise InputError(
            f"{constants.ENDPOINT} cannot be reached: {to_line(error, 200)}; run it again, it resumes"
        ) from error
    except (HFValidationError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"repo = {repo!r}: the hub refuses it: {to_line(error, 300)}") from error


def _explain_status(status: int | None) -> str:
    """Say what an answer of the hub means, and what to do."""
    if status is not None and status >= 500:
        return f"the hub answers {status}: run it again later, it resumes"
    return _MEANINGS.get(status, f"the hub answers {status}")


def _first_line(error: Exception) -> str:
    """Return the first line of a message without the id of the request, which no one can use."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return to_line(ValueError(lines[0].split("(Request ID")[0]), 200)
