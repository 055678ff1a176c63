"""From encoded bytes and a view to pixels, which are the same on every machine.

render     `decode_image` and `render`: an image under a view, or its centre crop
decode     image files of every format that data sets come in, decoded to RGB
resize     a crop of an image, resized to a square
ops        RandAugment's operations
engine     which steps the compiled code does, and which Pillow
selftest   the compiled steps, compared with the installed Pillow before the first image
_native    the compiled code of `csrc/`
"""
