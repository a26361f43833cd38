"""Names that the command line knows before anything slow is imported."""

LAYOUT_NAMES = ("video-mme", "mvbench", "longvideobench", "mlvu", "egoschema", "choice", "open")
ANSWER_TOKENS = 16  # at most, where nothing else is said: a letter, or a few words
MODES = ("strict", "expected", "logit")  # of scoring, see `jobs.sweep.scores`
CLIPS = "_clips.parquet"  # in the output of a sweep: the input of its runs
