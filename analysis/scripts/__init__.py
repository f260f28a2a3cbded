"""One command per figure or table: `python -m analysis.scripts.step_sizes RUN_DIR --out DIR`, and so on.

`python -m analysis` lists them.
"""
