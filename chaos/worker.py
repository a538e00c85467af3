"""`streamserve worker` with failpoints: wraps the product's methods, then runs its command line.

    python -m chaos.worker FOLDER DELIVERY PARENT_PID TOPOLOGY_FILE [OPTION...]

FOLDER is where the runner arms points. The worker ends with PARENT_PID, however that ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from chaos.points import install, points_of
from streamserve.cli import main
from streamserve.dev.process import die_with_parent

if __name__ == "__main__":
    folder, delivery, parent, *rest = sys.argv[1:]
    die_with_parent(int(parent))
    install(Path(folder), points_of(delivery))
    sys.argv = ["streamserve", "worker", *rest]
    main()
