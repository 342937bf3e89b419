"""From cached features to a trained head.

In reading order:
    recipes           settings by dataset, as published
    losses            the losses of a batch of pairs
    heads/            the heads, by name
    settings          what a training can be told
    run_record        what stands in run.json, checked field by field
    run_cache         the cache a run belongs to
    checkpoint        a run folder: record and weights
    holdout           the part of the training data that chooses the epoch
    optim             parameter groups, AdamW, the learning rate
    distributed       one batch over several processes
    teaching          a trained run as the teacher of a head
    encode_chunks     large batches in bounded memory
    doubts            numbers that look like a result and are none
    recording         the step as CUDA graphs
    learner           what is trained, and its batches
    reports           what a training tells
    tracking          the same for tensorboard, wandb, mlflow, …
    determinism       seeds and kernels that repeat
    resume_state      taken up where it was stopped
    heartbeat         progress.json, for scripts that watch
    divergence        a loss that is no number ends the training
    loop              the training loop
    train             a head on a cache, from the tables to the run folder

Wings, which a training never loads:
    sweeping/         a grid of trainings on one cache
    finetuning/       the second pass: backbone and head, from pixels
    importing/        checkpoints of public programs
"""
