"""Sending a published tree to the Hugging Face hub. The token is the client's own business: it is never read here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gr00t.errors import ToolkitError
from gr00t.model.checkpoint_folder import is_hub_error


def check_login(repo_id: str) -> None:
    """Refuse to begin where nobody is logged in or the hub cannot be reached: making a release takes minutes."""
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
    except Exception as error:
        raise _refusal(repo_id, error) from None


def upload(tree: Path, places: Sequence[str], repo_id: str, *, private: bool) -> str:
    """Make the repository if there is none, and send these files of the tree in one commit; its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=tree,
            allow_patterns=list(places),
            commit_message=f"Release {tree.name}",
        )
    except Exception as error:
        raise _refusal(repo_id, error, f" {tree} is whole and will be sent as it is.") from None
    return f"https://huggingface.co/{repo_id}"


def _refusal(repo_id: str, error: Exception, told: str = "") -> Exception:
    """What the user can do about it; messages of the client are left out, they may show an address with a token."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not is_hub_error(error):
        return error
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return ToolkitError(
            f"upload=true: nobody is logged in, or the token is no longer valid. Run `hf auth login`.{told}"
        )
    if status == 403:
        return ToolkitError(
            f"upload=true: this account may not write to {repo_id}. Take a token with write access (`hf auth login`), "
            f"or another repo_id=owner/name.{told}"
        )
    kind = f"{type(error).__name__}{f', status {status}' if status else ''}"
    return ToolkitError(
        f"upload=true: the hub cannot be reached or did not take {repo_id} ({kind}). Where there is internet, start "
        f"the same command again.{told}"
    )
