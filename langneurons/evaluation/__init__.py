"""Evaluation: what a patch did, measured in rows and judged as paired effects."""
