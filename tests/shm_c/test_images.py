"""Whatever bytes are in a lane: the one in C neither crashes nor hangs nor leaves the lane.

And it does with them what the one in plain Python does.  What is tried is in
tests.support.c_images, in processes of their own, so that a crash is a failed test that names the
image.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.c_lane import ROOT, VARIABLE, build, compiler, lane_in_c

lane_c = lane_in_c()

IMAGES: Final = 20_000
IMAGES_SLOW: Final = 1_000_000
IMAGES_SANITIZED: Final = 3000
SEED: Final = 1
SECONDS_MAX: Final = 60.0
SANITIZE: Final = (
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-fno-omit-frame-pointer", "-g", "-O1"),
)


class Trial:
    """A process that tries images."""

    def __init__(
        self, directory: Path, seed: int, count: int, *more: str, **environment: str
    ) -> None:
        self._what = f"seed={seed}, count={count}, {more}"
        self._output = directory / f"output-{seed}"
        self._errors = directory / f"errors-{seed}"
        code = (
            f"import os, sys\nif os.environ.get({VARIABLE!r}): import tests.support.c_lane\n"
            "from tests.support import c_images\n"
            f"sys.exit(c_images.main({seed}, 0, {count}, tight={'tight' in more}))"
        )
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", code],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=errors,
            )

    def check(self, timeout_s: float) -> None:
        """Wait for the end, and fail with the image that was tried last if it is a bad one."""
        try:
            code: int | None = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = None
        if code != 0:
            last = self._output.read_text().split()[-1:]
            pytest.fail(
                f"{self._what}: image {last} ended with {code} (None: it hung)\n"
                f"{self._errors.read_text()[-6000:]}",
                pytrace=False,
            )


def try_all(directory: Path, seeds: Sequence[int], count: int, timeout_s: float) -> None:
    """Try `count` images of each seed, side by side."""
    trials = [Trial(directory, seed, count) for seed in seeds]
    try:
        for trial in trials:
            trial.check(timeout_s)
    finally:
        for trial in trials:
            trial._process.kill()
            trial._process.wait()


def test_no_image_of_a_lane_does_harm(tmp_path: Path) -> None:
    """20,000 lanes with something wrong in them, always the same ones."""
    try_all(tmp_path, (SEED, SEED + 1), IMAGES // 2, SECONDS_MAX)


@pytest.mark.slow
def test_no_image_of_a_million_does_harm(tmp_path: Path) -> None:
    """1,000,000 lanes with something wrong in them, other ones at each run."""
    processes = os.cpu_count() or 1
    seed = random.SystemRandom().randrange(1 << 40)
    seeds = range(seed, seed + processes)
    try_all(tmp_path, seeds, IMAGES_SLOW // processes, 100 * SECONDS_MAX)


# --- with the sanitizers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the lane in C is one built with the sanitizers."""
    library = Path(
        subprocess.run(
            [*compiler(), "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
    )
    if not library.is_absolute():
        pytest.skip("the compiler has no libasan.so")
    target = build(tmp_path_factory.mktemp("sanitized") / "_lane.so", *SANITIZE)
    environment = {
        VARIABLE: str(target),
        "LD_PRELOAD": str(library.resolve()),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    alive = subprocess.run(
        [sys.executable, "-c", "pass"],
        check=False,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if alive.returncode != 0:
        pytest.skip(f"Python does not run with libasan preloaded here: {alive.stderr[-500:]}")
    return environment


@pytest.mark.required_in_ci
def test_images_with_the_sanitizers(sanitized: dict[str, str], tmp_path: Path) -> None:
    """Nothing outside of the lane is read, and nothing is done that C leaves undefined."""
    trial = Trial(tmp_path, SEED, IMAGES_SANITIZED, "tight", **sanitized)
    trial.check(SECONDS_MAX)


@pytest.mark.required_in_ci
def test_the_other_tests_with_the_sanitizers(sanitized: dict[str, str], tmp_path: Path) -> None:
    """What is promised of the lane in C is kept without an invalid access on the way."""
    names = ("deliver", "plain", "publisher", "references")
    files = [f"tests/shm_c/test_{name}.py" for name in names]
    files += ["tests/shm/test_lane.py"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.support.c_lane"),
            *("-p", "no:cacheprovider", "-q", "-k", "not python and not deque and not dictionary"),
            *("--basetemp", str(tmp_path / "inner"), *files),
        ],
        check=False,
        cwd=ROOT,
        env={**os.environ, **sanitized},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout[-6000:]
