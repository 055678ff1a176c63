"""Worker processes render pixels in bulk and give them back in the order asked for.

loader          `rendered`: an iterator over rendered requests
renderers       what a request becomes: seeded views, or a centre crop
queue           the requests that are being rendered, in their order
workers         the worker processes, and the messages that go through their pipes
shared_memory   the memory that the workers write into
pinned          the same memory, page-locked for copies to a GPU
"""
