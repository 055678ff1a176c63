"""A cache that is open.

cache            `Cache`: created, opened, given room for more views
blocks           which blocks are committed; one is read, written, withdrawn
sources          which images the rows are, by the bytes that the teacher read
index_files      the image index as it is stored
slab             the records of one view in memory, of all its rows or of some
teacher_sample   what the teacher said of a sample before the first block
"""
