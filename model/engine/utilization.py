"""`EngineTime`: how much of an engine's time its tokens would need in full batches.

A step that only decodes costs little more with many sequences than with one. So an engine that is
always busy, but with few sequences, does far less than it could. Each step is counted by what it
computed:

    it computes prompts, or sequences wait for room  it is full: all of its time was needed
    it only decodes B of at most S sequences         needed is what B tokens cost in a step of S

A step of B decodes takes `a + c * B` seconds. Both are fitted by least squares to the steps of this
engine.
"""

from dataclasses import dataclass


@dataclass
class EngineTime:
    """Sums over the steps of an engine."""

    max_batch_size: int  # S, sequences that can run at the same time
    step_s: float = 0.0  # all steps with tokens
    full_s: float = 0.0  # full steps
    num_short_tokens: int = 0  # tokens that were decoded in the other steps
    # Sums over steps that only decode: B tokens in t seconds.
    n: int = 0
    sum_b: int = 0
    sum_t: float = 0.0
    sum_bb: int = 0
    sum_bt: float = 0.0

    def note(self, num_tokens: int, seconds: float, *, only_decodes: bool, is_full: bool) -> None:
        """Count a step of `seconds`, which exclude waits for other ranks.

        `only_decodes`: it computed no prompt. `is_full`: sequences waited that had no room in it.
        """
        self.step_s += seconds
        if only_decodes:
            self.n += 1
            self.sum_b += num_tokens
            self.sum_t += seconds
            self.sum_bb += num_tokens * num_tokens
            self.sum_bt += num_tokens * seconds
        if is_full or not only_decodes or num_tokens >= self.max_batch_size:
            self.full_s += seconds
        else:
            self.num_short_tokens += num_tokens

    @property
    def needed_s(self) -> float:
        """The seconds that the tokens so far would need in full steps.

        If all steps decoded equally many tokens, the slope `c` is unknown and counts as 0, which
        gives the lowest estimate.
        """
        if not self.num_short_tokens:
            return self.full_s
        spread = self.n * self.sum_bb - self.sum_b**2
        per_token = (self.n * self.sum_bt - self.sum_b * self.sum_t) / spread if spread else 0.0
        per_token = min(max(per_token, 0.0), self.sum_t / self.sum_b)
        per_step = (self.sum_t - per_token * self.sum_b) / self.n
        return self.full_s + self.num_short_tokens * (per_token + per_step / self.max_batch_size)
