"""The training loop: steps whose update does not depend on how they were split."""
