"""A cache is filled.

opening         created, or opened if it is made of the same
fill            `fill`: the job
tiles           who computes what
batch_records   the teacher's records of a batch, and the block that they make up
lost_sources    images' checksums that a repair took out
plan            what a cache will cost
"""
