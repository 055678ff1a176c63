"""Pixels in bulk, by worker processes, in the order asked for.

loader          `rendered`: an iterator over requests
renderers       what is done with a request: seeded views, or a centre crop
queue           requests in work, and their order
workers         the processes, and what goes through their pipes
shared_memory   what the workers write into
pinned          the same memory, page-locked for copies to a GPU
"""
