"""Names that the command line needs before anything slow is imported."""

LAYOUT_NAMES = ("video-mme", "mvbench", "longvideobench", "mlvu", "egoschema", "choice", "open")
ANSWER_TOKENS = 16  # default of --max-tokens: enough for a letter or a few words
MODES = ("strict", "expected", "logit")  # ways to score, see `jobs.sweep.scores`
CLIPS = "_clips.parquet"  # the input of the runs, in the output of a sweep
