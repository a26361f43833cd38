"""`EngineTime`: how much of an engine's time its tokens needed, had its seats always been taken.

A step that only decodes costs little more with many sequences than with one, so an engine that is
always busy with too few of them is far from what it could do. Of each step is noted what it
computed and how long it took:

    computes prompts, or sequences wait behind it   it could not have done more: needed as it was
    only decodes B of S seats                       needed what B tokens cost in a step of S

where a step of B decodes takes `a + c * B` seconds, fitted by least squares to this engine's own.
"""

from dataclasses import dataclass


@dataclass
class EngineTime:
    """Sums over the steps of an engine."""

    num_seats: int  # S: sequences that can run at the same time
    step_s: float = 0.0  # all steps with tokens
    full_s: float = 0.0  # those that could not have done more
    num_short_tokens: int = 0  # decoded in the others
    # Over steps that only decode, B tokens in t seconds.
    n: int = 0
    sum_b: int = 0
    sum_t: float = 0.0
    sum_bb: int = 0
    sum_bt: float = 0.0

    def note(self, num_tokens: int, seconds: float, *, only_decodes: bool, is_full: bool) -> None:
        """Add a step.

        Args:
            num_tokens: that it computed.
            seconds: that it took, without waiting for other ranks.
            only_decodes: whether each token was one of another sequence.
            is_full: whether sequences waited that had no place in it.
        """
        self.step_s += seconds
        if only_decodes:
            self.n += 1
            self.sum_b += num_tokens
            self.sum_t += seconds
            self.sum_bb += num_tokens * num_tokens
            self.sum_bt += num_tokens * seconds
        if is_full or not only_decodes or num_tokens >= self.num_seats:
            self.full_s += seconds
        else:
            self.num_short_tokens += num_tokens

    @property
    def needed_s(self) -> float:
        """Seconds that the tokens so far need in steps that are always full.

        Where all steps decoded equally many, nothing tells how the time grows with their number,
        and it is taken not to: the least that it can be.
        """
        if not self.num_short_tokens:
            return self.full_s
        spread = self.n * self.sum_bb - self.sum_b**2
        per_token = (self.n * self.sum_bt - self.sum_b * self.sum_t) / spread if spread else 0.0
        per_token = min(max(per_token, 0.0), self.sum_t / self.sum_b)
        per_step = (self.sum_t - per_token * self.sum_b) / self.n
        return self.full_s + self.num_short_tokens * (per_token + per_step / self.num_seats)
