"""How the Machete family's tiles are dealt out to workers: each once, and in an order that cannot block."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest

from billhook import families
from billhook.arch import parse
from billhook.build.headers import CUDA_ROOT
from billhook.config import GemmTypes, KernelConfig, Tile
from billhook.dtypes import BF16, E4M3FN, U4B8

TILE_M = (64, 256, 256)  # of the first kinds of waves.cpp; from 1 on with halves
TILES = (
    Tile(64, 128, 128, 4),
    Tile(256, 128, 64, 5),
    Tile(256, 128, 128, 4),
    Tile(16, 128, 256, 4),
    Tile(32, 128, 256, 4),
    Tile(144, 128, 128, 4),
)  # of all kinds
NARROW = (2, 3)


@dataclass(frozen=True)
class Problem:
    """What is dealt out."""

    kind: int
    rows: int
    tiles_n: int
    stages: int
    tile_bytes: int
    split: bool
    grid: int

    @property
    def line(self) -> str:
        return " ".join(str(int(value)) for value in vars(self).values())


@dataclass(frozen=True)
class Piece:
    """Some stages of a tile, or a half of one, that fall to a worker."""

    worker: int
    tile_m: int
    tile_n: int
    stage: int
    count: int
    half: int
    tile: int


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    made = tmp_path_factory.mktemp("waves") / "waves"
    source = Path(__file__).with_name("waves.cpp")
    subprocess.run([compiler, "-std=c++17", "-O1", f"-I{CUDA_ROOT}", source, "-o", made], check=True)
    return made


def run(program: Path, problems: list[Problem]) -> list[list[str]]:
    """Return the lines of each problem, the last of which tells the time."""
    said = subprocess.run(
        [program], input="\n".join(one.line for one in problems), capture_output=True, text=True, check=True
    )
    *told, rest = [part.splitlines() for part in said.stdout.split("\n\n")]
    assert (len(told), rest) == (len(problems), [])
    return told


def deal(program: Path, problems: list[Problem]) -> list[list[Piece]]:
    return [[Piece(*map(int, line.split())) for line in lines[:-1]] for lines in run(program, problems)]


def draw(count: int, kinds: int = len(TILE_M)) -> list[Problem]:
    chosen = random.Random(7)
    problems = []
    for _ in range(count):
        kind = chosen.randrange(kinds)
        rows = chosen.choice([chosen.randint(1, 300), chosen.randint(1, 1500)])
        problems.append(
            Problem(
                kind,
                rows,
                tiles_n=chosen.choice([chosen.randint(1, 8), chosen.randint(1, 50)]),
                stages=chosen.choice([1, 2, chosen.randint(1, 32), chosen.randint(1, 100)]),
                tile_bytes=chosen.choice([1 << 12, 1 << 21, 1 << 23]),
                split=chosen.random() < 0.8,
                grid=chosen.choice([132, 24, chosen.randint(1, 20)]),
            )
        )
    return problems


def test_each_stage_of_each_row_is_computed_once(program: Path) -> None:
    problems = draw(300)
    seen: Counter[str] = Counter()
    for problem, pieces in zip(problems, deal(program, problems), strict=True):
        halves = -(-problem.rows // (TILE_M[problem.kind] // 2))  # along m
        done: Counter[tuple[int, int, int]] = Counter()
        for piece in pieces:
            assert piece.count > 0
            if piece.half:
                assert (piece.stage, piece.count) == (0, -(-problem.stages // 2)), problem
                done.update((piece.tile_m, piece.tile_n, stage) for stage in range(problem.stages))
            else:
                stages = range(piece.stage, piece.stage + piece.count)
                both = (2 * piece.tile_m, 2 * piece.tile_m + 1)
                done.update((half, piece.tile_n, stage) for half in both for stage in stages)
        wanted = set(product(range(halves), range(problem.tiles_n), range(problem.stages)))
        assert set(done.values()) == {1}, problem
        beyond = {half for half, _, _ in set(done) - wanted}
        assert wanted <= set(done), problem
        assert beyond <= {halves}, problem  # the other half of a last tile that is whole
        seen["halves"] += any(piece.half for piece in pieces)
        seen["shared"] += any(piece.stage for piece in pieces)
        seen["below"] += halves % 2 == 1 and not beyond
    assert min(seen.values()) > 20, seen


def test_a_tile_is_finished_by_the_worker_before_those_it_waits_for(program: Path) -> None:
    problems = [one for one in draw(200) if one.split]
    for problem, pieces in zip(problems, deal(program, problems), strict=True):
        of_tile = defaultdict(list)
        of_worker = defaultdict(list)
        for piece in pieces:
            if not piece.half:
                of_tile[piece.tile].append(piece)
            of_worker[piece.worker].append(piece)
        for parts in of_tile.values():
            first = min(part.worker for part in parts)
            assert [part.worker for part in parts] == list(range(first, first + len(parts))), problem
            assert [part.stage for part in parts] == sorted(part.stage for part in parts)
        for parts in of_worker.values():  # what others wait for comes first
            assert all(part.stage == 0 for part in parts[1:]), problem


def test_halves_take_what_whole_tiles_would_leave_idle(program: Path) -> None:
    """28672 x 4096 on 132 workers: 52 of the 448 tiles of 512 tokens fill no wave, nor do 44 tokens."""
    problems = [Problem(1, rows, 224, 64, 1 << 21, split=True, grid=132) for rows in (512, 300, 1024)]
    rest, below, even = deal(program, problems)
    assert Counter(piece.half for piece in rest) == {0: 396, 1: 104}
    assert Counter(piece.half for piece in below) == {0: 224, 1: 224}
    assert not any(piece.half for piece in even)
    assert {piece.tile_m for piece in below if piece.half} == {2}


def test_the_work_that_times_are_predicted_from_is_what_the_tiles_were_chosen_by(program: Path) -> None:
    problems = [replace(one, split=True) for one in draw(600, kinds=len(TILES))]
    seen: Counter[int] = Counter()
    for problem, (*_, said) in zip(problems, run(program, problems), strict=True):
        tile = TILES[problem.kind]
        types = GemmTypes(
            *((E4M3FN, U4B8, E4M3FN, BF16) if problem.kind in NARROW else (BF16, U4B8, BF16, BF16))
        )
        config = KernelConfig("machete", types, 128, tile, indexed=False, arch=parse("9.0a"))
        assert families.illegal(config) is None
        n, k = problem.tiles_n * tile.tile_n, problem.stages * tile.tile_k
        work = families.work(config, problem.rows, n, k, problem.grid)
        assert work.columns == pytest.approx(float(said.removeprefix("time ")), rel=1e-5), problem
        assert work == families.work(config, problem.rows, n - 48, k - 48, problem.grid)
        tiles = -(-problem.rows // tile.tile_m) * problem.tiles_n
        assert work.waves == -(-tiles // problem.grid)
        whole = work.waves * k
        seen[problem.kind] += work.columns < whole * 0.99  # shared, or halves
        assert work.columns <= whole
    assert len(seen) == len(TILES)
    assert min(seen.values()) > 10, seen
