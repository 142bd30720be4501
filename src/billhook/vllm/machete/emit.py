"""Render a plan as the sources that vLLM's Machete folder includes: dispatch, prepacking, implementations."""

from __future__ import annotations

from dataclasses import dataclass

from ...emit.source import SourceFile
from .. import text
from ..release import MacheteRelease
from .cutlass import SPELLINGS, UNSIGNED, AnyType, DataType
from .plan import Plan, deal, prepack_types
from .types import (
    ImplConfig,
    PrepackTypeConfig,
    ScheduleConfig,
    TypeConfig,
    generate_terse_sch_sig,
    generate_type_option_name,
    generate_type_signature,
)

DISPATCH = "machete_mm_dispatch.cu"
PREPACK = "machete_prepack.cu"


def part_name(index: int) -> str:
    """Return the name of the implementation file with this index, from 0."""
    return f"machete_mm_impl_part{index + 1}.cu"


def emit(plan: Plan, release: MacheteRelease) -> list[SourceFile]:
    """Render a plan's files: dispatch, prepacking, then the implementations in order.

    Args:
        plan: What is instantiated.
        release: How the receiving tree spells what changes between releases.
    """
    writer = Writer(release)
    wanted = prepack_types(plan.impls)
    left_out = [one for one in prepack_types(plan.left_out) if _key(one) not in map(_key, wanted)]
    return [
        SourceFile(
            DISPATCH,
            text.render("machete_mm_dispatch.cu.jinja", w=writer, impls=plan.impls, left_out=plan.left_out),
        ),
        SourceFile(
            PREPACK, text.render("machete_prepack.cu.jinja", w=writer, types=wanted, left_out=left_out)
        ),
        *(
            SourceFile(part_name(index), text.render("machete_mm_impl.cu.jinja", w=writer, impls=held))
            for index, held in enumerate(deal(plan.impls, plan.parts))
        ),
    ]


def _key(types: PrepackTypeConfig) -> tuple[DataType, int, DataType]:
    return (types.a, types.b_num_bits, types.convert)


@dataclass(frozen=True)
class Writer:
    """Spells configs in C++ for one release; what the templates call.

    Args:
        release: How the receiving tree spells what changes between releases.
    """

    release: MacheteRelease

    sch = staticmethod(generate_terse_sch_sig)
    sig = staticmethod(generate_type_signature)
    option_name = staticmethod(generate_type_option_name)

    @property
    def tensor(self) -> str:
        """The tensor type."""
        return self.release.tensor

    @property
    def not_implemented(self) -> str:
        """The macro that raises a not-implemented error."""
        return self.release.not_implemented

    @property
    def scalar_type(self) -> str:
        """The scalar type's type."""
        return self.release.scalar_type

    def tag(self, element: AnyType) -> str:
        """Return the C++ type of an element."""
        return SPELLINGS[element].tag

    def unsigned_tag(self, bits: int) -> str:
        """Return the C++ type of packed weights of a width."""
        return SPELLINGS[UNSIGNED[bits]].tag

    def torch(self, element: AnyType) -> str:
        """Return the torch scalar type of an element."""
        return f"{self.release.scalar_type}::{SPELLINGS[element].torch}"

    def weight(self, element: AnyType) -> str:
        """Return vLLM's scalar type of a weight."""
        return SPELLINGS[element].scalar

    def printed(self, expression: str) -> str:
        """Return the C++ that streams a scalar type."""
        return self.release.print_scalar_type.format(expression)

    def printed_optional(self, expression: str) -> str:
        """Return the C++ that streams an optional scalar type."""
        form = self.release.print_scalar_type
        to_text = form if form != "{}" else "toString({})"  # both arms of ?: need one type
        return f'{expression} ? {to_text.format("*" + expression)} : "None"'

    def shape(self, sizes: tuple[int, ...]) -> str:
        """Return a static CuTe shape, such as `Shape<_128, _64>`."""
        return (
            "Shape<" + ", ".join(f"_{one}" if one & (one - 1) == 0 else f"Int<{one}>" for one in sizes) + ">"
        )

    def has(self, element: DataType, optional: str) -> str:
        """Return the test that an optional scalar type is `element`, or absent if that is void."""
        return f"!{optional}" if element is DataType.void else f"{optional} == {self.torch(element)}"

    def unique_schedules(self, impls: list[ImplConfig]) -> list[ScheduleConfig]:
        """Return the schedules of a file, without repeats."""
        return list(dict.fromkeys(schedule for impl in impls for schedule in impl.schedules))

    def takes(self, types: TypeConfig) -> str:
        """Return the test that the arguments of a multiplication have these types."""
        return self._all(
            f"args.b_type == {self.weight(types.b)}",
            f"a_type == {self.torch(types.a)}",
            f"out_type == {self.torch(types.out)}",
            self.has(types.b_group_scale, "group_scales_type"),
            self.has(types.b_group_zeropoint, "group_zeros_type"),
            self.has(types.b_channel_scale, "channel_scales_type"),
            self.has(types.a_token_scale, "token_scales_type"),
        )

    def lists(self, types: TypeConfig) -> str:
        """Return the test that a query for schedules is about these types, channel and token scales aside."""
        return self._all(
            f"args.b_type == {self.weight(types.b)}",
            f"args.a_type == {self.torch(types.a)}",
            f"out_type == {self.torch(types.out)}",
            self.has(types.b_group_scale, "args.maybe_group_scales_type"),
            self.has(types.b_group_zeropoint, "args.maybe_group_zeros_type"),
        )

    def packs(self, types: PrepackTypeConfig) -> str:
        """Return the test that weights are to be packed for these types."""
        return self._all(
            f"args.a_type == {self.torch(types.a)}",
            f"args.b_type.size_bits() == {types.b_num_bits}",
            f"convert_type == {self.torch(types.convert)}",
        )

    @staticmethod
    def _all(*tests: str) -> str:
        return "\n      && ".join(tests)
