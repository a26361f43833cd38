"""Names that the command line knows before anything slow is imported."""

LAYOUT_NAMES = ("video-mme", "mvbench", "longvideobench", "mlvu", "egoschema", "choice", "open")
MODES = ("strict", "expected", "logit")  # of scoring, see `jobs.sweep.scores`
