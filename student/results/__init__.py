"""What a run has trained, in use.

evaluate    a run's accuracy, as trained and folded
export      a run's network in a file
onnx_file   ONNX, written and compared
card        what an exported file says of itself
online      training on a cache beside training with the teacher in the loop
"""
