"""What a GPU and its links can do, from data sheets or from the user."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device and its way to others; rates are peaks, of which `*_share` is reached."""

    tflops: float  # of dense bfloat16 products
    memory_gbs: float  # GB/s
    memory_gib: float
    link_gbs: float  # GB/s each way to devices of the same node
    net_gbs: float  # GB/s each way, of each device, to other nodes
    link_latency_us: float = 30.0  # of a collective within a node, small rows
    net_latency_us: float = 60.0  # of one across nodes
    product_share: float = 0.5
    memory_share: float = 0.7
    link_share: float = 0.7
    launch_us: float = 250.0  # of the host for a layer's kernels, below which no layer can be

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0 or (not name.endswith("_us") and not value > 0):
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def flops_per_s(self) -> float:
        """What products reach."""
        return self.tflops * 1e12 * self.product_share

    @property
    def bytes_per_s(self) -> float:
        """What reading of memory reaches."""
        return self.memory_gbs * 1e9 * self.memory_share

    def seconds(self, flops: float, num_bytes: float) -> float:
        """Of work that is bound by arithmetic or by memory, whichever takes longer."""
        return max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)


# NVIDIA's data sheets: dense bf16, memory, NVLink or PCIe each way; 400 Gb/s of network for each
# device of a large machine (as DGX H100), 100 Gb/s for the small ones.
GPUS = {
    "a100-80": Hardware(tflops=312, memory_gbs=2039, memory_gib=80, link_gbs=300, net_gbs=25),
    "h100": Hardware(tflops=989, memory_gbs=3350, memory_gib=80, link_gbs=450, net_gbs=50),
    "h200": Hardware(tflops=989, memory_gbs=4800, memory_gib=141, link_gbs=450, net_gbs=50),
    "b200": Hardware(tflops=2250, memory_gbs=8000, memory_gib=180, link_gbs=900, net_gbs=50),
    "l40s": Hardware(tflops=362, memory_gbs=864, memory_gib=48, link_gbs=32, net_gbs=12.5),
    "l4": Hardware(tflops=121, memory_gbs=300, memory_gib=24, link_gbs=32, net_gbs=12.5),
}
