"""Networks whose answers are kept.

networks    `Teacher`: one network or several; logits of batches padded to one size
member      one of them, and its logits
answers     from logits to top-k records
normalize   from pixels to a network's input
"""
