"""How options that may be left out are read and shown: as their type, without the `None` that leaving them out is."""

from dataclasses import replace
from types import NoneType, UnionType
from typing import Any, Union, get_args

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kinds = get_args(info.type)
    if info.type_origin not in (Union, UnionType) or len(kinds) != 2 or NoneType not in kinds:
        return None
    (kind,) = (one for one in kinds if one is not NoneType)
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
    )
