"""Benchmarks: what appends, reads and the oplog cost here, beside the bare driver doing the same in the same run.

A result is a ratio between variants that took turns, never an absolute promise. Nothing here is imported by the
service, and nothing outlives a run: the database server and the replicas are its own, in a temporary folder.
"""
