"""Run-time shape and type checks on the nouns, and one thread per test process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Not the user's own cache; one folder per test process, removed when it ends.
os.environ["PENCHANT_CACHE"] = tempfile.mkdtemp(prefix="penchant-test-cache-")

from jaxtyping import install_import_hook

install_import_hook("penchant.types", "beartype.beartype")
atexit.register(shutil.rmtree, os.environ["PENCHANT_CACHE"], ignore_errors=True)
