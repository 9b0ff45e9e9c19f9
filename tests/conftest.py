"""Shape and type checks of the nouns, one thread per test process; a small disk, a browser."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Not the user's own cache; one folder per test process, removed when it ends.
os.environ["PENCHANT_CACHE"] = tempfile.mkdtemp(prefix="penchant-test-cache-")

from jaxtyping import install_import_hook

install_import_hook("penchant.types", "beartype.beartype")
atexit.register(shutil.rmtree, os.environ["PENCHANT_CACHE"], ignore_errors=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many bytes; the same folder again with another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(size: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("file systems cannot be mounted here")
        mounted = True
        return folder

    yield mount
    if mounted:
        # Lazily: weights that were read from it may still be mapped.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs headless Chromium on a page with some flags; returns what it prints."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium installed")

    def run(page: Path, *flags: str) -> str:
        profile = tmp_path_factory.mktemp("profile")
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet]
        command += [f"--user-data-dir={profile}", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return run
