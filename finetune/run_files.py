"""Names of what a run folder holds for people and for other programs, beside its checkpoints."""

METRICS = "metrics.jsonl"  # a line each time something was measured
STATUS = "status.json"  # running, finished, stopped or failed, and why
FIRST_BATCH = "first_batch.png"
EVALUATIONS = "evaluations"  # pictures of the evaluations during training
ARTIFACTS = "artifacts"  # what wandb artifacts hold; an offline run needs it until it is sent
CONDITIONS = "conditions.jsonl"  # what each attempt is computed with, a line each
INPUTS = "inputs.json"  # the digest of every file that the run reads, to name one that has changed
BEST = "best.json"  # the best evaluated step, whose checkpoint is kept
REPORT = "report.html"
