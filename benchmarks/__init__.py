"""trispool and uWSGI side by side: the same machine, disk, client and handler. Run by `python -m benchmarks`."""
