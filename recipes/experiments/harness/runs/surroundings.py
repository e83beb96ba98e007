"""What a run stands on: versions, commit, host (without its name), memory."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "scipy", "scikit-learn")
ROOT = Path(__file__).parents[4]


@functools.cache
def surroundings() -> dict[str, Any]:
    """Versions, commit and machine, as JSON types."""
    import torch

    import hf_mhe

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), "hf_mhe": hf_mhe.__version__, **versions},
        "commit": _git("rev-parse", "HEAD"),
        "changed": _git("status", "--porcelain", "--", "hf_mhe", "recipes/experiments") not in ("", None),
        "threads": torch.get_num_threads(),
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def reset_peak_memory() -> None:
    """Let the peak of this process begin anew, where the system can (Linux)."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> dict[str, Any]:
    """The largest resident size in MB, and since when it was counted."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return {"mb": round(int(line.split()[1]) / 1024), "since": "start of the run"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"mb": round(peak / 2**20), "since": "start of the process"}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
