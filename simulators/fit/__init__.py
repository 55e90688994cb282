"""Fits of the battery and of the boards to recordings, and their errors on what was left out of the fit.

python -m simulators.fit battery --data FOLDER --out FILE.yaml [--ambient 24] [--report FILE.json]
python -m simulators.fit thermal --data FOLDER --out FILE.yaml [--board pi|pi_infer|atlas] [--report FILE.json]
"""
