"""Steer the data engine: cut the benchmark, collect bad cases, plan requests, show where each round stands.

A round is a folder of plain files under one folder of rounds; `round` says what is in it. README.md beside
this file explains the steps.
"""
