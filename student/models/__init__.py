"""Students: built, counted, timed.

build       a student by its name
size        parameters and multiply-adds
latency     milliseconds an image
published   published figures, with their sources
survey      `cli.py models`
"""
