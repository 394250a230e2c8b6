"""Which command serves a tier on given hardware, and does it fit?   Data and arithmetic; starts nothing.

python -m backends.recipes list | command | size       (or `tiergate backends ...`)
"""
