"""Teacher answers in the layouts of other projects, by small writers and readers of our own.

A module is one layout. It offers `write(folder, records)`, which makes every file of one view, and
`Reader(folder)`, which opens them for one epoch: what it needs to load first, it loads at the first
read. `benchmarks.formats.rows` says what a reader returns, `benchmarks.peers` measures.
"""
