"""Find the checkpoint directory that `--model` names: a path, `demo`, or a Hugging Face id."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

DEMO = Path(__file__).resolve().parents[1] / "demo" / "checkpoint"

# Data only: Python files and pickles could run code.
_FILES = ["*.safetensors", "*.json", "tiktoken.model", "*.jinja"]


def find_checkpoint(model: str) -> Path:
    """Return the directory of a checkpoint; download it first if it is a Hugging Face id.

    Raises:
        ValueError: the checkpoint is missing or cannot be downloaded; the message says what to do.
    """
    if model == "demo":
        if not DEMO.is_dir():
            raise ValueError(f"the demo checkpoint is missing; {DEMO} should be in the repository")
        return DEMO
    path = Path(model).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise ValueError(f"--model {model} is a file; name the directory with config.json")
    if model.count("/") != 1 or model.startswith(("/", ".", "~")):
        raise ValueError(
            f"--model {model}: there is no such directory, and it is not a Hugging Face id like "
            "moonshotai/Kimi-VL-A3B-Instruct"
        )
    return _download(model)


def _download(model: str) -> Path:
    by_hand = f"download it elsewhere (hf download {model}) and give its directory to --model"
    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except HFValidationError as error:
        raise ValueError(
            f"--model {model} is neither a directory nor a Hugging Face id: {error}"
        ) from error
    except GatedRepoError:
        raise ValueError(
            f"--model {model} needs permission: accept its terms on huggingface.co, then run "
            "`hf auth login` or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"--model {model}: there is no such directory and no such public model on Hugging "
            "Face; check the spelling, or run `hf auth login` if it is private"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"--model {model} is not in the local Hugging Face cache and huggingface.co cannot be "
            f"reached; connect to the internet, or {by_hand}"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--model {model} cannot be downloaded ({reason}); {by_hand}") from error
