"""What the benchmark of a training step measures: model sizes, cases, contestants and targets."""

from __future__ import annotations

from dataclasses import dataclass

PENCHANT, PENCHANT_ONLINE = "penchant", "penchant-online"
PENCHANT_COMPILED = "penchant-compiled"
TRL_BEST, TRL_BEST_ONLINE, TRL_DEFAULT = "trl-best", "trl-best-online", "trl-default"
PACKED_FLASH = "packed-flash"
CONTESTANTS = {
    PENCHANT: "Penchant, reference known (second epoch, or a second run)",
    PENCHANT_ONLINE: "Penchant, reference computed in the step (first epoch)",
    PENCHANT_COMPILED: "Penchant, reference known, training.compile=true",
    TRL_BEST: "TRL, one pair per micro-batch (on CUDA the fastest number), no checkpointing, "
    "reference precomputed",
    TRL_BEST_ONLINE: "TRL as above, reference computed in the step",
    TRL_DEFAULT: "TRL as it comes: up to 8 pairs at once, checkpointing, reference in the step",
    PACKED_FLASH: "packed rows, transformers' flash attention, TRL's head, no shared prompt",
}
OURS = (PENCHANT, PENCHANT_ONLINE, PENCHANT_COMPILED)
EPOCHS = (PENCHANT, PENCHANT_ONLINE, PENCHANT_COMPILED, TRL_BEST, TRL_BEST_ONLINE, TRL_DEFAULT)
CACHED = (PENCHANT, PENCHANT_COMPILED, TRL_BEST, TRL_DEFAULT)
ON_CUDA = (PENCHANT, PENCHANT_ONLINE, TRL_BEST, TRL_BEST_ONLINE, TRL_DEFAULT, PACKED_FLASH)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A llama with random weights."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    """Whether the output head is the embedding matrix."""

    @property
    def body(self) -> int:
        """Parameters of the decoder's matrices: all but embeddings, head and norms."""
        kv_width = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv_width
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


