"""Networks whose answers are kept.

networks    `Teacher`: one network or several; logits of batches padded to one size
answers     from logits to top-k records
normalize   from pixels to a network's input
"""
