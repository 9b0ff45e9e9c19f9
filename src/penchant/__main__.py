"""`python -m penchant`: what launchers of several processes start."""

from penchant.cli import main

main()
