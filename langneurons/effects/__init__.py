"""Paired effects with intervals, tests and verdicts, and where they lie among controls; pure."""
