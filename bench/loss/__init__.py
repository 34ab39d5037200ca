"""Counts what clients lose while replicas come and go. `python -m bench.loss` prints a table and a verdict.

It runs the gateway as its pod does (the real nginx, relay and smg, and the agent) on loopback, with stand-in engines in
processes of their own. Clients ask all the time: short answers, streams and large bodies.
"""
