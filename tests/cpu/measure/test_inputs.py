from dataclasses import replace

import numpy as np
import pytest

from billhook.dispatch import routing
from billhook.measure.inputs import MOST_COPIES, copies_needed
from billhook.measure.workload import Workload, gemm_types

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

from billhook.formats.host import dequantize  # noqa: E402
from billhook.measure import inputs  # noqa: E402
from billhook.measure.ours import pack  # noqa: E402
from billhook.ops import unpack_weight  # noqa: E402
from billhook.weights import FORMATS  # noqa: E402

CPU = torch.device("cpu")
DENSE = Workload("dense", 64, 256, (3,), gemm_types("bf16"), 64)
MOE = replace(DENSE, name="moe", num_experts=8, top_k=3)
L2 = 50 << 20


@pytest.mark.parametrize("read_bytes", [1, 9 << 20, 34 << 20, 100 << 20, 484 << 20])
def test_copies_exceed_twice_the_cache(read_bytes: int) -> None:
    copies = copies_needed(read_bytes, L2)
    assert copies == MOST_COPIES or copies * read_bytes > 2 * L2
    assert copies == 1 or (copies - 1) * read_bytes <= 2 * L2


@pytest.mark.parametrize("workload", [DENSE, MOE, replace(MOE, per_slot=True)])
def test_same_seed_same_problem(workload: Workload) -> None:
    first, again, other = (inputs.make_weights(workload, seed, CPU) for seed in (1, 1, 2))
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.scales, again.scales)
    assert not torch.equal(first.codes, other.codes)
    assert first.codes.unique().tolist() == list(range(16))
    case = inputs.make_inputs(workload, 3, 1, L2, CPU)
    assert torch.equal(case.a, inputs.make_inputs(workload, 3, 1, L2, CPU).a)


@pytest.mark.parametrize(("name", "per_word"), [("u4b8", 8), ("u8", 4)])
def test_words_hold_codes_along_k(name: str, per_word: int) -> None:
    weights = inputs.make_weights(replace(DENSE, types=gemm_types("bf16", name)), 0, CPU)
    words, bits = weights.words[0].numpy().view(np.uint32), 32 // per_word
    for k in (0, 3, 7, 8, 255):
        codes = (words[k // per_word] >> (bits * (k % per_word))) & (2**bits - 1)
        assert np.array_equal(codes, weights.codes[0, k].numpy())


@pytest.mark.parametrize("layer", [DENSE, MOE], ids=lambda layer: layer.name)
@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_every_format_are_those_that_are_packed(layer: Workload, name: str) -> None:
    held = FORMATS[name]
    types = gemm_types("bf16" if held.activations else "e4m3fn", name)
    weights = inputs.make_weights(replace(layer, types=types, group_size=held.group_sizes[0]), 0, CPU)
    numbers = torch.isfinite(weights.numbers).nonzero().flatten().tolist()
    assert weights.codes.unique().tolist() == numbers  # all of them, and no NaN
    exact = torch.from_numpy(dequantize(unpack_weight(pack(weights)), np.float32))
    for expert in range(weights.experts):
        assert torch.equal(weights.dequantize(expert), exact[expert] if layer.moe else exact)
    assert (weights.channel_scales is not None) == (name == "w4a8")
    assert 0.5 < float((torch.randn(200, 256) @ weights.dequantize()).std()) < 2


@pytest.mark.parametrize("act", ["e4m3fn", "s8"])
def test_narrow_activations_have_a_scale_for_each_row(act: str) -> None:
    layer = replace(DENSE, types=gemm_types(act), group_size=-1)
    case = inputs.make_inputs(layer, 5, 0, L2, CPU)
    assert case.token_scales.shape == (5, 1)
    wide = inputs.make_inputs(DENSE, 5, 0, L2, CPU).values
    assert float((case.values - wide).norm() / wide.norm()) < 0.04


def test_group_scales_under_narrow_activations_are_powers_of_two() -> None:
    layer = replace(DENSE, types=gemm_types("s8"), group_size=128)
    mantissas, _ = torch.frexp(inputs.make_weights(layer, 0, CPU).scales.float())
    assert mantissas.unique().tolist() == [0.5]


def test_dequantized_weights_are_code_less_eight_times_scale() -> None:
    weights = inputs.make_weights(DENSE, 0, CPU)
    w = weights.dequantize()
    for k, n in ((0, 0), (63, 5), (64, 5), (255, 63)):
        assert w[k, n] == (int(weights.codes[0, k, n]) - 8) * float(weights.scales[0, k // 64, n])


@pytest.mark.parametrize("per_slot", [False, True])
def test_moe_reference_multiplies_each_row_by_its_expert(per_slot: bool) -> None:
    workload = replace(MOE, per_slot=per_slot)
    weights = inputs.make_weights(workload, 0, CPU)
    case = inputs.make_inputs(workload, 5, 0, L2, CPU)
    got = inputs.reference(weights, case)
    flat = case.topk_ids.flatten().tolist()
    assert len(flat) == 15
    assert all(len(set(flat[3 * token : 3 * token + 3])) == 3 for token in range(5))  # distinct experts
    for row, expert in enumerate(flat):
        a = case.a[row if per_slot else row // 3].float()
        torch.testing.assert_close(got[row], a @ weights.dequantize(expert))


@pytest.mark.parametrize(("tokens", "block"), [(1, 8), (5, 8), (64, 16), (200, 64)])
def test_blocks_are_those_of_the_routing_kernel(tokens: int, block: int) -> None:
    case = inputs.make_inputs(MOE, tokens, 3, L2, CPU)
    blocks = inputs.align_blocks(case.topk_ids, 8, block)
    ids, experts, length = routing.route(case.topk_ids.numpy(), 8, block)
    assert int(blocks.num_tokens_padded) == length
    assert np.array_equal(blocks.sorted_token_ids.numpy()[:length], ids)
    assert np.array_equal(blocks.expert_ids.numpy()[: length // block], experts)
    assert len(blocks.expert_ids) == routing.capacity(3 * tokens, 8, block)
    assert (blocks.expert_ids[length // block :] == -1).all()
