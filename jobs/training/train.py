"""Train the demo checkpoint: a small Kimi-VL that sees generated clips.

    python -m jobs.training.train --output demo-training     # resumes there if it was killed
    python -m jobs.training.train --output demo-training --export jobs/demo/checkpoint

It trains the network of `model/` through its whole-sequence forward. Every batch is a function of
the seed and of the batches before it, and a snapshot stores the rest. Nothing depends on the clock,
so the same command gives the same weights again, even if it is killed and resumed. The length of a
run matters only once the learning rates fall to zero at its end; until then, a stopped run may
resume with another length.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jobs.demo.scenes import first_seed
from jobs.training.curriculum import STAGES, Stage
from jobs.training.export import export, write_empty_checkpoint
from jobs.training.learner import Learner, Outcome, Student, trained
from jobs.training.lessons import KINDS
from jobs.training.logbook import LogBook, draw_curves
from jobs.training.optimizer import Muon
from model.config import KimiVLConfig
from model.network.kimi_vl import KimiVL
from model.network.moe import Experts

SNAPSHOT = "snapshot.pt"
LOG = "log.jsonl"
CURVES = "curves.png"
CHECKPOINT = "checkpoint"  # folder of all files but the weights


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a run besides the curriculum."""

    seed: int = 0
    steps: int = 7600  # the length of the run
    learning_rate: float = 1e-3  # of AdamW: vectors, embeddings, the routers and the heads
    matrix_rate: float = 0.003  # of Muon: all other matrices
    warmup_steps: int = 40
    full_steps: int = 2800  # steps with full rates
    decay_steps: int = 2000  # steps in which rates would fall from full to zero
    late_rate: float = 0.35  # fraction of the full rates at which they stay until the last fall
    bias_rate: float = 2e-3  # change of the routers' correction bias per step
    num_processes: int = 2
    snapshot_s: float = 60.0
    log_steps: int = 20


@dataclass
class Progress:
    """The state of a run; the snapshot stores all of it."""

    steps: int = 0
    conversations: int = 0
    clips: int = 0  # that the conversations showed
    stage: int = 0
    # By kind of target token: a running mean over about 30 batches of the stage.
    accuracy: dict[str, float] = field(default_factory=dict[str, float])

    def count(self, outcome: Outcome) -> None:
        """Count one batch."""
        self.steps += 1
        self.conversations += outcome.conversations
        self.clips += outcome.clips
        for kind, asked, right in zip(KINDS, outcome.asked, outcome.right, strict=True):
            if asked:
                before = self.accuracy.get(kind, 0.0)
                self.accuracy[kind] = before + (float(right / asked) - before) / 30

    def enter_stage(self, stages: Sequence[Stage]) -> Stage:
        """Return the stage to train on; enter the next at the goals or the last step."""
        stage = stages[self.stage]
        is_learned = stage.goals and all(
            self.accuracy.get(kind, 0.0) >= goal for kind, goal in stage.goals.items()
        )
        if self.stage + 1 < len(stages) and (is_learned or self.steps >= stage.until):
            self.stage += 1
            self.accuracy = {}
        return stages[self.stage]


class Trainer:
    """The model with everything that a step changes."""

    def __init__(self, student: Student, config: TrainConfig) -> None:
        self.student = student
        self.config = config
        self.progress = Progress()
        matrices, others = split_parameters(student)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(matrices, lr=config.matrix_rate), config.matrix_rate),
            (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0), config.learning_rate),
        ]

    def step(self, learner: Learner, stages: Sequence[Stage]) -> dict[str, Any]:
        """Train on one batch, and return numbers for the log."""
        progress = self.progress
        stage = progress.enter_stage(stages)
        seed = first_seed("train", self.config.seed, progress.conversations)
        outcome = learner.learn(stage, seed)
        norm = nn.utils.clip_grad_norm_(trained(self.student), 1.0)
        factor = stage.rate * self._rate_factor()
        for optimizer, rate in self._optimizers:
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        _, worst_load = learner.balancer.extremes()
        learner.balancer.step(self.config.bias_rate * min(1.0, factor))
        progress.count(outcome)
        numbers = {"norm": float(norm), "worst_load": worst_load, "stage": progress.stage}
        return {**vars(outcome), **numbers}

    def _rate_factor(self) -> float:
        """Return the factor of the rates: warm-up, plateau, lower plateau, fall to zero."""
        config, step = self.config, self.progress.steps
        warmup = (step + 1) / config.warmup_steps
        late = (config.full_steps + config.decay_steps - step) / config.decay_steps
        left = (config.steps - step) / config.decay_steps
        return min(1.0, warmup, max(config.late_rate, late), left)

    def save(self, path: Path) -> None:
        """Write a snapshot atomically."""
        state = {
            "progress": vars(self.progress),
            "student": self.student.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self._optimizers],
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> Progress:
        """Resume from a snapshot, and return its progress."""
        state = torch.load(path, weights_only=True)
        self.progress = Progress(**state["progress"])
        self.student.load_state_dict(state["student"])
        for (optimizer, _), saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return self.progress


