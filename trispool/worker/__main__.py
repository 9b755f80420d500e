"""The program of a worker process: `python …/trispool/worker/__main__.py SOCKET BOARD LIFE`, all file descriptors.

It is started by its path, so that it runs the same trispool as the service, wherever that was imported from.
"""

from __future__ import annotations

if __name__ == "__main__":
    import os
    import sys

    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path[:1] == [here]:
        # What `python -m` would do: handlers are imported as from where the service was started, and the modules that
        # lie beside this one must not stand for others of the same name.
        sys.path[0] = os.getcwd()
    root = os.path.dirname(os.path.dirname(here))
    if root not in sys.path:
        sys.path.append(root)

    from trispool.worker.bootstrap import main

    sys.exit(main(*map(int, sys.argv[1:4])))
