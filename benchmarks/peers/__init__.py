"""Python's task queues side by side with trispool and uWSGI: from a client's call to the start of the handler.

Each queue's `*_tasks.py` is what an application of it looks like. Workers load it, and so do clients, which call its
`send`. What it needs to know is in the environment: `BENCHMARK_BROKER`, where the tasks are kept, and
`BENCHMARK_RECORDS`, the folder of `benchmarks.records`.
"""
