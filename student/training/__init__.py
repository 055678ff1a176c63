"""The job that trains.

train          `train`: steps to the end
start          a run is started, or continued
trainee        what a step changes: network, average, optimizer
evaluation     top-1 and top-5
log_interval   losses and shares of time between two lines of the metrics
state          where a run stands, saved and resumed
summary        `summary.json`
"""
