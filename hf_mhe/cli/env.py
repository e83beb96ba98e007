"""`hf-mhe env`: versions and devices, for a bug report."""

from __future__ import annotations

from hf_mhe.cli.console import emit_line

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "scipy",
    "peft",
    "trl",
    "deepspeed",
    "triton",
)


def env_command() -> None:
    """Print versions and devices, for a bug report."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from hf_mhe._version import __version__

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    lines = {"hf_mhe": __version__, "python": platform.python_version(), "platform": platform.platform()}
    lines |= {package: installed(package) for package in PACKAGES}
    lines |= _devices()
    for name, value in lines.items():
        emit_line(f"- {name}: {value}")


def _devices() -> dict[str, str]:
    import torch

    lines = {"cpu threads": str(torch.get_num_threads()), "cuda (torch build)": torch.version.cuda or "none"}
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        lines[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        lines["cuda devices"] = "none"
    return lines
