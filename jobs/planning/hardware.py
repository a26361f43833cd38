"""Describe what a GPU and its links can do, by data sheets or by the user's numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device and its links; rates are peaks, of which `*_share` is reached."""

    tflops: float  # of dense bfloat16 products
    memory_gbs: float  # GB/s
    memory_gib: float
    link_gbs: float  # GB/s each way to devices of the same node
    net_gbs: float  # GB/s each way, of each device, to other nodes
    link_latency_us: float = 30.0  # of a collective of small rows within a node
    net_latency_us: float = 60.0  # of such a collective between nodes
    # Half of a card's own rate of products and 0.4 of its own rate of copies are aims.
    # These own rates are guessed to be 0.7 and 0.87 of the data sheet.
    product_share: float = 0.35  # of prompts
    vision_share: float = 0.35  # of images
    memory_share: float = 0.35
    link_share: float = 0.7
    # The least time of a layer. A step with prompts has 1,068 operations in 27 layers, one of
    # decodes 1,012 (counted by jobs.bench.gpu_steps). Each is guessed to take the host 6 us, or the
    # device 2.5 us when a CUDA graph replays it.
    launch_us: float = 237.0  # launched by the host
    replay_us: float = 94.0  # replayed from a CUDA graph

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0 or (not name.endswith("_us") and not value > 0):
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def flops_per_s(self) -> float:
        """Operations per second that matrix products reach."""
        return self.tflops * 1e12 * self.product_share

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second that memory reads reach."""
        return self.memory_gbs * 1e9 * self.memory_share

    def vision_seconds(self, flops: float) -> float:
        """Return the seconds of images; many share one read of the weights."""
        return flops / (self.tflops * 1e12 * self.vision_share)

    def seconds(self, flops: float, num_bytes: float) -> float:
        """Return the seconds of work that is bound by arithmetic or by memory."""
        return max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)


# From NVIDIA's data sheets: dense bf16, memory, NVLink or PCIe each way. The network has 400 Gb/s
# per device of a large machine (such as a DGX H100), and 100 Gb/s for small ones.
GPUS = {
    "a100-80": Hardware(tflops=312, memory_gbs=2039, memory_gib=80, link_gbs=300, net_gbs=25),
    "h100": Hardware(tflops=989, memory_gbs=3350, memory_gib=80, link_gbs=450, net_gbs=50),
    "h200": Hardware(tflops=989, memory_gbs=4800, memory_gib=141, link_gbs=450, net_gbs=50),
    "b200": Hardware(tflops=2250, memory_gbs=8000, memory_gib=180, link_gbs=900, net_gbs=50),
    "l40s": Hardware(tflops=362, memory_gbs=864, memory_gib=48, link_gbs=32, net_gbs=12.5),
    "l4": Hardware(tflops=121, memory_gbs=300, memory_gib=24, link_gbs=32, net_gbs=12.5),
}
