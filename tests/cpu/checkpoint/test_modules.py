"""Layers and experts fold into rows; nothing is lost or counted twice."""

from __future__ import annotations

from billhook.checkpoint import Linear, Stored, fold

STORED = Stored("gptq", 4, 128, 256, (1, 64), True)
OTHER = Stored("gptq", 4, 128, 256, (1, 32), True)


def rows(found: dict[str, Stored]) -> dict[str, tuple[int, int]]:
    linears = [Linear(name, stored, 10) for name, stored in found.items()]
    return {row.name: (row.count, row.bytes) for row in fold(linears, {}, None)}


def test_folds_layers_and_experts() -> None:
    names = [f"model.layers.{i}.mlp.experts.{e}.w1" for i in range(12) for e in range(8)]
    assert rows(dict.fromkeys(names, STORED)) == {"model.layers.0..11.mlp.experts.0..7.w1": (96, 960)}


def test_tells_layers_apart_that_are_stored_differently() -> None:
    found = {f"layers.{i}.q": OTHER if i == 2 else STORED for i in range(5)}
    assert rows(found) == {"layers.0..1,3..4.q": (4, 40), "layers.2.q": (1, 10)}


def test_tells_layers_apart_that_have_other_experts() -> None:
    found = {f"layers.{i}.experts.{e}.w1": STORED for i in range(3) for e in range(4 if i else 2)}
    assert rows(found) == {"layers.0.experts.0..1.w1": (2, 20), "layers.1..2.experts.0..3.w1": (8, 80)}


def test_leaves_numbers_inside_of_names_alone() -> None:
    other = dict.fromkeys(("block1.fc2", "layers.01.fc2", f"layers.{'9' * 5000}.fc2"), STORED)
    assert rows(other | {"0.fc2": STORED, "1.fc2": STORED}) == {
        **dict.fromkeys(other, (1, 10)),
        "0..1.fc2": (2, 20),
    }
