"""Are there GPUs for what is asked? From the driver and from what is installed, before any framework is started."""

from __future__ import annotations

import ctypes
import subprocess

from parity.interpreter import CHECK_LIMIT_S, LaunchError, worker_environment

# Whether the framework of an interpreter was built for CUDA, without importing it.
_PROBES = {
    "torch": """
import importlib.util, pathlib, runpy
print(runpy.run_path(str(pathlib.Path(importlib.util.find_spec("torch").origin).with_name("version.py")))["cuda"])
""",
    "jax": """
import importlib.util
print(next((name for name in ("jax_cuda13_plugin", "jax_cuda12_plugin") if importlib.util.find_spec(name)), None))
""",
}
REMEDIES = {"torch": "install a CUDA build of torch there", "jax": "`pip install 'jax[cuda12]'` there"}


def count_gpus() -> int:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves of those of this machine; 0 where no NVIDIA driver is."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    number = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number)):
        return 0
    return number.value


def check_gpus(device: str, needed: int) -> None:
    """Raises LaunchError where the device is cuda and this machine has fewer GPUs than needed."""
    if device == "cuda" and (found := count_gpus()) < needed:
        there_are = f"there are {found}" if found > 1 else "there is 1" if found else "the driver finds none here"
        cure = "a smaller mesh or --device cpu" if found else "--device cpu"
        raise LaunchError(f"--device cuda: {needed} GPUs are needed, one a process, and {there_are}: take {cure}")


def check_cuda_build(python: str, framework: str) -> None:
    """Raises LaunchError where the framework in this interpreter cannot use GPUs, or does not tell."""
    try:
        probe = subprocess.run(
            [python, "-c", _PROBES[framework]],
            env=worker_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(
            f"--device cuda: {python} does not say whether its {framework} was built for CUDA: try again, "
            f"or name another interpreter with --{framework}-python"
        ) from error
    if probe.stdout.strip() == "None":  # what cannot be told so is left to the worker to say
        raise LaunchError(
            f"--device cuda: {framework} in {python} was built without CUDA: {REMEDIES[framework]}, "
            f"or name another interpreter with --{framework}-python"
        )
