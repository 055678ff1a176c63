"""What `bench-data` measures.

throughput    images a second, by workers and against peers
stage_times   the parts of a view's time
peers         timm's and torchvision's pipelines
step_speed    a training step
"""
