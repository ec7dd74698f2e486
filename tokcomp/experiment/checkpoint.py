"""What can go wrong with a checkpoint, in one clear line each, before or instead of a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.config import ModelConfig

__all__ = ["available_bytes", "loading", "refuse_other_formats", "refuse_too_large"]

T = TypeVar("T")


def loading(config: ModelConfig, path: str, load: Callable[[], T]) -> T:
    """The result of ``load()``.

    Raises:
        ConfigurationError: there is no such checkpoint, it cannot be reached or read, or it does not fit into memory.
    """
    from safetensors import SafetensorError

    try:
        return load()
    except ConfigurationError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ConfigurationError(
            f"model '{config.name}' does not fit into memory: {_first_line(error)}; {_SMALLER}"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = _hub_reason(config, path, error)
        if reason is None:
            reason = f"model '{config.name}' could not be loaded from {path}: {_first_line(error)}"
        raise ConfigurationError(reason) from error


_SMALLER = "give a smaller dtype (dtype=bfloat16), model.device_map=auto, or a smaller model"


def _hub_reason(config: ModelConfig, path: str, error: BaseException) -> str | None:
    """One line for the ways in which the Hub says no; they come wrapped, so the chain of causes is looked through."""
    from huggingface_hub import errors as hub

    kinds = tuple(type(each) for each in _chain(error))

    def among(*wanted: type[BaseException]) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    if among(hub.GatedRepoError):
        return (
            f"model '{config.name}': {path} is gated: accept its licence on https://huggingface.co/{path} and log in with "
            "`hf auth login`, or give model.path=FOLDER"
        )
    if among(hub.RevisionNotFoundError):
        return f"model '{config.name}': {path} has no revision '{config.revision}': give a branch, tag or commit of it"
    if among(hub.RepositoryNotFoundError):
        return (
            f"model '{config.name}': there is no {path} on the Hub, or it is private: check the id, log in with "
            "`hf auth login`, or give model.path=FOLDER"
        )
    if any("trust_remote_code" in str(each) for each in _chain(error)):
        return (
            f"model '{config.name}': {path} brings code of its own, which is not run unasked: read it, then give "
            "model.trust_remote_code=true"
        )
    if Path(path).is_dir():
        return None
    offline = among(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError)
    if offline or any(
        "offline" in str(each).lower() or "couldn't connect" in str(each).lower() for each in _chain(error)
    ):
        return (
            f"model '{config.name}': no network to the Hub, and {path} was not downloaded before: fetch it elsewhere with "
            f"`hf download {path}` and give model.path=FOLDER"
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def refuse_other_formats(config: ModelConfig, path: str) -> None:
    """Raise where a local folder has weights, but not as safetensors: pickled weights can run code when they are read."""
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    other = sorted(
        file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5") for file in folder.glob(pattern)
    )
    if other:
        raise ConfigurationError(
            f"model '{config.name}': {path} has {other[0]}, but no .safetensors file, and only those are read: save the model "
            "again with model.save_pretrained(FOLDER)"
        )


def available_bytes(device: str) -> int | None:
    """Memory that is free on ``device``; None where nobody tells."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.mem_get_info(torch.device(device))[0]
    if device == "cpu":
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
        meminfo = Path("/proc/meminfo")
        if meminfo.exists():  # what caches could give back counts too
            lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
            free = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else free
        return free
    return None


def refuse_too_large(config: ModelConfig, hf_config: Any, *, device: str, dtype: torch.dtype) -> None:
    """Raise where a model's parameters alone are more than the memory that is free; they are counted without being made."""
    if config.device_map is not None or device == "meta":
        return
    free = available_bytes(device)
    if free is None:
        return
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(hf_config, trust_remote_code=config.trust_remote_code)
    needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if needed > free:
        raise ConfigurationError(
            f"model '{config.name}' has {needed / 1e9:.1f} GB of parameters in {str(dtype).removeprefix('torch.')}, and {device} "
            f"has {free / 1e9:.1f} GB free: {_SMALLER}"
        )
