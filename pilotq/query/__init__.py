"""The read side: a process that answers condor_q and its like from read-only snapshots of the store."""
