"""Circles in a graph, given as the numbers that each node leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


def without_loose_ends(edges: Sequence[Sequence[int]]) -> list[int]:
    """The nodes that are left when those to which nothing leads are taken away, again and again: none if there is no circle.

    In time linear in nodes and edges, and with little memory: what is usual, no circle, costs no more than this.
    """
    leading_here = [0] * len(edges)
    for targets in edges:
        for target in targets:
            leading_here[target] += 1
    loose = [node for node, count in enumerate(leading_here) if not count]
    for node in loose:
        for target in edges[node]:
            leading_here[target] -= 1
            if not leading_here[target]:
                loose.append(target)
    return [node for node, count in enumerate(leading_here) if count]


def strongly_connected(edges: Sequence[Sequence[int]], nodes: Collection[int]) -> Iterator[list[int]]:
    """The sets of more than one of *nodes* that all lead to each other. Tarjan's algorithm, without recursion."""
    among = set(nodes)
    index: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = lowest[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in among:
                    continue
                if target not in index:
                    index[target] = lowest[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(edges[target])))
                    break
                if target in on_stack:
                    lowest[node] = min(lowest[node], index[target])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[node])
                if lowest[node] == index[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    if len(component) > 1:
                        yield component
