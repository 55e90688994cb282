"""`python -m caq` is the `caq` command; torchrun starts it that way in several processes."""

import sys

from caq.cli import main

sys.exit(main())
