"""A study: many students that differ in one thing each, trained, and compared with what is claimed.

rows            the study's file: its rows, their settings, and what is claimed of them
budget          epochs, warm-up and average of a run at a fraction of its length
work_plan       which teachers are trained, which caches are filled, which runs are made
execution       the commands that are still to be run, by this process and by others
comparison      means, paired differences, and what becomes of a claim
result_table    a study's results, in words and as JSON
result_picture  the same, drawn
hours           what a study will take on this machine
"""
