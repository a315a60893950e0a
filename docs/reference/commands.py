"""cli.md: every command, as click knows it."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from docs.reference.markdown import anchor, code, escaped, inline, link, page, table
from sqlmq.cli.root import main

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPENING = """\
Every command, with all its options. What they are for, and how they go together: [the command line](../cli.md). The
same is told by `--help` after any command."""
_SHARED = "Options of every command"
_TITLES = {"Exit codes": ("exit code", "meaning")}
"""What a list at the end of a command's help is headed by, if it is a table; any other is for a shell."""


class Command(NamedTuple):
    """A command where it stands in the application."""

    path: str
    command: click.Command
    context: click.Context
    info: dict[str, Any]
    """What click tells of it."""

    @property
    def usage(self) -> str:
        """How it is called."""
        return " ".join([self.path, *self.command.collect_usage_pieces(self.context)])

    def options(self) -> dict[str, tuple[click.Option, dict[str, Any]]]:
        """Its options by their names as they are typed, with what click tells of them; not ``--help``."""
        params = zip(self.command.get_params(self.context), self.info["params"], strict=True)
        found = [(param, told) for param, told in params if isinstance(param, click.Option) and not param.is_eager]
        return {"/".join(option.opts): (option, told) for option, told in found}

    def arguments(self) -> list[click.Argument]:
        """Its arguments, in order."""
        return [param for param in self.command.params if isinstance(param, click.Argument)]


def walk(command: click.Command, parent: click.Context | None = None, name: str = "sqlmq") -> Iterator[Command]:
    """*command*, and all below it, in the order of their names."""
    context = click.Context(command, info_name=name, parent=parent)
    yield Command(context.command_path, command, context, command.to_info_dict(context))
    for below, one in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
        yield from walk(one, context, below)


def write() -> str:
    """The page."""
    root, *commands = walk(main)
    shared = set(root.options())
    return page(
        "Reference of the command line",
        _OPENING,
        code(root.usage),
        _told(root.command.help),
        *_epilog(root.command),
        table(("command", "what it does"), [(link(one.path), _summary(one.command)) for one in commands]),
        f"## {_SHARED}",
        "They may stand before a command or after it. What stands further right wins, and the command line wins over "
        "the environment.",
        _options(root, shared),
        "`-h` or `--help` explains a command and ends; `sqlmq --version` prints the version and ends.",
        *(_section(one, shared) for one in commands),
    )


def _section(one: Command, shared: set[str]) -> str:
    below = one.command.commands if isinstance(one.command, click.Group) else {}
    own = one.options().keys() - shared
    if not shared <= one.options().keys():
        message = f"{one.path} does not have {', '.join(sorted(shared - one.options().keys()))}, as all others have."
        raise LookupError(message)
    parts = [
        f"## {one.path}",
        code(one.usage),
        _told(one.command.help),
        table(("argument", "how many"), [(inline(_name(one, param)), _how_many(param)) for param in one.arguments()]),
        _options(one, own),
        f"It takes the [options of every command](#{anchor(_SHARED)}) too.",
        table(
            ("command", "what it does"), [(link(f"{one.path} {name}"), _summary(below[name])) for name in sorted(below)]
        ),
        *_epilog(one.command),
    ]
    return "\n\n".join(filter(None, parts))


def _options(one: Command, wanted: set[str]) -> str:
    rows = [
        (
            ", ".join(map(inline, [*option.opts, *option.secondary_opts])),
            _value(one, option, told["type"]),
            "required" if option.required else inline(_default(option)),
            ", ".join(map(inline, [option.envvar] if isinstance(option.envvar, str) else option.envvar or [])),
            escaped(option.help or "") + (" May be given several times." if _is_repeated(option) else ""),
        )
        for name, (option, told) in one.options().items()
        if name in wanted
    ]
    return table(("option", "value", "default", "environment", "meaning"), rows)


def _value(one: Command, option: click.Option, kind: dict[str, Any]) -> str:
    """What follows an option, and from where to where it may go."""
    if option.is_flag or option.count:
        return ""
    if "choices" in kind and option.metavar is None:
        return inline("|".join(map(str, kind["choices"])))
    lowest, highest = kind.get("min"), kind.get("max")
    ends = [
        f"{'more than' if kind.get('min_open') else 'from'} {lowest}" if lowest is not None else "",
        f"{'less than' if kind.get('max_open') else 'to'} {highest}" if highest is not None else "",
    ]
    listed = f"one of {', '.join(map(inline, kind['choices']))}" if "choices" in kind else ""
    told = " ".join(filter(None, [*ends, listed]))
    return inline(_name(one, option)) + (f", {told}" if told else "")


def _name(one: Command, param: click.Parameter) -> str:
    """What stands for the value of *param*."""
    if param.metavar is not None:
        return param.metavar
    if isinstance(param, click.Argument):
        (piece,) = param.get_usage_pieces(one.context)
        return piece.strip("[].")
    return param.type.name.upper().removesuffix(" RANGE")


def _default(option: click.Option) -> str:
    default = option.default
    if isinstance(default, bool):
        names = option.opts if default else option.secondary_opts
        return max(names, key=len, default="")
    return str(default) if isinstance(default, str | int | float) and not option.count else ""


def _how_many(argument: click.Argument) -> str:
    if argument.nargs == -1:
        return "one or more" if argument.required else "any number"
    return "one" if argument.required else "one, or none"


def _is_repeated(option: click.Option) -> bool:
    """Whether it may stand several times, and its help does not say so."""
    return option.multiple and re.search("again|several|repeated", option.help or "") is None


def _summary(command: click.Command) -> str:
    return _told(command.help).split("\n\n", maxsplit=1)[0]


def _told(text: str | None) -> str:
    """Help as a page has it: what click must not wrap is a block of its own."""
    parts = re.split(r"\n{2,}", inspect.cleandoc(text or ""))
    return "\n\n".join(
        code(part.removeprefix("\b").strip("\n")) if part.startswith("\b") else escaped(part) for part in parts
    )


def _epilog(command: click.Command) -> Iterator[str]:
    """What stands below a command's help, a list of lines with a title each."""
    for block in (command.epilog or "").replace("\b", "").strip().split("\n\n"):
        title, _, below = block.strip().partition(":\n")
        lines = [line.strip() for line in below.splitlines()]
        if title in _TITLES:
            yield table(_TITLES[title], [escaped(line).split(None, 1) for line in lines])
        elif title:
            yield f"{title}:\n\n{code(chr(10).join(lines), 'sh')}"
