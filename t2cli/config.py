"""Every setting of t2's algorithms, as frozen dataclasses. Values are the defaults a user gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

SELECTIONS = ("all", "mlp", "attention")
BASIS_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class DecomposeConfig:
    """Which weights get a basis, on which device it is computed and how it is kept."""

    selection: str = "all"  # one of SELECTIONS
    device: str = "cpu"
    dtype: str | None = None  # of Q, one of BASIS_DTYPES; None: that of which the most is there, float32 at first
    workers: int = 0  # small matrices that may be computed at the same time, on the CPU; 0: one per thread


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn: temperature 0 is greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """One reinforcement-learning run of z (math.md 5). The defaults are the preset `t2`."""

    preset: str = "t2"
    steps: int = 50
    prompts_per_step: int = 12
    group: int = 4  # rollouts per prompt
    temperature: float = 1.0
    learning_rate: float = 2e-3
    warmup_steps: int = 3
    final_learning_rate: float = 0.1  # cosine decay ends at this share of learning_rate
    kl_coefficient: float = 0.02
    max_gradient_norm: float = 1.0
    weight_decay: float = 0.0
    micro_batch: int = 4  # prompts per forward and backward: bounds the memory, does not change the result
    validate_every: int = 10
    validation_examples: int = 100
    patience: int = 0  # validations without a better checkpoint before the run ends; 0: it never ends early
    evaluation_examples: int = 300
    selection: str = "all"
    seed: int = 0


@dataclass(frozen=True)
class CEMConfig:
    """A search for mixing weights by the cross-entropy method (math.md 6)."""

    iterations: int = 15  # at most; the paper allows 100
    population: int = 32
    elite: float = 0.2  # share of the population that the next one is drawn around
    sigma: float = 0.3  # of the first population, around the uniform mix
    least_sigma: float = 0.02
    smoothing: float = 0.7  # how far the Gaussian follows the elite in one generation
    patience: int = 4  # generations without a better candidate after which the search ends
    max_new_tokens: int = 64  # longer answers are wrong
    per_layer: bool = False  # one weight per expert and adapted matrix instead of one per expert
    seed: int = 0


PRESETS: dict[str, TrainConfig] = {"t2": TrainConfig()}


def preset(name: str, **changes: object) -> TrainConfig:
    """Return the preset `name` with the given fields changed; None leaves a field as it is."""
    from t2cli.lookup import require

    require(name, PRESETS, "preset")
    return replace(PRESETS[name], **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
