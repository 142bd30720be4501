"""Read a Hugging Face config.json into the sizes that decide a model's GEMMs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, UnsupportedError
from .fields import Fields, read_object
from .methods import read_quantization
from .quantization import Quantization, WeightFormat


@dataclass(frozen=True)
class Experts:
    """The Mixture-of-Experts part of a model.

    Args:
        num_experts: Routed experts of one layer.
        top_k: Experts that each token visits.
        intermediate_size: Inner features of one expert.
        shared_intermediate_size: Inner features of the expert that all tokens visit; 0 if there is none.
        layers: Decoder layers that have experts; the others have a dense MLP.
        place: Where a decoder layer keeps its experts' modules.
        modules: What an expert's gate, up and down projections are called.
        stacked: Whether one tensor holds a projection of all experts, gate and up in one (gpt-oss).
        bias: Whether experts have biases.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_intermediate_size: int
    layers: frozenset[int]
    place: str = "mlp.experts"
    modules: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    stacked: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Biases:
    """Which GEMMs of a model add a bias."""

    qkv: bool = False
    o: bool = False
    mlp: bool = False


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer with quantized weights.

    Args:
        name: The config's folder, or the file's stem if it is not called config.json.
        file: The config.
        architecture: First of the config's `architectures`.
        dtype: `dtype` or `torch_dtype` of the config; "" if it names none.
        num_layers: Decoder layers.
        hidden_size: Features between layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Features of one head.
        intermediate_size: Inner features of a dense MLP; 0 if every layer has experts.
        experts: None for a dense model.
        biases: Which GEMMs add a bias.
        quantization: How each module's weights are stored.
        notes: What was assumed, in words.
    """

    name: str
    file: Path
    architecture: str
    dtype: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    experts: Experts | None
    biases: Biases
    quantization: Quantization
    notes: tuple[str, ...] = ()


_DENSE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_QWEN_MOE = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
_MIXTRAL = "MixtralForCausalLM"
_GPT_OSS = "GptOssForCausalLM"
# Architectures whose modules and GEMMs are known by name.
KNOWN = (*_DENSE, *_QWEN_MOE, _MIXTRAL, _GPT_OSS)

_MOST_LAYERS = 10_000  # a config that says more is damaged, and planning walks over all of them
_MOST_EXPERTS = 10_000

# What a model must say to be planned like Llama if its architecture is not known; the norm's epsilon has
# another name in families whose MLP is not gated.
_LLAMA_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "rms_norm_eps",
)
# Fields of models that ask for other GEMMs than Llama's: latent attention, experts, state-space layers.
_FOREIGN_FIELDS = (
    "kv_lora_rank",
    "q_lora_rank",
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "moe_intermediate_size",
    "ssm_cfg",
    "mamba_d_state",
    "linear_num_value_heads",
)


def load_model(path: str | Path, stored: WeightFormat | None = None) -> Model:
    """Read a model from its Hugging Face config.json.

    Args:
        path: The file, or the folder that holds it.
        stored: How all weights are taken to be stored, in place of what the config says.

    Raises:
        ConfigError: Unreadable, not JSON, not quantized, or a field is missing or wrong; names file, field
            and value.
        UnsupportedError: A weight format or an architecture that is not built yet.
    """
    file = _find(Path(path))
    fields = read_object(file)
    quantization = Quantization("", default=stored) if stored else read_quantization(fields)
    architecture = _architecture(fields)
    notes = _notes(fields, architecture)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_layers = fields.integer("num_hidden_layers", most=_MOST_LAYERS)
    experts = _experts(fields, architecture, num_layers)
    all_sparse = experts is not None and len(experts.layers) == num_layers
    return Model(
        name=file.resolve().parent.name if file.name == "config.json" else file.stem,
        file=file,
        architecture=architecture,
        dtype=read_dtype(fields),
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_heads),
        head_dim=_head_dim(fields, hidden_size, num_heads),
        intermediate_size=0 if all_sparse else fields.integer("intermediate_size"),
        experts=experts,
        biases=_biases(fields, architecture),
        quantization=quantization,
        notes=(*notes, *quantization.notes),
    )


def read_dtype(fields: Fields) -> str:
    """Return the type that a model's config names, such as bfloat16; "" if it names none.

    Raises:
        ConfigError: It is no text.
    """
    return fields.text("dtype", fields.text("torch_dtype", "")).removeprefix("torch.")


def _find(path: Path) -> Path:
    try:
        return path / "config.json" if path.is_dir() else path
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot read model config {file}: {error.strerror}")


def _architecture(fields: Fields) -> str:
    names = fields.texts("architectures")
    if not names:
        raise fields.wrong("architectures", "a list with the model's class, such as LlamaForCausalLM")
    return names[0]


def _notes(fields: Fields, architecture: str) -> tuple[str, ...]:
    """Return what is assumed about the model, or raise if it is not one we can read."""
    others = set(fields.texts("layer_types")) - {"full_attention", "sliding_attention"}
    if others:
        raise UnsupportedError(f"{fields.file}: layers of type {min(others)!r} are not built yet")
    notes = []
    if fields.table("quantization_config").data.get("lm_head"):
        notes.append("lm_head is quantized too; it is not planned")
    if architecture in KNOWN:
        return tuple(notes)
    foreign = [name for name in _FOREIGN_FIELDS if fields.has(name)]
    if foreign:
        raise UnsupportedError(
            f"{fields.file}: architecture {architecture!r} (with field {foreign[0]}) is not built yet; "
            f"built are {', '.join(KNOWN)}"
        )
    missing = [name for name in _LLAMA_FIELDS if not fields.has(name)]
    if missing:
        raise ConfigError(
            f"{fields.file}: architecture {architecture!r} is unknown, and it cannot be planned like Llama "
            f"because field {missing[0]} is missing; known are {', '.join(KNOWN)}"
        )
    return (*notes, f"architecture {architecture!r} is unknown; planned like Llama")


def _num_kv_heads(fields: Fields, num_heads: int) -> int:
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {num_heads}")
    return num_kv_heads


def _head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    if not fields.has("head_dim") and hidden_size % num_heads:
        raise fields.wrong(
            "hidden_size", f"a multiple of num_attention_heads = {num_heads}, or head_dim be given"
        )
    return fields.integer("head_dim", hidden_size // num_heads)


def _biases(fields: Fields, architecture: str) -> Biases:
    if architecture == "Qwen2ForCausalLM":
        return Biases(qkv=True)
    if architecture == "Qwen2MoeForCausalLM":
        return Biases(qkv=fields.flag("qkv_bias", True))
    attention = fields.flag("attention_bias", architecture == _GPT_OSS)
    return Biases(attention, attention, fields.flag("mlp_bias", False))


def _experts(fields: Fields, architecture: str, num_layers: int) -> Experts | None:
    if architecture in (_MIXTRAL, _GPT_OSS):
        mixtral = architecture == _MIXTRAL
        return Experts(
            *_routing(fields, "num_local_experts"),
            intermediate_size=fields.integer("intermediate_size"),
            shared_intermediate_size=0,
            layers=frozenset(range(num_layers)),
            place="block_sparse_moe.experts" if mixtral else "mlp.experts",
            modules=("w1", "w3", "w2") if mixtral else ("gate_up_proj", "gate_up_proj", "down_proj"),
            stacked=not mixtral,
            bias=not mixtral,
        )
    if architecture not in _QWEN_MOE:
        return None
    step, dense = fields.integer("decoder_sparse_step", 1), fields.integers("mlp_only_layers")
    sparse = frozenset(index for index in range(num_layers) if index not in dense and (index + 1) % step == 0)
    if not sparse:
        return None
    shared = architecture == "Qwen2MoeForCausalLM"
    return Experts(
        # transformers 5 writes the name that Mixtral has for it
        *_routing(fields, "num_local_experts" if fields.has("num_local_experts") else "num_experts"),
        intermediate_size=fields.integer("moe_intermediate_size"),
        shared_intermediate_size=fields.integer("shared_expert_intermediate_size") if shared else 0,
        layers=sparse,
    )


def _routing(fields: Fields, name: str) -> tuple[int, int]:
    """Return the number of experts, which has this name, and how many of them each token visits."""
    num_experts, top_k = fields.integer(name, most=_MOST_EXPERTS), fields.integer("num_experts_per_tok")
    if top_k > num_experts:
        raise fields.wrong("num_experts_per_tok", f"at most {name} = {num_experts}")
    return num_experts, top_k
