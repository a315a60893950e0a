"""How what can be imported is called, and the types that are named there."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import griffe

from docs.reference.markdown import inline, link, table

if TYPE_CHECKING:
    from collections.abc import Iterable

SOURCE = Path(__file__).parent.parent.parent / "src"
LINE = 100

Annotation: TypeAlias = "str | griffe.Expr | None"
_STARS = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}


def load() -> griffe.Module:
    """The package, read without being run."""
    return cast("griffe.Module", griffe.load("sqlmq", search_paths=[SOURCE], allow_inspection=False))


def final(found: griffe.Object | griffe.Alias) -> griffe.Object:
    """What *found* is in the end, where it only leads there."""
    return found.final_target if isinstance(found, griffe.Alias) else found


class Types:
    """The types that signatures name, remembered so that a page can say what they are."""

    def __init__(self, package: griffe.Module, public: Iterable[griffe.Object]) -> None:
        self._package = package
        self._public = {one.canonical_path for one in public}
        self._aliases: dict[str, griffe.Attribute] = {}
        self._foreign: dict[str, str] = {}

    def text(self, annotation: Annotation) -> str:
        """*annotation* as it is written, and all names in it remembered."""
        for path in _paths(annotation):
            name = path.rpartition(".")[2]
            if path.startswith("sqlmq."):
                found = self._find(path)
                if isinstance(found, griffe.Attribute) and name not in self._aliases:
                    self._aliases[name] = found
                    self.text(_value(found))
            elif "." in path and not path.startswith("typing."):
                self._foreign[name] = path
        return _quoted(str(annotation)) if annotation is not None else ""

    def are_public(self, annotations: Iterable[Annotation]) -> bool:
        """Whether none of *annotations* names a class that is the library's own business."""
        paths = {path for annotation in annotations for path in _paths(annotation) if path.startswith("sqlmq.")}
        return all(path in self._public or self._find(path).is_attribute for path in paths)

    def aliases(self) -> str:
        """A table of the short names that were used for types."""
        rows = [
            (inline(name), inline(_quoted(str(_value(alias)))), alias.docstring.value if alias.docstring else "")
            for name, alias in sorted(self._aliases.items())
        ]
        return table(("name", "stands for", "meaning"), rows)

    def foreign(self) -> str:
        """A table of the names of other libraries that were used."""
        return table(("name", "is"), [(inline(name), inline(path)) for name, path in sorted(self._foreign.items())])

    def _find(self, path: str) -> griffe.Object:
        return final(self._package[path.removeprefix("sqlmq.")])


def signature(function: griffe.Function, types: Types) -> str:
    """*function* as it is defined, without ``self``."""
    kept = "@classmethod\n" if "classmethod" in function.labels else ""
    verb = "async def" if "async" in function.labels else "def"
    return f"{kept}{_called(f'{verb} {function.name}', _parameters(function, types))} -> {types.text(function.returns)}"


def construction(cls: griffe.Class, types: Types) -> str:
    """*cls* as it is called; nothing for one that only the library makes."""
    if is_named_tuple(cls):
        fields = cls.attributes.items()
        return _called(f"class {cls.name}", [f"{name}: {types.text(one.annotation)}" for name, one in fields])
    init = final(cls.all_members["__init__"]) if "__init__" in cls.all_members else None
    told = cls.docstring.value if cls.docstring else ""
    if not isinstance(init, griffe.Function) or "Made by" in told:
        return ""
    if not types.are_public(one.annotation for one in init.parameters):
        return ""
    return _called(f"class {cls.name}", _parameters(init, types))


def bases(cls: griffe.Class, types: Types) -> list[str]:
    """The public classes that *cls* inherits from, those of the library as links."""
    public = [base for base in cls.bases if types.are_public([base]) and str(base) != "NamedTuple"]
    paths = [next(iter(_paths(base)), str(base)) for base in public]
    return [
        link(str(base)) if path.startswith("sqlmq.") else inline(path) for base, path in zip(public, paths, strict=True)
    ]


def is_named_tuple(cls: griffe.Class) -> bool:
    """Whether *cls* is one, with its attributes for fields."""
    return "NamedTuple" in map(str, cls.bases)


def _parameters(function: griffe.Function, types: Types) -> list[str]:
    pieces: list[str] = []
    is_after_star = False
    for parameter in function.parameters:
        if parameter.name in {"self", "cls"}:
            continue
        stars = _STARS.get(parameter.kind, "") if parameter.kind else ""
        if parameter.kind is griffe.ParameterKind.keyword_only and not is_after_star:
            pieces.append("*")
        is_after_star |= stars == "*" or pieces[-1:] == ["*"]
        written = f"{stars}{parameter.name}: {types.text(parameter.annotation)}"
        has_default = parameter.default is not None and not stars
        pieces.append(f"{written} = {_default(parameter, function)}" if has_default else written)
    return pieces


def _called(opening: str, parameters: list[str]) -> str:
    line = f"{opening}({', '.join(parameters)})"
    if len(line) <= LINE:
        return line
    return "\n".join([f"{opening}(", *(f"    {piece}," for piece in parameters), ")"])


def _default(parameter: griffe.Parameter, owner: griffe.Function) -> str:
    """The default as it is written, or what it is where that names what readers can't know."""
    names = {path.partition(".")[0] for path in _paths(parameter.default)}
    if all(hasattr(builtins, name) for name in names):
        return _quoted(str(parameter.default))
    found: Any = importlib.import_module(owner.module.canonical_path)
    for name in owner.canonical_path.removeprefix(f"{owner.module.canonical_path}.").split("."):
        found = getattr(found, name)
    default = inspect.signature(found).parameters[parameter.name].default
    # repr() of a function says where it lies in memory.
    shown = f"{default.__module__}.{default.__qualname__}" if inspect.isroutine(default) else repr(default)
    return _quoted(shown)


def _quoted(text: str) -> str:
    """*text* with the quotation marks that the library's code has."""
    return text if '"' in text else text.replace("'", '"')


def _value(alias: griffe.Attribute) -> Annotation:
    """What a short name of a type stands for, also where that is a string because its names are not imported."""
    if not isinstance(alias.value, str):
        return alias.value
    return griffe.get_expression(ast.parse(ast.literal_eval(alias.value), mode="eval").body, parent=alias.module)


def _paths(annotation: Annotation) -> list[str]:
    """Where the names in *annotation* come from; those of built-in types have no dot."""
    if not isinstance(annotation, griffe.Expr):
        return []
    return [one.canonical_path for one in annotation.iterate() if isinstance(one, griffe.ExprName)]
