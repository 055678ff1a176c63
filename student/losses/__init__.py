"""What a student is trained on, from sparse records of the teacher's answers. Pure.

distillation   the paper's sum of cross-entropy and a loss to the teacher
criterion      the names of the losses to the teacher, and which tails each takes
target         records on the device, at a temperature, and what the student says of the same events
divergences    KL, its reverse, Jensen-Shannon, the teacher's best class
relations      DIST: correlations of classes and of images
decoupled      DKD: the label against the others, and the others among themselves
standardized   KL of logits that have mean 0 and deviation 1
"""
