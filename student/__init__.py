"""The student: trained on replayed views with the cached answers of the teacher.

The folders stand on floors; each imports only from the floors below it, and from the files here.

    study      many runs, compared with what is claimed of them
    results    a run's networks, evaluated and exported
    speed      what `bench-data` measures
    training   the job: steps, intervals, states, the summary
    data       which rows a step shows, with which records
    runs       a run's folder
    models     students, re-parameterization, sizes
    losses     what a student is trained on, from sparse targets

    demo       `cli.py demo`, on digits
    recipe     the student recipe; every default is the paper's
    schedule   the learning rate of a step
    ranks      several processes that train one run
"""
