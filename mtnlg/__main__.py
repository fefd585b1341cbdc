"""`python -m mtnlg`."""

import sys

from mtnlg.cli.main import main

sys.exit(main())
