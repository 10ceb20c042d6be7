"""What a run was made with: versions, processor, device."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from cifarlab.errors import UserError
from cifarlab.kernels import kernels_here
from cifarlab.process import available_cores, processor_field
from cifarlab.recipe import Device
from cifarlab.text import without_password

PACKAGES = ("cifarlab", "torch", "numpy", "safetensors", "pydantic", "pillow")


def choose_device(settings: Device) -> torch.device:
    """The device that `settings.name` asks for; `auto` takes CUDA, then MPS, then the CPU.

    Sets the number of threads, and determinism on CUDA.

    Raises:
        UserError: when the device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = (
        settings.name if settings.name != "auto" else next(name for name, there in available.items() if there)
    )
    if not available[name]:
        there = ", ".join(name for name, there in available.items() if there)
        raise UserError(
            f"device.name is {name}, and this machine or this build of PyTorch has none; it has {there}"
        )
    torch.set_num_threads(settings.threads or available_cores())
    if name == "cuda":
        torch.backends.cudnn.benchmark = not settings.deterministic
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(settings.deterministic)
    return torch.device(name)


def available_memory_bytes() -> int | None:
    """Memory that this process may still take: free on the machine, and within its control group; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except OSError:
        return free


def choose_precision(settings: Device, device: torch.device) -> Literal["float32", "bfloat16"]:
    """What `settings.precision` asks for; `auto` takes bfloat16 where there are instructions for it.

    On an x86 CPU those are AVX512_BF16 or AMX; elsewhere PyTorch emulates it, slower than float32.
    """
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.11 has it not everywhere
        has = torch.cpu.get_capabilities()
        return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"
    return "float32"


def describe_environment(settings: Device, device: torch.device) -> dict[str, Any]:
    """Versions, processor, device, precision, start: what environment.json holds."""
    return {
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else _processor_name(),
        "precision": choose_precision(settings, device),
        "winograd": list(kernels_here()) if settings.winograd and device.type == "cpu" else [],
        "command": [without_password(word) for word in sys.argv],
    }


def _processor_name() -> str:
    return processor_field("model name") or platform.processor() or platform.machine()
