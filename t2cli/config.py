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
    """One reinforcement-learning run (math.md 5). The defaults are the preset `t2`.

    Raises ValueError for a name that is not in CHOICES, and for settings that contradict each other.
    """

    preset: str = "t2"
    trainer: str = "policy-gradient"
    adapter: str = "svf"
    rank: int = 16  # of a LoRA
    parametrisation: str = "linear"  # how the trained numbers p become z (svf/parametrisation.py)
    initial_mean: float = 1.0  # of p
    initial_deviation: float = 0.0
    steps: int = 50
    prompts_per_step: int = 12
    group: int = 4  # rollouts per prompt
    enough: float = 1 / 3  # of prompts_per_step: prompts whose rollouts must differ in reward for a step to be made ...
    rounds: int = 3  # ... or this many times prompts_per_step are asked; 1: a step is made of what there is
    temperature: float = 1.0  # of the rollouts, at first; 0 is greedy
    stuck: float = 0.12  # of a prompt's pairs of rollouts, share of equal, wrong ones from which on it rises; 0: never
    hottest: float = 2.0  # times the temperature at first: it rises no further
    baseline: str = "leave-one-out"
    optimizer: str = "adamw"
    beta2: float = 0.99  # of Adam's mean of squared gradients
    learning_rate: float = 6e-3
    schedule: str = "cosine"
    warmup_steps: int = 3
    final_learning_rate: float = 0.1  # cosine decay ends at this share of learning_rate
    kl_coefficient: float = 0.02  # at 0 the base is not asked, and no KL is known
    max_gradient_norm: float = 1.0
    max_relative_step: float = 2.5e-3  # of ||W'_new - W'|| / ||W||, times the schedule's share; 0: no bound
    weight_decay: float = 0.0
    population: int = 16  # evolution: candidates per step, in pairs
    sigma: float = 0.02  # evolution: standard deviation of a candidate's p
    micro_batch: int = 4  # prompts per forward and backward: bounds the memory, does not change the result
    validate_every: int = 10
    validation_examples: int = 100
    retries: int = 2  # of a policy that collapsed or got worse: from the best checkpoint, with half the learning rate
    patience: int = 0  # validations without a better checkpoint before the run ends; 0: it never ends early
    evaluation_examples: int = 500
    selection: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        for field, names in CHOICES.items():
            if (value := getattr(self, field)) not in names:
                raise ValueError(f"{field} must be one of {', '.join(names)}, not {value!r:.60}")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")
        if not 0 <= self.stuck <= 1 or not self.hottest >= 1:
            raise ValueError("stuck must be from 0 to 1, and hottest at least 1")
        if self.trainer == "policy-gradient" and self.baseline == "leave-one-out" and self.group < 2:
            raise ValueError("a leave-one-out baseline needs a group of at least 2 rollouts")
        if self.trainer == "evolution" and (self.adapter != "svf" or self.population < 2 or self.population % 2):
            raise ValueError("evolution needs the adapter svf, and a population of pairs")
        if self.max_relative_step and (self.adapter != "svf" or self.parametrisation != "linear"):
            raise ValueError("a bound on the relative step needs the adapter svf and the linear parametrisation")


CHOICES = {
    "trainer": ("policy-gradient", "evolution", "labels"),
    "adapter": ("svf", "lora"),
    "parametrisation": ("linear", "sigmoid"),
    "baseline": ("leave-one-out", "none"),
    "optimizer": ("adamw", "adam"),
    "schedule": ("cosine", "constant"),
    "selection": SELECTIONS,
}

# One rollout per prompt and no baseline, as the paper and its code; as many a step as `t2` has at least. The paper's
# batch is 256, its KL coefficient 0 to 0.3 by task, and it names no warm-up and no weight decay.
_SINGLE = TrainConfig(
    prompts_per_step=48,
    micro_batch=16,
    group=1,
    rounds=1,
    stuck=0.0,
    baseline="none",
    beta2=0.999,
    learning_rate=2e-3,
    warmup_steps=0,
    max_gradient_norm=1e-3,
    max_relative_step=0.0,
    retries=0,
)

PRESETS: dict[str, TrainConfig] = {
    "t2": TrainConfig(),
    "paper": replace(_SINGLE, preset="paper", initial_deviation=1e-3**0.5, final_learning_rate=0.0, kl_coefficient=0.1),
    "reference": replace(
        _SINGLE,
        preset="reference",
        parametrisation="sigmoid",
        initial_mean=0.1,
        initial_deviation=0.01,
        temperature=0.0,
        optimizer="adam",
        schedule="constant",
        kl_coefficient=0.0,
    ),
}

# What another adapter or trainer than the preset's own changes, unless it is given. Learning rates: see math.md 5 for
# LoRA; evolution's has no unit (training/evolution.py).
ADAPTER_DEFAULTS: dict[str, dict[str, object]] = {"svf": {}, "lora": {"learning_rate": 2e-4, "max_relative_step": 0.0}}
TRAINER_DEFAULTS: dict[str, dict[str, object]] = {
    "policy-gradient": {},
    # Its steps are as long as its candidates' distances say: no schedule, and no bound on them.
    "evolution": {"prompts_per_step": 4, "learning_rate": 2.0, "warmup_steps": 0, "kl_coefficient": 0.0}
    | {"schedule": "constant", "max_relative_step": 0.0},
    # One forward and backward pass per question, nothing sampled, and no text that a KL could keep like the base's.
    "labels": {"steps": 40, "prompts_per_step": 16, "micro_batch": 16, "validation_examples": 160}
    | {"kl_coefficient": 0.0},
}


@dataclass(frozen=True)
class DispatchConfig:
    """How pass 1 goes from the probabilities of the categories to experts (dispatch/choice.py)."""

    threshold: float | None = None  # a category below it is left to the base model; None: what the strategy advises
    soft: bool = False  # mix the experts by the probabilities of their categories

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie between 0 and 1, not {self.threshold}")


@dataclass(frozen=True)
class CEMConfig:
    """A search for mixing weights by the cross-entropy method (math.md 6)."""

    iterations: int = 6  # at most; the paper allows 100, of a score that chance decides from the first few on
    population: int = 32
    elite: float = 0.2  # share of the population that the next one is drawn around
    sigma: float = 0.3  # of the first population, around the uniform mix
    least_sigma: float = 0.02
    smoothing: float = 0.7  # how far the Gaussian follows the elite in one generation
    patience: int = 2  # generations without a noticeably better candidate after which the search ends
    least_gain: float = 0.005  # of accuracy, or of nats a token: what is noticeable
    max_new_tokens: int = 64  # longer answers are wrong
    per_layer: bool = False  # one weight per expert and adapted matrix instead of one per expert
    seed: int = 0


def preset(name: str, **changes: object) -> TrainConfig:
    """Return the preset `name` with the given fields changed; None leaves a field as it is.

    Raises NotFoundError for a name that is not known, ValueError for settings that contradict each other.
    """
    from t2cli.lookup import require

    require(name, PRESETS, "preset")
    given = {key: value for key, value in changes.items() if value is not None}
    for field, names in CHOICES.items():
        if field in given:
            require(str(given[field]), names, field)
    adapter, trainer = str(given.get("adapter", "svf")), str(given.get("trainer", "policy-gradient"))
    return replace(PRESETS[name], **{**ADAPTER_DEFAULTS[adapter], **TRAINER_DEFAULTS[trainer], **given})  # type: ignore[arg-type]
