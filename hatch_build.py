"""Compiles the C files of src/cifarlab/kernels when the package is installed, once for each kind of processor.

The compiler is Zig's, which pip brings: a bare machine has none. Where it cannot (another system, no Zig), the package
is installed without, and PyTorch does the work.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).parent / "src/cifarlab/kernels"
AVX2 = ("-mfma", "-mavx2", "-DLANES=8", "-DBF16=0")
EITHER_AVX512 = ("-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-DLANES=16")
AVX512, AVX512_BF16 = (*EITHER_AVX512, "-DBF16=0"), (*EITHER_AVX512, "-mavx512bf16", "-DBF16=1")
SIZE_3, SIZE_5 = ("-DSIDE=6", "-DKERNEL=3"), ("-DSIDE=6", "-DKERNEL=5")
KERNELS = {  # the source first
    "winograd-avx2-3x3": ("winograd.c", *AVX2, *SIZE_3),
    "winograd-avx2-3x3-wide": ("winograd.c", *AVX2, "-DSIDE=8", "-DKERNEL=3"),
    "winograd-avx2-5x5": ("winograd.c", *AVX2, *SIZE_5),
    "winograd-avx512-3x3": ("winograd.c", *AVX512, *SIZE_3),
    "winograd-avx512-5x5": ("winograd.c", *AVX512, *SIZE_5),
    # Rounded to bfloat16, larger tiles would lose too much: their transforms multiply by up to 10 in each direction.
    "winograd-avx512_bf16-3x3": ("winograd.c", *AVX512_BF16, "-DSIDE=4", "-DKERNEL=3"),
    "dense-avx2": ("dense.c", *AVX2),
    "dense-avx512": ("dense.c", *AVX512),
    "normalise-avx2": ("normalise.c", *AVX2),
    "normalise-avx512": ("normalise.c", *AVX512),
    "normalise-avx512_bf16": ("normalise.c", *AVX512_BF16),
    "whiten-avx2": ("whiten.c", *AVX2),
    "whiten-avx512": ("whiten.c", *AVX512),
    "whiten-avx512_bf16": ("whiten.c", *AVX512_BF16),
    "pool-avx2": ("pool.c", *AVX2),
    "pool-avx512": ("pool.c", *AVX512, "-mprefer-vector-width=512"),
    "pointwise-avx2": ("pointwise.c", *AVX2),
    "pointwise-avx512": ("pointwise.c", *AVX512, "-mprefer-vector-width=512"),
    "team-avx2": ("team.c", "-mavx2", "-pthread"),
    # A square root that may set errno is computed one at a time.
    "optimise-avx2": ("optimise.c", *AVX2, "-fno-math-errno"),
    "optimise-avx512": ("optimise.c", *AVX512, "-mprefer-vector-width=512", "-fno-math-errno"),
}
# An old glibc, so that a wheel runs on other machines too. Zig adds checks for undefined behaviour unless told not to.
COMMON = (
    "-target",
    "x86_64-linux-gnu.2.17",
    "-std=c11",
    "-O3",
    "-fno-sanitize=undefined",
    "-fPIC",
    "-shared",
    "-s",
    "-Wall",
)


class CompileKernels(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        if compile_kernels():
            build_data["artifacts"] = ["src/cifarlab/kernels/*.so"]
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"


def compile_kernels() -> bool:
    """Write the libraries beside their source; False, with a line on standard error, if they could not be."""
    if sysconfig.get_platform() != "linux-x86_64":
        return False
    try:
        with tempfile.TemporaryDirectory(prefix=".compiled-", dir=Path(__file__).parent) as folder:
            built = [_compile(Path(folder), name, *flags) for name, flags in KERNELS.items()]
            for old in FOLDER.glob("*.so"):
                old.unlink(missing_ok=True)
            for library in built:
                library.replace(FOLDER / library.name)
    except (OSError, subprocess.CalledProcessError) as error:
        print(
            f"cifarlab: installed without its own kernels, trainings are slower: {error}",
            file=sys.stderr,
        )
        return False
    return True


def _compile(folder: Path, name: str, source: str, *flags: str) -> Path:
    """The name has the sources in it: see `_digest` in cifarlab.kernels.compiled."""
    sources = b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]")))
    built = folder / f"{name}-{hashlib.sha256(sources).hexdigest()[:8]}.so"
    command = [sys.executable, "-m", "ziglang", "cc", *COMMON, *flags, FOLDER / source, "-o", built]
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    subprocess.run(command, check=True, env=os.environ | caches)
    return built


if __name__ == "__main__":
    sys.exit(not compile_kernels())
