"""Lets ``python -m dualfuse`` do what ``dualfuse`` does."""

import sys

from dualfuse.cli.main import main

sys.exit(main())
