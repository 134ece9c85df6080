"""The DAG runner, pure: files to a graph, the machine that runs it, what it writes and reads. Drives: `roles.dag`."""
