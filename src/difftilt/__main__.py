"""``python -m difftilt``, where the command is not on the path."""

from difftilt.cli import main

main()
