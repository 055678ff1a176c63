"""From encoded bytes and a view to pixels: the same on every machine.

render      `decode_image` and `render`: an image under a view, or its centre crop
decode      every kind of file that a data set may hold, to RGB
resize      the part of an image that a crop looks at, to a square
ops         RandAugment's operations
engine      which parts the compiled code does, and which Pillow
selftest    the compiled parts, compared with the installed Pillow before the first picture
_native     the compiled code of `csrc/`
"""
