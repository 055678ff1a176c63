"""A cache that is open.

cache            `Cache`: it is created, opened, and gets more views
blocks           which blocks are committed; reading, writing, withdrawing one
sources          which images the rows are, by checksums of the bytes that the teacher read
index_files      the image index as a cache stores it
slab             the records of one view in memory, of all its rows or of some
teacher_sample   the teacher's answers on a sample, taken before the first block
"""
