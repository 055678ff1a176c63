"""Students: built, counted, timed.

build       a student by its name
trial       whether it runs and can be trained
size        parameters and multiply-adds
latency     milliseconds an image
published   published figures, with their sources
survey      `cli.py models`
"""