@torch.no_grad()
def initialise(model: KimiVL) -> None:
    """Set start values: residual outputs are zero, and positions vary smoothly over an image."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            is_output = name.endswith(("o_proj", "down_proj"))
            nn.init.normal_(module.weight, std=0.0 if is_output else module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Experts):
            for weight in (module.gate_up_proj, module.down_proj):
                nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)
    language = model.language_model
    nn.init.normal_(language.model.embed_tokens.weight, std=0.5)
    nn.init.normal_(language.lm_head.weight, std=0.02)
    table = model.vision_tower.patch_embed.pos_emb.weight
    table.copy_(_waves(*table.shape))


def _waves(rows: int, columns: int, width: int) -> torch.Tensor:
    """Return sines and cosines of growing frequency along both axes: [rows, columns, width]."""
    frequencies = torch.arange(1, width // 4 + 1) * (torch.pi / 4)

    def along(size: int) -> torch.Tensor:
        angles = ((torch.arange(size) + 0.5) / size)[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    of_rows = along(rows)[:, None].expand(-1, columns, -1)
    of_columns = along(columns)[None].expand(rows, -1, -1)
    return 0.5 * torch.cat((of_rows, of_columns), dim=-1)


_TABLES = ("embed_tokens.weight", "pos_emb.weight", "lm_head.weight", "mlp.gate.weight")


def split_parameters(student: Student) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices for Muon, and the parameters for AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        is_table = name.endswith(_TABLES) or name.startswith(("heads.", "answer_heads."))
        if parameter.requires_grad:
            (others if parameter.ndim < 2 or is_table else matrices).append(parameter)
    return matrices, others


def train(
    output: Path,
    config: TrainConfig,
    stages: Sequence[Stage] = STAGES,
    checkpoint: Path | None = None,
    max_s: float | None = None,
) -> KimiVL:
    """Run the curriculum, or resume from the snapshot in `output`.

    `output` also gets the log and the chart of the curves. `checkpoint` has all files but the
    weights; None writes one into `output`. After `max_s` seconds, the run stops with a snapshot.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    output.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        checkpoint = output / CHECKPOINT
        if not (checkpoint / "config.json").exists():
            write_empty_checkpoint(checkpoint)
    torch.manual_seed(config.seed)
    model = KimiVL(KimiVLConfig.from_checkpoint(checkpoint))
    initialise(model)
    trainer = Trainer(Student(model), config)
    progress = trainer.progress
    if (output / SNAPSHOT).exists():
        progress = trainer.load(output / SNAPSHOT)
        print(f"resuming from step {progress.steps}", flush=True)
    log = LogBook(output / LOG, config.log_steps, progress.steps)
    started_s = saved_s = time.monotonic()
    with Learner(trainer.student, checkpoint, config.num_processes) as learner:
        while progress.steps < config.steps:
            log.add(progress.steps + 1, trainer.step(learner, stages))
            now_s = time.monotonic()
            if now_s - saved_s > config.snapshot_s:
                trainer.save(output / SNAPSHOT)
                saved_s = now_s
            if max_s is not None and now_s - started_s > max_s:
                break
    trainer.save(output / SNAPSHOT)
    if log.path.exists():
        draw_curves(log.path, output / CURVES)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and export the checkpoint at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="directory of snapshot and log")
    parser.add_argument("--export", type=Path, help="directory for the finished checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=TrainConfig.steps, help="steps of the run (%(default)s)"
    )
    options = parser.parse_args(arguments)
    config = TrainConfig(seed=options.seed, steps=options.steps, num_processes=options.processes)
    model = train(options.output, config)
    if options.export is not None:
        export(model, options.output / CHECKPOINT, options.export)


if __name__ == "__main__":
    main()
