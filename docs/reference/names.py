"""api.md: every public name, as it is defined, with what its docstring says."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import griffe

from docs.reference.markdown import code, inline, link, page, prose, table
from docs.reference.signatures import Types, bases, construction, final, is_named_tuple, load, signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_OPENING = """\
Every public name, as the code has it: signatures, docstrings, attributes, errors."""
_MODULES = ("aio", "migrate", "opentelemetry", "prometheus", "testing")
"""Public below ``sqlmq``, under names of their own."""
_OWN = {
    "Message": ("arrived", "check_size", "headers_json"),
    "Publication": ("move_to", "set_result"),
}
"""Public among the modules of the library only."""
_FAILPOINT_FUNCTIONS = ("armed", "raising", "exiting", "stopping")
"""What tests call of ``sqlmq.testing.failpoints``."""
_USES = {"__enter__": "with", "__aenter__": "async with", "__iter__": "for", "__aiter__": "async for"}


class Names:
    """The public names, each with all that is public of it."""

    def __init__(self, package: griffe.Module) -> None:
        self._member = set(package["background.registry.GroupMember"].members)
        # Errors and what only tests use stand in modules of their own: few of them are at the top as well.
        exported = [
            *(package[str(name)] for name in package.exports or ()),
            *package["errors"].classes.values(),
            *(package["testing"][str(name)] for name in package["testing"].exports),
        ]
        self.classes = {one.name: one for one in map(final, exported) if isinstance(one, griffe.Class)}
        self.failpoints = cast("griffe.Module", final(package["testing"]["failpoints"]))
        self.modules = [cast("griffe.Module", package[name]) for name in _MODULES]

    def errors(self) -> dict[str, griffe.Class]:
        """What is raised."""
        return {name: cls for name, cls in self.classes.items() if cls.module.name == "errors"}

    def values(self) -> dict[str, griffe.Class]:
        """What holds something and does nothing."""
        return {name: cls for name, cls in self.classes.items() if "dataclass" in cls.labels or is_named_tuple(cls)}

    def objects(self) -> dict[str, griffe.Class]:
        """What does something."""
        return {name: self.classes[name] for name in self.classes if name not in {**self.errors(), **self.values()}}

    def below(self, module: griffe.Module) -> list[griffe.Function | griffe.Class]:
        """What *module* defines itself."""
        found = (one for one in module.members.values() if isinstance(one, griffe.Function | griffe.Class))
        return [one for one in found if not one.name.startswith("_")]

    def members(self, cls: griffe.Class) -> list[griffe.Function | griffe.Attribute]:
        """What is public of *cls*, its own first; what it has from another public class stands there."""
        inherited = {name: final(one) for name, one in cls.inherited_members.items()}
        elsewhere = set(self.classes.values())
        own_business = {*_OWN.get(cls.name, ()), *(self._member if cls.name == "Consumer" else ())}
        found = {**cls.members, **{name: one for name, one in inherited.items() if one.parent not in elsewhere}}
        return [
            one
            for name, one in found.items()
            if isinstance(one, griffe.Function | griffe.Attribute)
            and not name.startswith("_")
            and name not in own_business
        ]


def write() -> str:
    """The page."""
    package = load()
    names = Names(package)
    types = Types(package, names.classes.values())
    groups = (
        ("Objects", "What sends, reads and looks, and messages.", names.objects()),
        ("Values", "What is given to them, and what they return.", names.values()),
    )
    sections = [
        *(_group(title, told, found, names, types) for title, told, found in groups),
        *(_module(module, names, types) for module in names.modules),
    ]
    errors = _errors(names, types)
    contents = [
        *(f"- {link(title)}: {_links(found)}" for title, _, found in groups),
        *(f"- {link(module.path)}: {_summary(module)}" for module in names.modules),
        f"- {link('Types')} that signatures name, and {link('Errors')}.",
    ]
    # What the types are is known when all else is written.
    return page("Reference of the API", _OPENING, "\n".join(contents), *sections, _types(types), errors)


def _group(title: str, told: str, classes: dict[str, griffe.Class], names: Names, types: Types) -> str:
    return "\n\n".join([f"## {title}", told, *(_class(cls, names, types) for _, cls in sorted(classes.items()))])


def _class(cls: griffe.Class, names: Names, types: Types) -> str:
    members = names.members(cls)
    attributes = [one for one in members if isinstance(one, griffe.Attribute)]
    methods = [one for one in members if isinstance(one, griffe.Function)]
    parts = [
        f"### {cls.name}",
        code(called, "python") if (called := construction(cls, types)) else "",
        _docstring(cls),
        _kind(cls, types),
        _attributes(cls, attributes, types),
        *(part for method in methods for part in _function(method, types, f"#### {cls.name}.{method.name}")),
    ]
    return "\n\n".join(filter(None, parts))


def _kind(cls: griffe.Class, types: Types) -> str:
    uses = [inline(how) for method, how in _USES.items() if method in cls.all_members and not is_named_tuple(cls)]
    parts = []
    if "dataclass" in cls.labels:
        parts.append("A frozen dataclass." if "frozen=True" in str(cls.decorators[0].value) else "A dataclass.")
    if is_named_tuple(cls):
        parts.append("A named tuple.")
    if above := bases(cls, types):
        parts.append(f"Inherits from {' and '.join(above)}.")
    if uses:
        parts.append(f"Can be used with {' and '.join(uses)}.")
    return " ".join(parts)


def _attributes(cls: griffe.Class, attributes: Sequence[griffe.Attribute], types: Types) -> str:
    rows = [
        (inline(one.name), inline(types.text(one.annotation or _given(cls, one))), _docstring(one))
        for one in attributes
    ]
    return table(("attribute", "type", "meaning"), rows)


def _given(cls: griffe.Class, attribute: griffe.Attribute) -> str | griffe.Expr | None:
    """The type of an attribute that holds an argument."""
    return next((one.annotation for one in cls.parameters if one.name == str(attribute.value)), None)


def _function(function: griffe.Function, types: Types, heading: str) -> list[str]:
    return [heading, code(signature(function, types), "python"), _docstring(function)]


def _module(module: griffe.Module, names: Names, types: Types) -> str:
    parts = [f"## {module.path}"]
    if module.name == "testing":
        parts += [_docstring(module), f"Its class: {_links(['Clock'])} Its failpoints:"]
        functions = (one for one in names.below(names.failpoints) if one.name in _FAILPOINT_FUNCTIONS)
        for function in functions:
            parts += _function(cast("griffe.Function", function), types, f"### failpoints.{function.name}")
        return "\n\n".join(parts)
    if module.exports:
        parts += [_summary(module), f"The same classes as in `sqlmq`: {_links(map(str, module.exports))}"]
        return "\n\n".join(parts)
    parts.append(_docstring(module))
    for one in names.below(module):
        if isinstance(one, griffe.Class):
            parts.append(_class(one, names, types))
        else:
            parts += _function(one, types, f"### {module.name}.{one.name}")
    return "\n\n".join(parts)


def _errors(names: Names, types: Types) -> str:
    errors = names.errors()
    (root,) = (cls for cls in errors.values() if not set(map(str, cls.bases)) & errors.keys())
    return "\n\n".join(
        [
            "## Errors",
            "What they hold stands in their attributes. What each of them inherits from, down from the root:",
            "\n".join(_tree(root, errors)),
            *(_class(cls, names, types) for _, cls in sorted(errors.items())),
        ]
    )


def _tree(cls: griffe.Class, errors: dict[str, griffe.Class], depth: int = 0) -> Iterator[str]:
    others = [inline(str(base)) for base in cls.bases if str(base) not in {*errors, "Exception"}]
    yield f"{'  ' * depth}- {link(cls.name)}{', also a ' + others[0] if others else ''}"
    for below in errors.values():
        if cls.name in map(str, below.bases):
            yield from _tree(below, errors, depth + 1)


def _types(types: Types) -> str:
    told = "Short names in signatures. They are for reading, not for importing."
    parts = ["## Types", told, types.aliases(), "And the names that come from elsewhere:", types.foreign()]
    return "\n\n".join(parts)


def _docstring(one: griffe.Object) -> str:
    return prose(one.docstring.value) if one.docstring else ""


def _summary(one: griffe.Object) -> str:
    return _docstring(one).split("\n\n", maxsplit=1)[0]


def _links(names: Iterable[str]) -> str:
    return ", ".join(map(link, sorted(names))) + "."