SIZES = {
    # 24M and 59M of body; untied as llama's own config has it, so both carry two large matrices.
    "a": Size(hidden=512, intermediate=1280, layers=8, heads=8, kv_heads=8, vocabulary=32_000),
    "b": Size(hidden=768, intermediate=2176, layers=8, heads=12, kv_heads=12, vocabulary=131_072),
    # Shapes of Llama-3.2-1B (tied, as it is) and Llama-3.1-8B.
    "1B": Size(
        hidden=2048,
        intermediate=8192,
        layers=16,
        heads=32,
        kv_heads=8,
        vocabulary=128_256,
        tied=True,
    ),
    "8B": Size(
        hidden=4096, intermediate=14_336, layers=32, heads=32, kv_heads=8, vocabulary=128_256
    ),
    # For the benchmark's own tests.
    "tiny": Size(hidden=32, intermediate=64, layers=2, heads=2, kv_heads=2, vocabulary=300),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """(floor, goal) of spec/engine.md; below the floor is a defect. None: nothing is promised."""

    best: tuple[float | None, float | None] = (None, None)
    """Times faster than TRL's best settings."""
    default: tuple[float | None, float | None] = (None, None)
    """Times faster than TRL's defaults."""
    memory: tuple[float | None, float | None] = (None, None)
    """Times less memory above the resting level than TRL's best settings."""
    share: tuple[float | None, float | None] = (None, None)
    """Useful flops per second over those of a large matrix product."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: a model, a batch, a precision."""

    size: str
    dtype: str
    """float32, or bfloat16 by autocast over float32 weights."""
    prompts: int
    responses: int = 2
    """Per prompt."""
    pairing: str = "ranking"
    """ranking: the first response against each other one; disjoint: first against second, ..."""
    lora: int = 0
    """Rank of an adapter on all linear layers, over a frozen bfloat16 base; 0 trains all."""
    prompt_mean: float = 180
    response_mean: float = 280
    cap: int = 1024
    """Most tokens of a prompt and one response; half of it at most for the prompt."""
    fixed: bool = False
    """Every prompt and response takes exactly half of the cap."""
    contestants: tuple[str, ...] = EPOCHS
    together: int = 5
    """Contestants that may live at once within 24 GiB, with all the memory that they keep."""
    target: Target = Target()

    @property
    def pairs_per_prompt(self) -> int:
        """Pairs of a prompt's responses."""
        return self.responses // 2 if self.pairing == "disjoint" else self.responses - 1

    @property
    def num_pairs(self) -> int:
        """Pairs of the batch."""
        return self.prompts * self.pairs_per_prompt


def _long(length: int, target: Target | None = None) -> Case:
    return Case(
        size="a",
        dtype="bfloat16",
        prompts=1,
        cap=length,
        fixed=True,
        contestants=CACHED,
        together=3,
        target=target or Target(),
    )


def _several(responses: int, pairing: str, target: Target | None = None) -> Case:
    return Case(
        size="a",
        dtype="bfloat16",
        prompts=2,
        responses=responses,
        pairing=pairing,
        contestants=(PENCHANT, PENCHANT_COMPILED, TRL_BEST),
        target=target or Target(),
    )


CASES: dict[str, Case] = {
    "a-fp32": Case(
        size="a",
        dtype="float32",
        prompts=8,
        target=Target(best=(2.3, 3), default=(6.5, 8), memory=(4, 5), share=(0.70, 0.85)),
    ),
    "a-bf16": Case(
        size="a",
        dtype="bfloat16",
        prompts=8,
        target=Target(best=(3.5, 5.5), default=(8.5, 13), memory=(3, 4), share=(0.37, 0.55)),
    ),
    "b-fp32": Case(
        size="b",
        dtype="float32",
        prompts=4,
        together=2,
        contestants=(PENCHANT, PENCHANT_ONLINE, TRL_BEST, TRL_DEFAULT),
        target=Target(best=(2.7, 3.3), default=(None, 8), memory=(2.2, 3), share=(0.75, 0.85)),
    ),
    "b-bf16": Case(
        size="b",
        dtype="bfloat16",
        prompts=4,
        together=2,
        contestants=(PENCHANT, PENCHANT_ONLINE, PENCHANT_COMPILED, TRL_BEST, TRL_DEFAULT),
        target=Target(best=(4.5, 6.5), default=(9.5, 14), memory=(1.8, 3), share=(0.40, 0.55)),
    ),
    "b-bf16-lora": Case(
        size="b",
        dtype="bfloat16",
        prompts=4,
        lora=16,
        target=Target(best=(4.5, 6.5), default=(10, 14), memory=(2.5, 4), share=(0.35, 0.50)),
    ),
    # One ranking of K responses: K - 1 pairs for TRL, 2(K - 1) rows; the floor of the spec was
    # measured where TRL runs every response once (disjoint pairs), the goal is for the ranking.
    "k2": _several(2, "ranking"),
    "k4": _several(4, "ranking"),
    "k8": _several(8, "ranking", Target(best=(3.4, 8))),
    "k4-disjoint": _several(4, "disjoint"),
    "k8-disjoint": _several(8, "disjoint", Target(best=(3.4, None))),
    "length-512": _long(512),
    "length-2048": _long(2048),
    "length-4096": _long(4096, Target(best=(2.6, 4), default=(3, 5), memory=(2.5, 4))),
    "tiny-fp32": Case(
        size="tiny", dtype="float32", prompts=2, prompt_mean=12, response_mean=16, cap=64
    ),
    "tiny-bf16-lora": Case(
        size="tiny",
        dtype="bfloat16",
        prompts=2,
        lora=4,
        prompt_mean=12,
        response_mean=16,
        cap=64,
    ),
    "tiny-k4": Case(
        size="tiny",
        dtype="float32",
        prompts=2,
        responses=4,
        prompt_mean=12,
        response_mean=16,
        cap=64,
    ),
}
DEFAULT = (
    "a-fp32",
    "a-bf16",
    "b-fp32",
    "b-bf16",
    "b-bf16-lora",
    "k2",
    "k4",
    "k8",
    "k4-disjoint",
    "k8-disjoint",
    "length-512",
    "length-2048",
    "length-4096",
)
"""The rows of the targets' table, and what shows how time and memory grow with K and length."""

_SHARE = (0.45, 0.55)


def cuda_cases(model_size: str) -> dict[str, Case]:
    """The mixes of prompt and response lengths for one accelerator; no floors, goals on paper.

    The means are those at which sharing the prompt alone saves 1.25x, 1.5x and 1.8x of the tokens:
    2 (P + R) / (P + 2 R). 1B trains all weights, 8B an adapter.
    """
    mixes = {
        "ultrafeedback": (180, 280, 1024, (2.0, 3.3)),
        "multi-turn": (560, 280, 2048, (2.8, 4.5)),
        "long-prompts": (1600, 200, 8192, (2.8, 4.5)),
    }
    return {
        f"{model_size}-{name}": Case(
            size=model_size,
            dtype="bfloat16",
            prompts=32,
            lora=0 if model_size == "1B" else 16,
            prompt_mean=prompt,
            response_mean=response,
            cap=cap,
            contestants=ON_CUDA,
            target=Target(best=(None, best), default=(None, default), share=_SHARE),
        )
        for name, (prompt, response, cap, (best, default)) in mixes.items()
    }


def all_cases() -> dict[str, Case]:
    """Every case by its name."""
    return CASES | cuda_cases("1B") | cuda_cases("8B")
