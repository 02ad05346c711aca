"""Names of the stages in pipeline order, for the command line and the pipeline alike."""

STAGES = ("tasks", "warmup", "proposals", "scoring", "partition", "anchor", "training", "evaluation", "report")
